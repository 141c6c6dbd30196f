"""What a search shows: lines, a picture, advice, TensorBoard's HParams."""

import argparse
import dataclasses
import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keras_mas.training import progress
from keras_mas.training.cli import build_parser
from keras_mas.training.commands import compare as compare_command
from keras_mas.training.commands import search as command
from keras_mas.training.commands import shared
from keras_mas.training.console import result_console
from keras_mas.training.options import given_options
from keras_mas.training.search import progress as search_progress
from keras_mas.training.search.dimensions import Range
from keras_mas.training.search.hparams import write_hparams
from keras_mas.training.search.picture import draw
from keras_mas.training.search.progress import TrialLines
from keras_mas.training.search.search import Found
from keras_mas.training.search.trial import FAILED, STOPPED, Trial
from keras_mas.training.settings import Settings


def trial(strength, accuracy=None, forgotten=0.0, state=None, **more):
    values, settings = {"strength": strength}, Settings(strength=strength)
    if state:
        return Trial(values, settings, state, reason="why", bound=0.7, **more)
    rows = [[accuracy + forgotten, 0.5], [accuracy, accuracy]]
    examples = {name: {"validation": 100} for name in "ab"}
    result = {"average_accuracy": accuracy, "forgetting": forgotten, "accuracy_matrix": rows}
    return Trial(values, settings, results=[result | {"tasks": list("ab"), "examples": examples}])


@pytest.fixture
def found(tmp_path):
    trials = [trial(s, 0.9, 0.1 / s) for s in (1.0, 10.0, 500.0)]
    trials += [trial(0.0, 0.6, 0.3), trial(0.1, state=STOPPED), trial(0.01, state=FAILED)]
    return Found(trials, {"strength": Range(0.001, 1000.0)}, None, tmp_path)


