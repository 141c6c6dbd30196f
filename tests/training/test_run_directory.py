import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_mas.errors import UsageError
from keras_mas.training.run_directory import (
    DamagedError,
    InUseError,
    are,
    claimed,
    is_fraction,
    is_number,
    maps_to,
    read_json,
    read_result,
    write_json,
)

DESCRIPTION = {"stream": "insects", "seed": 0, "tasks": ["a", "b"], "data": "1f", "recipe": {}}


def content(directory):
    """Every file of a folder but the lock, with its bytes."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in files
        if not path.name.startswith(".lock")
    }


def claim(directory, description=DESCRIPTION, **options):
    with claimed(directory, description, **options):
        pass


def run_in(directory, description=DESCRIPTION):
    """Make the folder of a run with a task and a result."""
    claim(directory, description)
    (directory / "1").mkdir()
    (directory / "1/model.keras").write_text("weights")
    (directory / "result.json").write_text("{}")


def test_a_folder_is_claimed_once_and_continued(tmp_path):
    claim(tmp_path / "new/run")
    claim(tmp_path / "new/run")
    written = json.loads((tmp_path / "new/run/arguments.json").read_text())
    assert written.items() >= DESCRIPTION.items()


@pytest.mark.parametrize("what", ["method", "backbone"])
def test_another_version_of_an_own_module_is_another_run(tmp_path, what):
    run_in(tmp_path / "run", DESCRIPTION | {f"{what}_module": "2e"})
    told = f"another run: another version of the {what}'s module. Ch"
    with pytest.raises(UsageError, match=told):
        claim(tmp_path / "run", DESCRIPTION | {f"{what}_module": "2f"})


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"method": "finetune", "strength": 3.0}, {"method": "finetune", "strength": None}),
        ({}, {"method_module": "2f"}),  # nothing is known of it
    ],
)
def test_what_an_earlier_version_wrote_of_the_same_run_is_accepted(tmp_path, before, now):
    run_in(tmp_path / "run", DESCRIPTION | before)
    written = content(tmp_path / "run")
    claim(tmp_path / "run", DESCRIPTION | now)
    assert content(tmp_path / "run") == written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 3}, "another run: --seed 0 instead of 3. Choose another folder, or remove"),
        ({"recipe": {"epochs": 5}}, "--epochs 20 instead of 5."),
        ({"tasks": ["a"], "data": "2e"}, "another run: tasks a, b instead of a. Choose"),
        ({"data": "2e"}, "another run: other data in its tasks. Images in folders are known by"),
        ({"data": "2e", "rescale": [2.0, 0.0]}, "another run: other data in its tasks. Images"),
        ({"data": "2e", "data_of_tasks": {"a": "3", "b": "4"}}, "data in its tasks. Images"),
        ({"stream": "birds"}, "stream insects instead of birds"),
    ],
)
def test_the_difference_to_another_run_is_named(tmp_path, change, words):
    run_in(tmp_path / "run")
    before = content(tmp_path / "run")
    with pytest.raises(UsageError) as raised:
        claim(tmp_path / "run", DESCRIPTION | change)
    assert words in str(raised.value)
    assert "`--overwrite` of `keras-mas train` and `keras-mas search` does; " in str(raised.value)
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"a": "1", "b": "3"}, "another run: other data in its task b. Images in folders are"),
        ({"a": "0", "b": "3"}, "another run: other data in its tasks a, b. Images in folders"),
    ],
)
def test_tasks_whose_data_have_changed_are_named(tmp_path, now, words):
    run_in(tmp_path, DESCRIPTION | {"data_of_tasks": {"a": "1", "b": "2"}})
    with pytest.raises(UsageError) as raised:
        claim(tmp_path, DESCRIPTION | {"data": "2e", "data_of_tasks": now})
    assert words in str(raised.value)
    assert "restore them, as `touch -r`, `cp -p` and `rsync -t` do. Choose" in str(raised.value)


def test_data_of_tasks_that_were_not_recorded_are_no_difference(tmp_path):
    run_in(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    claim(tmp_path, DESCRIPTION | {"data_of_tasks": {"a": "1", "b": "2"}})
    assert before.items() <= {path: path.read_bytes() for path in before}.items()


def test_a_folder_in_which_nothing_was_learned_is_taken_for_another_run(tmp_path):
    claim(tmp_path)
    (tmp_path / "start.keras").write_text("network")  # of the run that was to begin
    claim(tmp_path, DESCRIPTION | {"seed": 3})
    assert json.loads((tmp_path / "arguments.json").read_text())["seed"] == 3
    assert not (tmp_path / "start.keras").exists()


@pytest.mark.parametrize("name", ["under-way.npz", "1/model.keras", "tries.json"])
def test_what_has_been_learned_is_held_against_another_run(tmp_path, name):
    claim(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("weights")
    with pytest.raises(UsageError, match="another run: --seed 0 instead of 3"):
        claim(tmp_path, DESCRIPTION | {"seed": 3})


def test_a_file_of_another_program_stays(tmp_path):
    (tmp_path / "arguments.json").write_text('{"mine": 1}')
    with pytest.raises(UsageError, match="another run"):
        claim(tmp_path)
    assert (tmp_path / "arguments.json").read_text() == '{"mine": 1}'


def test_a_folder_that_is_older_than_an_option_holds_its_default(tmp_path):
    run_in(tmp_path / "run", DESCRIPTION | {"recipe": {"epochs": 5}})
    now = {"epochs": 5, "freeze": "none", "batch_norm": "frozen", "weights": None}
    claim(tmp_path / "run", DESCRIPTION | {"recipe": now, "evaluate_every": None})
    with pytest.raises(UsageError, match="another run: --freeze none instead of 2. Choose"):
        claim(tmp_path / "run", DESCRIPTION | {"recipe": now | {"freeze": "2"}})


def test_the_second_of_two_processes_is_told_who_holds_the_folder(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from keras_mas.training.run_directory import claimed\n"
        f"with claimed(pathlib.Path(sys.argv[1]), {DESCRIPTION!r}):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            before = content(tmp_path / "run")
            for options in ({}, {"overwrite": True}):
                with pytest.raises(InUseError) as raised:
                    claim(tmp_path / "run", **options)
                message = str(raised.value)
                assert f"in use by process {holder.pid} on {os.uname().nodename} since 2" in message
            assert content(tmp_path / "run") == before
        finally:
            holder.kill()
    claim(tmp_path / "run")  # a killed process holds nothing


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "run", DESCRIPTION):
        raise KeyboardInterrupt
    claim(tmp_path / "run")
    with claimed(tmp_path / "run", DESCRIPTION), pytest.raises(InUseError):
        claim(tmp_path / "run")


def test_what_a_killed_process_left_is_removed(tmp_path):
    # Killed while it wrote the description, and later while it saved a task.
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.tmp-arguments.json-0123abcd").write_text("{")
    claim(tmp_path / "run")
    (tmp_path / "run/.tmp-1-89abcdef").mkdir()
    (tmp_path / "run/.tmp-1-89abcdef/model.keras").write_text("half")
    claim(tmp_path / "run")
    assert list(content(tmp_path / "run")) == ["arguments.json"]


@pytest.mark.parametrize("name", ["notes.txt", ".tmp-notes", "1/photo.jpg", "7up.txt"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_anything_else_is_left_as_it_is(tmp_path, name, overwrite):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match=f"holds .*{name}"):
        claim(tmp_path / "mine", overwrite=overwrite)
    assert path.exists()
    assert not (tmp_path / "mine/.lock").exists()


def test_a_folder_of_empty_folders_is_left_as_it_is(tmp_path):
    (tmp_path / "mine/photos").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds something else, such as 'photos/'"):
        claim(tmp_path / "mine")


def test_overwriting_removes_a_run_and_nothing_else(tmp_path):
    run_in(tmp_path / "run")
    claim(tmp_path / "run", DESCRIPTION | {"seed": 5}, overwrite=True)
    assert list(content(tmp_path / "run")) == ["arguments.json"]
    assert read_json(tmp_path / "run/arguments.json")["seed"] == 5

    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not overwritten, since it holds 'notes.txt'"):
        claim(tmp_path / "run", overwrite=True)
    # Notes in the folder of a run do not keep it from being continued.
    claim(tmp_path / "run", DESCRIPTION | {"seed": 5})
    claim(tmp_path / "empty", overwrite=True)


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"\xff", None, "gone"])
def test_a_run_without_a_readable_description_can_be_overwritten(tmp_path, broken):
    run_in(tmp_path / "run")
    path = tmp_path / "run/arguments.json"
    path.unlink()
    if broken is None:
        path.mkdir()
    elif broken != "gone":
        path.write_bytes(broken)
    with pytest.raises(
        (UsageError, DamagedError), match="arguments.json.*([Rr]emove this one|Remove ')"
    ):
        claim(tmp_path / "run")
    assert (tmp_path / "run/1/model.keras").exists()
    claim(tmp_path / "run", overwrite=True)
    claim(tmp_path / "run")


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(UsageError, match="file' is a file"):
            claim(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file or directory"),
        ("", "Expecting value"),
        ("[1]", "it holds no JSON object"),
        ("{}", "it has no 'rows'"),
        ('{"rows": [1, "2"]}', "its 'rows' is not as it was written"),
    ],
)
def test_damage_is_named_with_file_and_cure(tmp_path, text, words):
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(DamagedError) as raised:
        read_json(tmp_path / "x.json", {"rows": are(is_number)}, cure="Do this.")
    assert str(raised.value).startswith(f"'{tmp_path / 'x.json'}' is damaged: {words}")
    assert str(raised.value).endswith(". Do this.")


def test_a_file_is_read_as_it_was_written(tmp_path):
    content = {"b": [0.1, None], "a": {"1": "λ"}, "tuple": [1, 2]}
    written = write_json(tmp_path / "x.json", content | {"tuple": (1, 2)})
    assert read_json(tmp_path / "x.json").items() >= content.items()
    # What has been read may be written again.
    assert write_json(tmp_path / "y.json", read_json(tmp_path / "x.json")) == {
        **content,
        "file": written["file"],
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.25", "0.75", "is damaged: its content is not that of its checksum. Do this"),
        ('"format": 1', '"format": 2', "has format 2, and this version of keras_mas reads .* 1"),
        ('"checksum"', '"sum"', "is damaged: its 'file' is not as it was written"),
    ],
)
def test_a_changed_file_and_a_later_format_are_refused(tmp_path, old, new, words):
    path = tmp_path / "x.json"
    write_json(path, {"accuracy": 0.25})
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DamagedError, match=words):
        read_json(path, cure="Do this.")


def test_a_file_of_an_earlier_version_has_no_checksum(tmp_path):
    (tmp_path / "x.json").write_text('{"accuracy": 0.25}')
    assert read_json(tmp_path / "x.json") == {"accuracy": 0.25}


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(path, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DamagedError, match="x.json' cannot be read: permission denied. Make it"):
        read_json(tmp_path / "x.json")


def test_checks_of_values():
    assert are(is_number)([1, 2.5])
    assert not are(is_number)({"a": 1})
    assert not is_number(True)
    assert not any(map(is_number, [float("nan"), float("inf"), -float("inf"), 10**400]))
    assert are(is_fraction)([0, 0.5, 1.0])
    assert not any(map(is_fraction, [-0.1, 1.1, float("nan"), True, "1"]))
    assert maps_to(is_number)({"a": 1})
    assert not maps_to(is_number)({"a": "1"})


FINISHED = {
    "average_accuracy": 0.5,
    "forgetting": 0.75,
    "backward_transfer": -0.75,
    "forward_transfer": 0.5,
    "stream": "s",
    "scenario": "task",
    "tasks": ["a", "b"],
    "method": "mas",
    "strength": 1,
    "penalty": "in_loss",
    "seed": 0,
    "accuracy_matrix": [[0.75, 0], [0, 1]],
    "seconds": {},
    "recipe": {},
}


@pytest.mark.parametrize("key", ["stream", "tasks"])
@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", ".hidden", "", 3])
def test_a_name_that_leads_elsewhere_is_damage(tmp_path, key, name):
    value = name if key == "stream" else [name] * len(FINISHED["tasks"])
    write_json(tmp_path / "result.json", FINISHED | {key: value})
    with pytest.raises(DamagedError, match=f"its '{key}' is not as it was written"):
        read_result(tmp_path)


def test_a_matrix_that_is_not_square_is_damage(tmp_path):
    write_json(tmp_path / "result.json", FINISHED)
    assert read_result(tmp_path)["tasks"] == ["a", "b"]
    write_json(tmp_path / "result.json", FINISHED | {"accuracy_matrix": [[1, 0], [1]]})
    with pytest.raises(DamagedError, match="accuracy matrix has not a row and a column for each"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1.5),
        ("seed", -1),
        ("seed", 2**32),
        ("average_accuracy", 7),
        ("forgetting", -1.5),
        ("worst_case_accuracy", 1.5),
        ("strength", "[red]"),
        ("strength", -1),
        ("strength", "auto:much"),
        ("penalty", "both"),
        ("scenario", "none"),
        ("scenario", ["task"]),
        ("tasks", []),
        ("recipe", {"weights": ["a"]}),
    ],
)
def test_what_no_run_could_have_recorded_is_damage(tmp_path, key, value):
    write_json(tmp_path / "result.json", FINISHED | {key: value})
    with pytest.raises(DamagedError, match=f"its '{key}' is not as it was written"):
        read_result(tmp_path)


@pytest.mark.parametrize("strength", [1, None])
def test_fine_tuning_has_no_strength_whatever_was_recorded(tmp_path, strength):
    recorded = {"method": "finetune", "strength": strength}
    write_json(tmp_path / "result.json", FINISHED | recorded)
    result = read_result(tmp_path)
    assert (result["strength"], result["penalty"]) == (None, None)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    intact = write_json(tmp_path / "x.json", {"a": 1})
    with contextlib.suppress(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert read_json(tmp_path / "x.json") == intact
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluated_tasks", 0),
        ("input_shape", [2.5]),
        ("classes", {"ants": "red"}),
        ("sources", [{"tasks": "digits"}]),
        ("evaluations", [{"task": 1}]),
        ("evaluations", [{"task": 2, "step": 1, "steps": 0, "accuracies": [1, 1]}]),
        ("seconds", {"training": "long"}),
        ("memory", "much"),
        ("memory", {}),
        ("examples", {"ants": {}}),
    ],
)
def test_what_later_versions_record_is_checked_where_it_is(tmp_path, key, value):
    write_json(tmp_path / "result.json", FINISHED | {key: value})
    with pytest.raises(DamagedError, match=f"its '{key}' is not as it was written"):
        read_result(tmp_path)


EVALUATIONS = [{"task": 2, "step": 1, "steps": 2, "accuracies": [0.5, 0]}]
OF_EVALUATIONS = {"min_accuracy": 0, "worst_case_accuracy": 0.5}


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"average_accuracy": 0.6}, "its 'average_accuracy' is not that of its accuracy matrix"),
        ({"average_accuracy": None}, "its 'average_accuracy' is not that of its accuracy matrix"),
        ({"forgetting": 0.5}, "its 'forgetting' is not that of its accuracy matrix"),
        ({"backward_transfer": 0}, "its 'backward_transfer' is not that of its accuracy matrix"),
        ({"min_accuracy": None}, "it has no 'worst_case_accuracy' beside its 'evaluations'"),
        ({}, "it has no 'min_accuracy' beside its 'evaluations'"),
        (
            OF_EVALUATIONS | {"evaluations": [EVALUATIONS[0] | {"task": 3}]},
            "its 'evaluations' are not of its tasks",
        ),
        (
            OF_EVALUATIONS | {"evaluations": [EVALUATIONS[0] | {"accuracies": []}]},
            "its 'evaluations' are not of its tasks",
        ),
    ],
)
def test_what_contradicts_the_rest_of_a_result_is_damage(tmp_path, changed, what):
    sound = FINISHED | OF_EVALUATIONS | {"evaluations": EVALUATIONS}
    write_json(tmp_path / "result.json", sound)
    assert read_result(tmp_path)["evaluations"] == EVALUATIONS
    write_json(tmp_path / "result.json", FINISHED | {"evaluations": EVALUATIONS} | changed)
    with pytest.raises(DamagedError, match=f"result.json' is damaged: {what}"):
        read_result(tmp_path)
