import io
from pathlib import Path

import pytest
from pytest import approx
from rich.console import Console

from keras_mas.errors import UsageError
from keras_mas.training.compare import Entry
from keras_mas.training.comparison_table import (
    comparison_content,
    comparison_rows,
    print_entries,
    reference_group,
)
from keras_mas.training.report import write_csv
from keras_mas.training.settings import Settings
from keras_mas.training.summary import best, groups, new_task_accuracy, title


def test_a_title_says_that_the_strength_is_found():
    asked = {"method": "mas", "strength": "auto:100", "penalty": "decoupled"}
    assert title(asked) == "mas λ=auto:100 decoupled"


def entry(method, seed, accuracy, forgetting=0.0, strength=1.0, **fields):
    settings = Settings(seed=seed, strength=strength)
    result = {
        "stream": "letters",
        "scenario": "task",
        "tasks": ["a", "b"],
        "method": method,
        "strength": None if method == "finetune" else strength,
        "penalty": "in_loss",
        "seed": seed,
        "recipe": {"epochs": 2},
        "accuracy_matrix": [[1.0, 0.0], [accuracy, 0.5]],
        "average_accuracy": accuracy,
        "forgetting": forgetting,
        "backward_transfer": -forgetting,
        "forward_transfer": 0.0,
        "seconds": {"training": 2.0, "saving": 0.5 * (seed + 1)},
        **fields,
    }
    return Entry(settings, Path(f"runs/{method}-{seed}"), result)


def found(*entries):
    return groups([entry.result for entry in entries])


