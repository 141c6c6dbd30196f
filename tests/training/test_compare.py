import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from cases import slow
from rich.console import Console

from keras_mas.errors import UsageError
from keras_mas.training import compare as compare_module
from keras_mas.training import comparison_progress, progress
from keras_mas.training.cli import main
from keras_mas.training.compare import Entry, Observer, _Streams, compare
from keras_mas.training.comparison_plan import ComparisonPlan
from keras_mas.training.comparison_progress import ComparisonLines
from keras_mas.training.learner import Learner
from keras_mas.training.run import finished_result, train
from keras_mas.training.run_directory import locked, read_result
from keras_mas.training.search.recommend import NoTrialError
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.search.trial import Trial
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task
from keras_mas.training.tasks.changes import Change
from keras_mas.training.tasks.inputs import ChangedArray, MemoryArray


def of_seed(stream, seed):
    """The stream with its training examples in another order, as another seed gives them."""

    def turned(task):
        rows = [*range(seed, len(task.train)), *range(seed)]
        return Task(task.name, task.classes, task.train.take(rows), task.validation, task.test)

    return dataclasses.replace(stream, tasks=tuple(map(turned, stream.tasks)))


@pytest.fixture
def quick(settings):
    return dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, epochs=2))


@pytest.fixture
def contestants(quick):
    return [quick, dataclasses.replace(quick, method="finetune")]


class Notes(Observer):
    def __init__(self):
        self.started, self.ended, self.trials, self.found = [], [], [], []

    def run_started(self, settings, directory):
        self.started.append((settings.method, settings.seed))
        return ()

    def run_ended(self, entry):
        self.ended.append(entry)

    def trial_ended(self, settings, trial):
        self.trials.append((settings.method, settings.seed))

    def search_ended(self, settings, found, recommendation):
        self.found.append((settings.method, recommendation.trial.strength))


def run_all(stream, contestants, folder, seeds=(0, 1), **options):
    notes = Notes()
    entries = compare(
        lambda seed: of_seed(stream, seed), contestants, seeds, folder, observer=notes, **options
    )
    assert entries == notes.ended
    return entries, notes


def test_every_run_is_that_of_train(stream, contestants, tmp_path):
    entries, notes = run_all(stream, contestants, tmp_path / "runs")
    names = [("mas", 0), ("mas", 1), ("finetune", 0), ("finetune", 1)]
    assert [(e.settings.method, e.settings.seed) for e in entries] == notes.started == names
    for entry in entries:
        alone = train(of_seed(stream, entry.settings.seed), entry.settings, tmp_path / "alone")
        assert entry.result["accuracy_matrix"] == alone["accuracy_matrix"]
        assert entry.result == read_result(entry.directory)
        (tmp_path / "alone").rename(tmp_path / f"{entry.settings.method}{entry.settings.seed}")
    assert entries[0].directory.name == "insects-mas-1-mlp-16-rate0.02-epochs2-batch16-seed0"


def test_finished_runs_are_read_without_building_a_network(
    stream, contestants, tmp_path, monkeypatch
):
    first, _ = run_all(stream, contestants, tmp_path)
    monkeypatch.setattr(compare_module, "Learner", None)
    again, notes = run_all(stream, contestants, tmp_path)
    assert notes.started == []
    assert not any(entry.is_new for entry in again)
    assert [entry.result for entry in again] == [entry.result for entry in first]


def test_another_seed_traces_nothing_again(stream, contestants, tmp_path, monkeypatch):
    from keras_mas import MASModel

    traces, train_step = [], MASModel.train_step
    monkeypatch.setattr(
        MASModel, "train_step", lambda self, data: traces.append(1) or train_step(self, data)
    )
    run_all(stream, contestants[:1], tmp_path, seeds=(0, 1, 2))
    assert len(traces) == 1


