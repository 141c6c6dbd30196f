import csv
import io

import numpy as np
import pytest
from rich.console import Console

from keras_mas.errors import UsageError
from keras_mas.training.accuracy_picture import draw
from keras_mas.training.report import print_comparison, print_result, report_rows, write_csv
from keras_mas.training.summary import title

RECIPE = {"backbone": "mlp-8", "epochs": 20, "first_epochs": None}
MEASURES = {
    "average_accuracy": 0.875,
    "forgetting": 0.125,
    "backward_transfer": -0.125,
    "forward_transfer": 0.25,
}


def result(tasks=2, recipe=None, **fields):
    """A result of `tasks` tasks in which R[i, j] is (i + 1) / 1000 + (j + 1) / 100,000."""
    numbers = np.arange(1, tasks + 1)
    return {
        "stream": "letters",
        "scenario": "task",
        "tasks": [f"letters-{n}" for n in numbers],
        "method": "mas",
        "strength": 1.0,
        "penalty": "in_loss",
        "seed": 0,
        "evaluated_on": "test",
        "recipe": RECIPE | (recipe or {}),
        "accuracy_matrix": (numbers[:, None] / 1000 + 0 * numbers).tolist(),
        "seconds": {"training": 1.5, "saving": 0.25},
        **MEASURES,
        **fields,
        **({"strength": None, "penalty": None} if fields.get("method") == "finetune" else {}),
    }


def printed(show, what, width=80, **options):
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, **options)
    show(what, console)
    return console.file.getvalue()


# The accuracy matrix.


def test_matrix_of_two_tasks():
    R = [[0.9, 0.5], [0.75, 1.0]]
    assert printed(print_result, result(accuracy_matrix=R)).splitlines() == [
        "mas λ=1: accuracy on each task (column) after each task was learned (row)",
        "after            1       2",
        "1 letters-1  0.900  (0.500)",
        "2 letters-2  0.750   1.000",
        "(in parentheses: the task was not learned yet)",
        "average accuracy 0.8750   forgetting 0.1250   backward transfer -0.1250",
        "",
    ]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("tasks", [1, 3, 13, 50])
def test_every_number_is_whole_at_every_width(tasks, width, terminal):
    R = np.random.default_rng(0).random([tasks, tasks]).round(3)
    text = printed(
        print_result,
        result(tasks, accuracy_matrix=R.tolist()),
        width,
        force_terminal=terminal,
        color_system=None,
    )
    table = text.split("row)\n", 1)[1].split("average accuracy")[0].split("(in paren")[0]
    found, rows = {}, {}
    for line in filter(None, table.splitlines()):
        assert len(line) <= width
        if line.startswith("after"):
            columns = [int(word) for word in line.split()[1:]]
            continue
        number, _, *cells = line.split()
        for column, cell in zip(columns, cells, strict=True):
            found[int(number), column] = cell
            rows[int(number)] = True
    assert len(found) == tasks**2
    for (i, j), cell in found.items():
        expected = f"{R[i - 1, j - 1]:.3f}"
        assert cell == (expected if j <= i else f"({expected})")


def test_only_names_are_shortened():
    names = ["a-name-much-longer-than-any-table-can-take", "b"]
    text = printed(print_result, result(tasks=2) | {"tasks": names})
    assert "1 a-name-much-longer-…  0.001  (0.001)" in text


def test_zero_has_no_sign():
    zeros = {"backward_transfer": -0.0, "forgetting": -0.00001}
    text = printed(print_result, result(**zeros, accuracy_matrix=[[-0.0, 0.0], [0.0, 0.0]]))
    assert "forgetting 0.0000   backward transfer +0.0000" in text
    assert "-0.0" not in text
    text = printed(print_comparison, [result(**zeros), result(**zeros, seed=1)])
    assert "-0.0" not in text
    (row,) = report_rows([result(**zeros)])
    assert str(row["backward_transfer"]) == "0.0"


# Comparisons.


def test_runs_that_differ_in_their_seed_are_averaged():
    lines = printed(
        print_comparison,
        [
            result(seed=1, average_accuracy=0.9),
            result(seed=0, average_accuracy=0.8),
            result(method="finetune"),
        ],
    ).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["finetune", "0", "0.8750"],
        ["mas", "λ=1", "0"],
        ["mas", "λ=1", "1"],
        ["mas", "λ=1", "2"],
    ]
    # Mean 0.85; standard deviation of a sample of two: 0.1 / √2.
    assert "2 runs   0.8500 ± 0.0707  0.1250 ± 0.0000" in lines[-1]