def printed(entries, against="first", width=80):
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    print_entries(entries, against, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


FOLDER = Path("runs/failed")


# mas is 0.2 better with seed 0 and 0.4 with seed 1, although seed 1 is worse for both.
MAS = [entry("mas", 0, 0.9, 0.1), entry("mas", 1, 0.7, 0.3)]
FINE = [entry("finetune", 1, 0.3, 0.6), entry("finetune", 0, 0.7, 0.2)]


def test_mean_and_spread_over_seeds():
    spread = found(*MAS)[0].spread("average_accuracy")
    # The sample's: √(0.1² + 0.1²) / √(2 − 1).
    assert (spread.mean, spread.deviation, spread.runs) == (approx(0.8), approx(0.02**0.5), 2)
    assert spread.standard_error == approx(0.1)
    assert found(*MAS)[0].spread("seconds").mean == approx(2.75)
    one = found(MAS[0])[0].spread("forgetting")
    assert (one.mean, one.deviation, one.standard_error) == (0.1, None, None)


def test_differences_are_between_runs_with_the_same_seed():
    mas, fine = found(*MAS, *FINE)
    difference = mas.difference(fine, "average_accuracy")
    # 0.2 and 0.4. Each method alone spreads more than their difference does; seeds paired in the
    # order given, not by number, would give 0.6 and 0.
    assert difference.mean == approx(0.3)
    assert difference.standard_error == approx(0.1)
    assert fine.difference(mas, "forgetting").mean == approx((0.1 + 0.3) / 2)


def test_a_difference_takes_the_seeds_that_both_have():
    mas, fine = found(*MAS, entry("finetune", 1, 0.3), entry("finetune", 7, 0.9))
    difference = mas.difference(fine, "average_accuracy")
    assert (difference.mean, difference.runs, difference.deviation) == (approx(0.4), 1, None)
    mas, fine = found(*MAS, entry("finetune", 7, 0.9))
    assert mas.difference(fine, "average_accuracy") is None


def test_runs_with_other_data_are_neither_averaged_nor_paired():
    runs = [entry("mas", 0, 0.9, data="a" * 32), entry("mas", 1, 0.7, data="b" * 32)]
    fine = [entry("finetune", 0, 0.5, data="a" * 32), entry("finetune", 1, 0.5, data="a" * 32)]
    one, other, reference = found(*runs, *fine)
    assert (one.label, other.label) == ("mas λ=1  data=aaaaaaaa", "mas λ=1  data=bbbbbbbb")
    assert one.difference(reference, "average_accuracy").runs == 1
    older = entry("mas", 0, 0.9)
    assert [group.label for group in found(runs[1], older)] == [
        "mas λ=1  data=bbbbbbbb",
        "mas λ=1  data=not recorded",
    ]
    assert other.difference(reference, "average_accuracy") is None


def test_a_run_that_is_measured_under_way_is_another_one():
    one, other = found(entry("mas", 0, 0.9), entry("mas", 0, 0.9, evaluate_every=300))
    assert one.label == "mas λ=1  evaluate_every=none"
    assert other.label == "mas λ=1  evaluate_every=300"
    assert (len(one.results), len(other.results)) == (1, 1)


def test_a_run_is_given_once():
    sentence = "Expected each run once.*Received: mas λ=1 with seed 0 twice. Name one of them"
    with pytest.raises(UsageError, match=sentence):
        found(MAS[0], MAS[1], MAS[0])


def test_settings_of_one_label_are_numbered():
    recipes = [{"weights": f"{folder}/begin.h5"} for folder in ("a", "b", "a")]
    runs = [entry("mas", seed, 0.5, recipe=recipe) for seed, recipe in enumerate(recipes)]
    one, other = found(*runs)
    assert one.label == "mas λ=1  weights=begin.h5"
    assert other.label == "mas λ=1  weights=begin.h5 (2)"
    assert [result["seed"] for result in one.results] == [0, 2]


def test_plasticity_is_the_accuracy_of_tasks_when_they_were_learned():
    assert new_task_accuracy(MAS[0].result) == (1.0 + 0.5) / 2
    assert found(*MAS)[0].spread("new_task_accuracy").mean == 0.75


def test_the_reference_is_the_first_the_best_or_a_method():
    candidates = found(*FINE, *MAS)
    assert best(candidates).label == "mas λ=1"
    labels = [reference_group(candidates, against).label for against in ("first", "best", "mas")]
    assert labels == ["finetune", "mas λ=1", "mas λ=1"]
    assert reference_group(candidates, "ewc").label == "finetune"  # all runs of ewc failed


def test_the_table():
    failed = Entry(
        Settings(method="mas", seed=2, strength=1.0),
        FOLDER,
        None,
        error="Expected a finite loss. Received: nan.",
    )
    assert printed([*MAS, failed, *FINE]) == [
        "mean ± standard deviation over the seeds",
        "method    runs  average accuracy       forgetting        new tasks",
        "mas λ=1      2   0.8000 ± 0.1414  0.2000 ± 0.1414  0.7500 ± 0.0000",
        "finetune     2   0.5000 ± 0.2828  0.4000 ± 0.2828  0.7500 ± 0.0000",
        "",
        "method    seconds a run",
        "mas λ=1             2.8",
        "finetune            2.8",
        "Runs of one comparison share a process: a method's first run includes tracing.",
        "",
        "difference from mas λ=1 with the same seed, ± standard error",
        "method    pairs  average accuracy        forgetting",
        "mas λ=1",
        "finetune      2  -0.3000 ± 0.1000  +0.2000 ± 0.1000",
        "mas λ=1 seed 2 failed: Expected a finite loss. Received: nan.",
    ]


def test_one_method_has_no_difference_and_one_seed_no_spread():
    lines = printed([MAS[0]])
    assert lines[2] == "mas λ=1     1            0.9000      0.1000     0.7500"
    assert not any("difference" in line for line in lines)
    assert any("no pairs" in line for line in printed([MAS[0], FINE[0]]))


def test_what_was_measured_under_way_is_shown_if_every_run_has_it(tmp_path):
    measured = {"min_accuracy": 0.25, "worst_case_accuracy": 0.5, "evaluate_every": 5}
    runs = [entry(method, 0, 0.9, **measured) for method in ("mas", "finetune")]
    lines = printed(runs)
    assert "method    min-ACC  WC-ACC  seconds a run" in lines
    assert "mas λ=1    0.2500  0.5000            2.5" in lines
    content = comparison_content(runs, "first", "", tmp_path)
    assert content["methods"][0]["min_accuracy"]["mean"] == 0.25
    assert content["methods"][0]["worst_case_accuracy"]["mean"] == 0.5
    assert content["runs"][0].items() >= measured.items()
    runs = [runs[0], entry("finetune", 0, 0.9)]
    assert not any("min-ACC" in line for line in printed(runs))
    methods = comparison_content(runs, "first", "", tmp_path)["methods"]
    assert ["min_accuracy" in method for method in methods] == [True, False]


@pytest.mark.parametrize("width", [30, 80])
def test_a_long_name_is_folded_and_no_number_cut(width):
    entries = [entry("a.module.of.mine:AMethodWithALongName", s, 0.5, strength=1e5) for s in (0, 1)]
    lines = printed(entries, width=width)
    assert sum("0.5000 ± 0.0000" in line for line in lines) == 1
    assert "…" not in "".join(lines)
    if width == 80:
        assert max(map(len, lines)) <= 80


def test_rows_hold_every_run_and_csv_what_failed():
    failed = Entry(Settings(method="mas", seed=2, strength=3.0), FOLDER, None, error="It diverged.")
    rows = comparison_rows([MAS[0], failed, FINE[1]])
    assert [row["seed"] for row in rows] == [0, 2, 0]
    assert rows[0]["folder"] == "runs/mas-0" and rows[0]["error"] is None
    expected = {"method": "mas", "strength": 3.0, "penalty": "in_loss", "seed": 2}
    assert rows[1] == expected | {"folder": "runs/failed", "error": "It diverged."}
    file = io.StringIO()
    write_csv(rows, file)
    assert "mas,3.0,in_loss,2," in file.getvalue() and "It diverged." in file.getvalue()


def test_the_content_for_json():
    content = comparison_content([*MAS, *FINE], "best", "keras-mas compare letters", "out")
    mas, fine = content["methods"]
    assert content["against"] == "mas λ=1" and content["command"] == "keras-mas compare letters"
    assert mas["differences"] == {} and mas["seeds"] == [0, 1]
    assert fine["differences"]["average_accuracy"]["standard_error"] == approx(0.1)
    assert fine["average_accuracy"] == {"mean": 0.5, "deviation": approx(0.08**0.5), "runs": 2}


def test_what_is_said_of_each_method_comes_first(tmp_path):
    console = Console(file=io.StringIO(), width=20)
    remarks = {"mas": ["λ = 0 will do: nothing needs protection here.", "Go on."]}
    print_entries([MAS[0]], "first", console, remarks)
    first, second, third, *_ = console.file.getvalue().splitlines()
    assert first == "mas: λ = 0 will do: nothing needs protection here."
    assert (second, third[:6]) == ("mas: Go on.", "mean ±")
    content = comparison_content([MAS[0]], "first", "", tmp_path, remarks)
    assert content["remarks"] == remarks