def test_a_second_comparison_leaves_the_files_of_the_first_alone(tmp_path, monkeypatch, capsys):
    arrays = {"x_train": np.eye(4, dtype="float32"), "y_train": np.arange(4) % 2}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"]}
    np.savez(tmp_path / "pets.npz", **arrays)
    tasks = tmp_path / "pets.toml"
    tasks.write_text('name = "pets"\n[[task]]\nname = "pets"\nnpz = "pets.npz"\n')
    monkeypatch.setattr(compare_module, "compare", None)  # is not reached
    output = tmp_path / "comparison"
    output.mkdir()
    with locked(output):
        assert main(["compare", str(tasks), "--output", str(output)]) == 1
        assert sorted(path.name for path in output.iterdir()) == [".lock", ".lock.json"]
    assert "comparison' is in use by process" in capsys.readouterr().err


def test_a_learner_refuses_a_stream_with_other_heads(stream, quick):
    learner = Learner(stream)
    for other in (
        dataclasses.replace(stream, tasks=stream.tasks[::-1]),
        dataclasses.replace(stream, scenario="domain"),
        dataclasses.replace(stream, rescale=(0.5, 0.0)),
    ):
        with pytest.raises(ValueError, match="Expected a stream with the heads and inputs"):
            learner.begin(quick, other)


def test_a_seed_whose_data_cannot_be_loaded_is_an_entry_and_the_others_go_on(
    stream, contestants, tmp_path
):
    def load(seed):
        if seed == 1:
            raise UsageError("Expected a photo. Received: none.")
        return of_seed(stream, seed)

    entries = compare(load, contestants[1:], (0, 1, 2), tmp_path)
    assert [entry.error for entry in entries] == ["", "Expected a photo. Received: none.", ""]


def test_a_search_measures_nothing_under_way(stream, quick, tmp_path, monkeypatch):
    asked = dataclasses.replace(quick, evaluate_every=2)
    seen = []
    monkeypatch.setattr(
        compare_module, "search", lambda stream, settings, *_, **__: seen.append(settings) or 1 / 0
    )
    entries, _ = run_all(stream, [asked], tmp_path, seeds=(0,), space=SearchSpace(trials=1))
    assert [settings.evaluate_every for settings in seen] == [None]
    assert entries[0].error == "ZeroDivisionError: division by zero"
    assert entries[0].settings.evaluate_every == 2


def test_a_run_that_diverges_is_an_entry_and_the_others_go_on(stream, contestants, tmp_path):
    recipe = dataclasses.replace(contestants[0].recipe, optimizer="sgd", learning_rate=1e30)
    wild = dataclasses.replace(contestants[0], recipe=recipe)
    entries, _ = run_all(stream, [wild, contestants[1]], tmp_path)
    assert [bool(entry.result) for entry in entries] == [False, False, True, True]
    assert "Expected a finite loss" in entries[0].error
    alone = train(stream, contestants[1], tmp_path / "alone")
    assert entries[2].result["accuracy_matrix"] == alone["accuracy_matrix"]


@pytest.mark.parametrize(
    ("error", "keeps_network"), [(UsageError, False), slow(compare_module.DivergedError, True)]
)
def test_an_error_is_an_entry_and_leaves_no_half_a_network(
    stream, contestants, tmp_path, monkeypatch, error, keeps_network
):
    learners, original = [], compare_module.train

    def failing(stream, settings, directory, *, learner, **options):
        learners.append(learner)
        if len(learners) == 1:
            raise error("A backbone\n of no use.")
        return original(stream, settings, directory, learner=learner, **options)

    monkeypatch.setattr(compare_module, "train", failing)
    entries, _ = run_all(stream, contestants[:1], tmp_path, seeds=(0, 1, 2))
    assert [entry.error for entry in entries] == ["A backbone of no use.", "", ""]
    assert (learners[0] is learners[1]) == keeps_network
    assert learners[1] is learners[2]