def test_a_picture(found, tmp_path):
    draw(found, found.recommendation(), tmp_path / "search.png")
    with Image.open(tmp_path / "search.png") as picture:
        assert picture.size == (960, 840)
    nothing = Found(found.trials, {}, None, tmp_path)
    draw(nothing, found.recommendation(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_picture_of_a_single_trial_shows_the_whole_range(tmp_path, monkeypatch):
    figures, savefig = [], Figure.savefig

    def noted(figure, *args, **options):
        figures.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    dimensions = {"strength": Range(1e37, 3e38)}
    for trials in (
        [trial(0.0, 0.9), trial(2e37, state=FAILED), trial(2e38, state=FAILED)],
        [trial(0.0, 0.9)],
        [trial(2e37, 0.9)],
    ):
        found = Found(trials, dimensions, None, tmp_path)
        draw(found, found.recommendation(), tmp_path / "search.png")
        least, largest = figures[-1].axes[0].get_xlim()
        assert 0.5e37 < least < 1e37 and 3e38 < largest < 4e38


def test_a_picture_joins_what_differs_in_the_strength_alone(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    with_rate = [(1.0, 0.1), (3.0, 0.1), (2.0, 0.5), (0.0, 0.1)]
    others = {"optimizer_state": "kept", "batch_norm": "per-task"}
    trials = [
        dataclasses.replace(trial(s, 0.9), values={"strength": s, "learning_rate": rate, **others})
        for s, rate in with_rate
    ]
    dimensions = {"strength": Range(0.001, 1000.0), "learning_rate": Range(0.1, 0.5)}
    found = Found(trials, dimensions, None, tmp_path)
    draw(found, found.recommendation(), tmp_path / "search.png")
    upper = drawn[0].axes[0]
    curves = [list(line.get_xdata()) for line in upper.lines if line.get_linestyle() == "-"]
    assert curves == [[1.0, 3.0], [2.0]]
    [text] = upper.texts
    assert text.get_text().startswith("λ=0 learning-rate=0.1 ")
    first, second = upper.get_title(loc="left").splitlines()  # it would be cut off at the right
    assert first.startswith("4 trials, recommended λ=1 ")


def arguments(*words) -> argparse.Namespace:
    return build_parser().parse_args(["search", "split-digits", *words])


def test_advice_names_the_next_command(found):
    args = arguments("--epochs", "3", "--directory", "here")
    advice = list(command._advice(args, found, found.recommendation()))
    assert advice[0].startswith("The highest average accuracy is 0.9000 ± 0.02")
    assert advice[0].endswith("Of 3 trials within it, λ=500 forgets least: 0.0002.")
    assert advice[1] == "Any λ from 1 to 500 will do."
    assert advice[2] == (
        "λ=500 lies at the upper edge of the range. To look further: keras-mas search split-digits "
        "--strength-max 100000.0 --method mas --epochs 3 --directory here"
    )
    again = build_parser().parse_args(advice[2].split("keras-mas ")[1].split())
    assert (again.strength_max, again.epochs, again.directory) == (1e5, 3, Path("here"))


def test_a_strength_beyond_which_none_was_tried_asks_for_more_trials(tmp_path):
    trials = [trial(0.1, 0.9), trial(0.01, 0.5)]
    found = Found(trials, {"strength": Range(0.001, 1000.0)}, None, tmp_path)
    *_, last = command._advice(arguments(), found, found.recommendation())
    assert last.startswith("λ=0.1 is the largest λ above 0 that was tried, and larger ones of the")
    assert last.endswith("keras-mas search split-digits --trials 40 --method mas")


def test_what_is_deterministic_stays_so(found):
    args = arguments("--deterministic")
    assert Settings(**given_options(Settings, args)).deterministic  # as `train` reads it
    recommendation = found.recommendation()
    assert "--deterministic" in command._content(args, found, recommendation)["command"]
    assert "--deterministic" in command._wider_command(args, "upper")
    joining = shared.search_command(vars(args) | {"join": "localhost:7007"})
    assert "--deterministic" in joining  # what a worker is started by
    assert "--deterministic" not in shared.search_command(vars(arguments()))


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (
            [trial(1.0, 0.9), trial(10.0, 0.905), trial(100.0, 0.9), trial(300.0, 0.9, 0.01)],
            "Of 4 trials within it, 3 forget least, 0.0000 each, and λ=10 has the highest accuracy",
        ),
        (
            [trial(10.0, 0.9), trial(1.0, 0.9)],
            "Of 2 trials within it, 2 forget least, 0.0000 each, and λ=1 has the middle λ of those",
        ),
    ],
)
def test_trials_that_forget_equally_little_are_counted(tmp_path, trials, said):
    found = Found(trials, {"strength": Range(0.001, 1000.0)}, None, tmp_path)
    first, *_ = command._advice(arguments(), found, found.recommendation())
    assert said in first


def test_the_lowest_cross_entropy_is_the_reason_where_it_is_known(tmp_path):
    trials = [trial(1.0, 0.9), trial(10.0, 0.905)]
    for each, loss in zip(trials, (0.25, 0.5), strict=True):
        each.results[0]["cross_entropy"] = [loss, loss]
    found = Found(trials, {"strength": Range(0.001, 1000.0)}, None, tmp_path)
    first, *_ = command._advice(arguments(), found, found.recommendation())
    assert "0.0000 each, and λ=1 has the lowest cross-entropy, 0.2500." in first


@pytest.mark.parametrize("losses", [None, [0.5, 0.25]])
def test_a_table_whose_lines_end_in_no_blanks(found, capsys, losses):
    found.trials[0].results[0] |= {} if losses is None else {"cross_entropy": losses}
    command._print_trials(found, result_console(), found.trials[1])
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert lines[1].split() == ["average", "accuracy", "forgetting", "cross-entropy"]
    assert lines[2].split() == ["λ=1", "0.9000", "0.1000", "–" if losses is None else "0.3750"]
    assert lines[3].split()[:2] == ["λ=10", "(recommended)"]
    assert lines[6].split() == ["λ=0.1", "stopped"]


def test_what_is_best_without_protection_is_said(tmp_path):
    trials = [trial(0.0, 0.9), trial(1.0, 0.5, 0.1)]
    found = Found(trials, {"strength": Range(0.001, 1000.0)}, None, tmp_path)
    advice = list(command._advice(arguments(), found, found.recommendation()))
    assert advice[0].endswith("No other trial is within it.")
    assert advice[-1] == "λ = 0 will do: nothing needs protection here."
    forgets = Found([trial(0.0, 0.9, 0.2), trials[1]], found.dimensions, None, tmp_path)
    *_, last = command._advice(arguments(), forgets, forgets.recommendation())
    assert last.startswith("λ = 0 forgets 0.2000, so that there is something to protect")
    alone = Found([trials[0], trial(1.0, state=STOPPED)], found.dimensions, None, tmp_path)
    *_, last = command._advice(arguments(), alone, alone.recommendation())
    assert last.startswith("No trial with another λ was completed")


def comparing(*words) -> argparse.Namespace:
    return build_parser().parse_args(["compare", "split-digits", "--search", *words])


def test_a_comparison_says_it_of_what_it_found_with_commands_of_its_own(found):
    args = comparing("--methods", "mas,ewc", "--seeds", "4")
    said = list(compare_command._remarks(args, found, found.recommendation()))
    assert said == [
        "Any λ from 1 to 500 will do.",
        "λ=500 lies at the upper edge of the range. To look further: keras-mas compare "
        "split-digits --methods mas,ewc --seeds 4 --search --strength-max 100000.0",
    ]


def test_a_comparison_says_that_no_strength_is_no_protection(tmp_path):
    trials = [trial(0.0, 0.9), trial(1.0, 0.5, 0.1)]
    found = Found(trials, {"strength": Range(0.001, 1000.0)}, None, tmp_path)
    assert list(compare_command._remarks(comparing(), found, found.recommendation())) == [
        "λ = 0 is best on the validation data, which is no protection.",
        "λ = 0 will do: nothing needs protection here.",
    ]


def test_hparams(found, tmp_path):
    for _ in range(2):  # the second time in the place of the first
        write_hparams(found, tmp_path / "tensorboard")
    folders = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert folders == ["strength-0.0", "strength-1.0", "strength-10.0", "strength-500.0"]
    events = EventAccumulator(str(tmp_path / "tensorboard/strength-10.0")).Reload()
    assert {"average_accuracy", "forgetting"} < set(events.Tags()["tensors"])


@pytest.fixture
def lines(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(progress, "stderr_console", lambda: Console(file=text, width=100))
    lines = TrialLines()
    lines.text = text
    return lines


def test_a_line_for_every_trial_with_the_time_left(lines, found, monkeypatch):
    monkeypatch.setattr(search_progress.time, "perf_counter", lambda: 100.0)
    first, *_ = found.trials
    stopped = trial(0.1, state=STOPPED, seconds=2.0)
    with lines:
        lines.search_started(10, 5)
        lines.trial_ended(trial(0.0, 0.6))
        assert lines.time_left().endswith("left")  # a trial that took no time takes none
        lines.trained.clear()
        lines.trial_ended(stopped)
        lines.trial_started("λ=1")
        assert lines.time_left() == "0:00:16 left"  # eight of two seconds
        lines.trial_ended(trial(1.0, 0.9))
        assert not lines.under_way
    first, second, _ = lines.text.getvalue().splitlines()
    assert first.startswith(" 1/10  λ=0         average accuracy 0.6000  forgetting 0.0000  0.0 s")
    assert second == " 2/10  λ=0.1       why  2.0 s  (0:00:16 left)"


def test_a_trial_that_was_read_says_nothing_about_the_time(lines):
    saved = trial(0.1, state=FAILED, is_new=False)
    with lines:
        lines.search_started(3, 5)
        lines.trial_ended(saved)
    assert lines.text.getvalue() == "1/3  λ=0.1       why  as saved\n"