@pytest.mark.parametrize(
    ("other", "label"),
    [
        (result(seed=1, recipe={"epochs": 5}), "mas λ=1  epochs="),
        (result(seed=1, scenario="domain"), "mas λ=1  scenario="),
        (result(seed=1, evaluated_on="validation"), "mas λ=1  evaluated_on="),
        (result(seed=1, stream="shop"), "mas λ=1  stream="),
        (result(seed=1, data="0123"), "mas λ=1  data="),
        (result(seed=1, strength=2.0), "mas λ="),
        (result(seed=1, strength=1.0000001), "mas λ="),
        (result(seed=1, penalty="decoupled"), "mas λ=1"),
    ],
)
def test_runs_that_differ_otherwise_are_not_averaged(other, label):
    lines = printed(print_comparison, [result(), other], 100).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(label) for line in lines[1:])


def test_settings_that_all_runs_share_are_not_named():
    runs = [result(recipe={"epochs": 5}), result(), result(method="finetune")]
    text = printed(print_comparison, runs, 100)
    assert "mas λ=1  epochs=5" in text and "finetune  epochs=20" in text
    assert "backbone" not in text


def test_a_result_older_than_an_option_has_the_option_s_default():
    runs = [result(recipe={"freeze": "none"}), result(seed=1), result(recipe={"freeze": "3"})]
    text = printed(print_comparison, runs, 100)
    assert "freeze=none" in text and "2 runs" in text and "freeze=3" in text and "None" not in text


def test_strength_is_not_named_where_there_is_none():
    runs = [result(method="finetune", seed=s) for s in range(2)]
    assert title(runs[0]) == "finetune"
    assert "2 runs" in printed(print_comparison, runs)


@pytest.mark.parametrize("width", [20, 80])
def test_comparison_cuts_no_number(width):
    runs = [result(seed=s, recipe={"backbone": "mlp" + "-256" * k}) for k in (1, 9) for s in (0, 1)]
    text = printed(print_comparison, runs, width)
    assert text.count("0.8750 ± 0.0000") == 2
    assert text.count("-0.1250 ± 0.0000") == 2
    assert "…" not in text


def test_a_run_that_is_given_twice_is_refused(tmp_path):
    runs, sentence = [result(), result()], "run once.*Received: mas λ=1 with seed 0 twice"
    with pytest.raises(UsageError, match=sentence):
        printed(print_comparison, runs)
    with pytest.raises(UsageError, match=sentence):
        draw(runs, tmp_path / "report.png")
    assert not (tmp_path / "report.png").exists()


# Rows.


def test_rows_are_flat_and_complete():
    assert report_rows([result()]) == [
        {
            "stream": "letters",
            "scenario": "task",
            "method": "mas",
            "strength": 1.0,
            "penalty": "in_loss",
            "seed": 0,
            "evaluated_on": "test",
            **MEASURES,
            "seconds": 1.75,
            **RECIPE,
        }
    ]


def test_csv_can_be_read_back():
    file = io.StringIO()
    write_csv(report_rows([result(), result(method="finetune", recipe={"extra": 1})]), file)
    first, second = csv.DictReader(io.StringIO(file.getvalue()))
    assert first["average_accuracy"] == "0.875"
    assert (first["extra"], second["extra"]) == ("", "1")
    assert (second["method"], second["strength"], second["penalty"]) == ("finetune", "", "")


# Files.


@pytest.mark.parametrize("tasks", [1, 2, 16])
def test_picture(tmp_path, tasks):
    path = tmp_path / "new" / "report.png"
    draw([result(tasks), result(tasks, method="finetune")], path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [file.name for file in path.parent.iterdir()] == ["report.png"]


def test_picture_in_another_format_names_what_differs(tmp_path):
    draw([result(recipe={"epochs": 5}), result(seed=3)], tmp_path / "report.svg")
    text = (tmp_path / "report.svg").read_text()  # as comments beside the outlines of the letters
    assert "<!-- mas λ=1  epochs=5  seed=0: average 0.875, forgetting 0.125 -->" in text
    assert "<!-- mas λ=1  epochs=20  seed=3: average 0.875, forgetting 0.125 -->" in text
    with pytest.raises(UsageError, match="ends in one of .*png.*Received: '.*report.txt'"):
        draw([result()], tmp_path / "report.txt")
    assert not (tmp_path / "report.txt").exists()