def test_a_full_disk_ends_the_comparison_and_finished_runs_stay(
    stream, contestants, tmp_path, monkeypatch
):
    original = compare_module.train

    def full(stream, settings, directory, **options):
        if settings.seed == 1:
            raise OSError(28, "No space left on device", str(directory))
        return original(stream, settings, directory, **options)

    monkeypatch.setattr(compare_module, "train", full)
    with pytest.raises(OSError, match="No space left"):
        run_all(stream, contestants, tmp_path)
    assert finished_result(stream, contestants[0], next(tmp_path.iterdir())) is not None


# Three tasks of 64 + 16 + 40 examples, four numbers of four bytes each.
BYTES = 3 * 120 * 16


@pytest.mark.parametrize(("memory", "fit"), [(8 * BYTES, True), (8 * BYTES - 1, False)])
def test_streams_of_two_seeds_are_kept_if_they_take_a_quarter_of_the_memory(
    stream, monkeypatch, memory, fit
):
    monkeypatch.setattr(compare_module, "machine_memory", lambda: memory)
    loads = []
    streams = _Streams(lambda seed: loads.append(seed) or of_seed(stream, seed), 2)
    for seed in (0, 1, 1, 0):
        assert streams(seed).fingerprint == of_seed(stream, seed).fingerprint
    assert loads == ([0, 1] if fit else [0, 1, 0])


def test_inputs_that_tasks_share_are_in_memory_once(stream):
    source = MemoryArray(np.zeros([10, 4], "float32"))
    labels = np.arange(10) % 2
    plain, doubled = Split(source, labels), Split(ChangedArray(source, Doubled()), labels)
    tasks = [Task(n, ("no", "yes"), each, each, each) for n, each in [("a", plain), ("b", doubled)]]
    shared = dataclasses.replace(stream, tasks=tuple(tasks))
    assert compare_module._bytes_in_memory(shared) == 10 * 16


@dataclasses.dataclass(frozen=True)
class Doubled(Change):
    def __call__(self, inputs):
        return 2 * inputs


# The search for λ.


@pytest.fixture
def found(monkeypatch):
    """Replace the search by one that recommends λ = 12.35."""
    asked = []

    class Found:
        def recommendation(self):
            return SimpleNamespace(trial=Trial({"strength": 12.35}, Settings()))

    def search(stream, settings, space, directory, *, observer, learner):
        asked.append((settings.method, settings.seed, directory))
        for is_new in (True, False):  # one that was read is not told of
            observer.trial_ended(Trial({"strength": 12.35}, settings, is_new=is_new))
        return Found()

    monkeypatch.setattr(compare_module, "search", search)
    return asked


def test_the_strength_of_methods_that_have_one_is_searched_for(
    found, stream, contestants, tmp_path
):
    entries, notes = run_all(
        stream, contestants, tmp_path, space=SearchSpace(), searches=tmp_path / "searches"
    )
    assert found == [("mas", 0, tmp_path / "searches")]
    assert notes.trials == [("mas", 0)]
    assert notes.found == [("mas", 12.35)]
    assert [e.settings.strength for e in entries] == [12.35, 12.35, 1.0, 1.0]
    assert [e.result["strength"] for e in entries[:2]] == [12.35, 12.35]


def test_a_search_is_made_with_the_data_of_its_own_seed(stream, quick, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        compare_module, "search", lambda stream, *_, **__: seen.append(stream.fingerprint) or 1 / 0
    )
    second = dataclasses.replace(quick, seed=1)
    run_all(stream, [second], tmp_path, seeds=(0, 1), space=SearchSpace())
    assert seen == [of_seed(stream, 1).fingerprint]


def test_a_full_disk_ends_a_search(stream, quick, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compare_module, "search", full)
    with pytest.raises(OSError, match="No space left"):
        run_all(stream, [quick], tmp_path, space=SearchSpace())


def test_a_search_without_a_result_fails_the_runs_of_its_method(
    found, stream, contestants, tmp_path, monkeypatch
):
    def search(*_, **__):
        raise NoTrialError("No trial was completed.")

    monkeypatch.setattr(compare_module, "search", search)
    entries, _ = run_all(stream, contestants, tmp_path, space=SearchSpace())
    assert {e.error for e in entries[:2]} == {"No trial was completed."}
    assert all(e.result for e in entries[2:])


class Unreadable(MemoryArray):
    def read(self, rows):
        raise AssertionError("test data was read")


def test_the_search_reads_no_test_data(stream, contestants, tmp_path):
    def wrong(task):
        test = Split(Unreadable(task.test.inputs), task.test.labels)
        return Task(task.name, task.classes, task.train, task.validation, test)

    unreadable = dataclasses.replace(stream, tasks=tuple(map(wrong, stream.tasks)))
    found = compare_module.search(unreadable, contestants[0], SearchSpace("random", 1), tmp_path)
    assert all(trial.is_completed for trial in found.trials)
    with pytest.raises(AssertionError, match="test data was read"):
        train(unreadable, contestants[0], tmp_path / "run")


# What is asked for.


def test_a_plan():
    plan = ComparisonPlan("mas,finetune", "3,0-2", "mas=4")
    assert plan.seed_numbers == (3, 0, 1, 2)
    assert len(ComparisonPlan(seeds="0-999").seed_numbers) == 1000
    mas, finetune = plan.contestants(Recipe(epochs=7), penalty="decoupled")
    assert mas == Settings("mas", 4.0, "decoupled", 3, Recipe(epochs=7))
    assert (finetune.method, finetune.strength) == ("finetune", Settings("finetune").strength)
    # One λ for all methods is for those that have one.
    both = ComparisonPlan(strength="3").contestants(Recipe())
    assert [each.of_method["strength"] for each in both] == [3.0, None]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"methods": ""}, "Expected at least one method in `--methods`. Received: none"),
        ({"methods": "mas,mas"}, "each method once in `--methods`. Received: 'mas' more than"),
        ({"methods": "mas,masss"}, "Received: 'masss'"),
        ({"methods": "MAS"}, "or MODULE:CLASS .* Received: 'MAS'. Did you mean 'mas'?"),
        ({"methods": "evil:"}, "or MODULE:CLASS .* Received: 'evil:'"),
        ({"seeds": "0,x"}, "whole numbers from 0 to 4294967295 and ranges.*Received: 'x'"),
        ({"seeds": ""}, "Expected at least one seed in `--seeds`. Received: none"),
        ({"seeds": "0,4294967296"}, "from 0 to 4294967295 .*Received: '4294967296'"),
        ({"seeds": "0-100000000"}, "at most 1,000 seeds .*Received: 100,000,001 in '0-100000000'"),
        ({"seeds": "0-500,501-1000"}, "Received: 1,001 in '0-500,501-1000'"),
        ({"seeds": "-1"}, "Received: '-1'"),
        ({"seeds": "3-1"}, "Received: '3-1'"),
        ({"seeds": "0-2,1"}, "each seed once in `--seeds`. Received: '1' more than once"),
        ({"strength": ""}, "Expected --strength to be a number.*Received: ''"),
        ({"strength": "strong"}, "Expected --strength to be a number.*Received: 'strong'"),
        ({"strength": "-3"}, "Received: -3"),
        ({"strength": "nan"}, "Received: nan"),
        ({"strength": "mas=1,3"}, "one --strength for all methods.*Received: 'mas=1,3'"),
        ({"strength": "mas=1,mas=2"}, "each method once in `--strength`. Received: 'mas' more"),
        (
            {"strength": "ewc=1"},
            "each name in `--strength` to be one of mas, finetune. Received: 'ewc'",
        ),
        ({"strength": "finetune=1"}, "no --strength for 'finetune', which has no λ"),
        ({"methods": "finetune,joint", "strength": "1"}, "for 'finetune', 'joint', which have no"),
        ({"methods": "finetune", "search": True}, "no --search for 'finetune', which has no λ"),
        ({"strength": "1", "search": True}, "either --search or --strength"),
        ({"against": "worst"}, "`--against` to be one of mas, finetune. Received: 'worst'"),
    ],
)
def test_a_plan_that_cannot_be_read(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        ComparisonPlan(**given).contestants(Recipe())


# Its progress.


@pytest.fixture
def console(monkeypatch):
    console = Console(file=io.StringIO(), width=100, markup=False)
    monkeypatch.setattr(progress, "stderr_console", lambda: console)
    return console


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until `clock.now` is set."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(comparison_progress, "time", clock)
    return clock


def ended(settings, seed, seconds, **fields):
    settings = dataclasses.replace(settings, seed=seed)
    result = {"average_accuracy": 0.75, "seconds": {"training": seconds}}
    return Entry(settings, None, result, **fields)


def test_no_time_is_promised_while_a_search_is_to_come(contestants, console, clock):
    two = [contestants[1], contestants[0]]  # fine-tuning has nothing to search for
    lines = ComparisonLines(two, [0], 3, searches=True)
    lines.run_ended(ended(two[0], 0, 4.0))
    assert lines.time_left() == ""
    without = ComparisonLines(two, [0], 3)
    without.run_ended(ended(two[0], 0, 4.0))
    assert without.time_left() == "0:00:04 left"


def test_time_left_is_measured_from_finished_runs(contestants, console, clock):
    mas, finetune = contestants
    lines = ComparisonLines(contestants, (0, 1, 2), tasks=3)
    assert lines.time_left() == ""
    lines.run_ended(ended(mas, 0, 10.0, is_new=False))
    assert lines.time_left() == "0:00:50 left"  # of finetune nothing is known but what mas took
    lines.run_ended(ended(mas, 1, 20.0))
    lines.run_ended(ended(mas, 2, 30.0))
    lines.run_ended(ended(finetune, 0, 4.0))
    assert lines.time_left() == "0:00:08 left"
    lines.run_started(finetune, None)
    clock.now = 3.0
    assert lines.time_left() == "0:00:05 left"
    clock.now = 100.0  # longer than expected: that of the others is left
    assert lines.time_left() == "0:00:04 left"
    lines.run_ended(dataclasses.replace(ended(finetune, 1, 0.0), result=None, error="It failed."))
    assert console.file.getvalue().splitlines() == [
        "1/6  mas λ=1 seed 0  average accuracy 0.7500  as saved  (0:00:50 left)",
        "2/6  mas λ=1 seed 1  average accuracy 0.7500  20.0 s  (0:01:00 left)",
        "3/6  mas λ=1 seed 2  average accuracy 0.7500  30.0 s  (0:01:00 left)",
        "4/6  finetune seed 0  average accuracy 0.7500  4.0 s  (0:00:08 left)",
        "5/6  finetune seed 1  It failed.  (0:00:04 left)",
    ]


def test_the_bars_show_the_task_under_way(contestants, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "stderr_console", lambda: console)
    with ComparisonLines(contestants, (0,), tasks=3) as lines:
        [listener] = lines.run_started(contestants[0], None)
        listener.task_started(2, SimpleNamespace(name="bees"), 5)
        now = lines.bars.tasks[1]
        assert (now.completed, now.total, now.fields["status"]) == (1, 3, "task 2/3 bees")
        with lines.suspended():
            assert not lines.bars.live.is_started
        assert lines.bars.live.is_started


@pytest.mark.slow
def test_the_content_is_json(stream, contestants, tmp_path):
    from keras_mas.training.comparison_table import comparison_content

    entries, _ = run_all(stream, contestants, tmp_path / "runs", seeds=(0,))
    content = comparison_content(entries, "first", "keras-mas compare", tmp_path)
    assert json.loads(json.dumps(content)) == content
