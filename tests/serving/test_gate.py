import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.serving.gate import (
    Bounds,
    Compared,
    HeldOut,
    answered_right,
    comparison_sentence,
    drop_interval,
    judge,
    losses,
    mcnemar_p_value,
    wilson_interval,
)
from keras_mas.serving.runtime import LoadedVersion


def bools(*counts):
    """Return 1, 0, 1, … in runs of these lengths."""
    return np.repeat([k % 2 == 0 for k in range(len(counts))], counts)


# Of ten examples the earlier version gets eight right. The new one loses three of them and gains
# one: six are right, and 0.2 of the accuracy is lost, not 0.3.
BEFORE = bools(8, 2)
NOW = bools(5, 3, 1, 1)


def compared(**right):
    return Compared(2, "stable", list(right), right)


def test_the_loss_is_that_of_the_same_examples():
    [row] = judge(3, {"pets": NOW}, Bounds(), compared(pets=BEFORE))["tasks"]
    assert (row["before"], row["accuracy"], row["examples"]) == (0.8, 0.6, 10)
    assert (row["lost"], row["gained"]) == (3, 1)
    assert row["drop"] == pytest.approx(0.2)
    # 3 or 4 of four coins: (4 + 1) / 16.
    assert row["p_value"] == pytest.approx(5 / 16)
    assert row["drop_interval"][0] < 0 < 0.2 < row["drop_interval"][1]


@pytest.mark.parametrize(("allowed", "blessed"), [(None, None), (0.2, True), (0.19, False)])
def test_a_loss_beyond_the_bound_is_refused(allowed, blessed):
    right = {"fruit": BEFORE, "pets": NOW}
    blessing = judge(3, right, Bounds(allowed), compared(fruit=BEFORE, pets=BEFORE))
    assert blessing["blessed"] is blessed
    assert blessing["compared_with"] == {"version": 2, "label": "stable"}
    if blessed is False:
        [sentence] = blessing["refusals"]
        words = "task 'pets' lost 0.2000 of its accuracy, from 0.8000 in version 2 (stable) to 0.6"
        assert words in sentence and sentence.endswith("more than the 0.19 that is allowed")


def test_a_task_without_examples_is_neither_blessed_nor_refused():
    none = np.zeros(0, bool)
    right = {"fruit": none, "pets": BEFORE}
    blessing = judge(3, right, Bounds(0.0, 1.0), compared(fruit=none, pets=BEFORE))
    assert blessing["refusals"] == blessing["missing"] == []
    assert blessing["blessed"] is True
    row = blessing["tasks"][0]
    assert (row["examples"], row["accuracy"], row["interval"], row["drop"]) == (0, *[None] * 3)
    said = "no task lost accuracy; 'fruit' was not measured, since there are no examples of it"
    assert comparison_sentence(blessing).endswith(said)
    blessing = judge(3, {"fruit": none}, Bounds(0.0), compared(fruit=none))
    assert blessing["blessed"] is None
    said = "(stable): 'fruit' was not measured, since there are no examples of it"
    assert comparison_sentence(blessing).endswith(said)


def test_what_was_lost_is_said():
    earlier = compared(fruit=BEFORE, pets=BEFORE)
    blessing = judge(3, {"fruit": BEFORE, "pets": NOW}, Bounds(), earlier)
    assert (
        losses(blessing, 0.19) == "task 'pets' lost 0.2000 of its accuracy, from 0.8000 to 0.6000"
    )
    assert losses(blessing, 0.2) == ""
    assert comparison_sentence(blessing).startswith("compared with version 2 (stable): task 'pets'")
    same = judge(3, {"pets": BEFORE}, Bounds(), compared(pets=BEFORE))
    assert comparison_sentence(same) == "compared with version 2 (stable): no task lost accuracy"
    first = judge(1, {"pets": NOW}, Bounds(), None) | {"note": "The first version: nothing."}
    assert comparison_sentence(first) == "the first version: nothing"


def test_a_version_that_cannot_be_compared_with_is_refused_if_there_is_a_bound():
    why = "version 2 (stable) cannot answer: it is damaged."
    blessing = judge(3, {"pets": NOW}, Bounds(max_forgetting=1.0), None, why)
    assert (blessing["blessed"], blessing["refusals"]) == (False, [why.rstrip(".")])
    blessing = judge(3, {"pets": NOW}, Bounds(min_accuracy=0.1), None, why)
    assert (blessing["blessed"], blessing["refusals"]) == (True, [])


def test_a_gain_is_no_loss():
    blessing = judge(3, {"pets": BEFORE}, Bounds(0.0), compared(pets=NOW))
    assert blessing["blessed"] and blessing["tasks"][0]["drop"] == pytest.approx(-0.2)


@pytest.mark.parametrize(("asked", "blessed"), [(None, True), (0.6, True), (0.61, False)])
def test_a_new_task_has_to_reach_an_accuracy(asked, blessed):
    # "fruit" is not new: 0.6 is too little for a new task, and no loss for an old one.
    right = {"fruit": NOW, "pets": NOW}
    blessing = judge(3, right, Bounds(0.0, asked), compared(fruit=NOW))
    assert blessing["blessed"] == blessed
    if not blessed:
        [sentence] = blessing["refusals"]
        assert "new task 'pets' has an accuracy of 0.6000 on 10 held-out examples" in sentence


def test_all_tasks_of_the_first_version_are_new():
    blessing = judge(1, {"pets": NOW}, Bounds(0.0, 0.7), None)
    assert not blessing["blessed"] and blessing["compared_with"] is None
    [row] = blessing["tasks"]
    assert row["before"] is row["drop"] is row["p_value"] is None


def test_a_version_that_lacks_a_task_is_refused_if_there_is_a_bound():
    earlier = compared(pets=NOW, fruit=NOW)
    blessing = judge(3, {"pets": NOW}, Bounds(), earlier)
    assert blessing["blessed"] is None and blessing["missing"] == ["fruit"]
    blessing = judge(3, {"pets": NOW}, Bounds(max_forgetting=1.0), earlier)
    [sentence] = blessing["refusals"]
    assert sentence.startswith("task 'fruit', which version 2 (stable) answers, is not answered")


def test_intervals_are_those_of_the_literature():
    # Wilson, for 9 of 10: (9 + z²/2 ± z √(9·1/10 + z²/4)) / (10 + z²), z = 1.96.
    assert wilson_interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    # Newcombe's example of 36, 12, 2 and 0 pairs, and one of 1, 1, 7 and 12 (Fagerland, Lydersen
    # and Laake, "Recommended tests and confidence intervals for paired binomial proportions"),
    # where φ is 0 by its correction: without it the lower end would be −0.494.
    assert drop_interval(36, 12, 2, 50) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert drop_interval(1, 1, 7, 21) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_no_difference_leaves_an_interval_that_shrinks_with_more_examples():
    few, many = drop_interval(10, 0, 0, 10), drop_interval(1000, 0, 0, 1000)
    assert few[0] < many[0] < 0 < many[1] < few[1] < 0.4
    assert mcnemar_p_value(0, 0) == 1.0


def test_the_interval_turns_around_with_the_versions():
    low, high = drop_interval(5, 3, 1, 10)
    assert drop_interval(5, 1, 3, 10) == pytest.approx((-high, -low))


def test_the_interval_covers_the_true_loss_as_often_as_it_says():
    # Of 40 examples, half are right in both versions, and 0.3 and 0.1 in one only.
    draws = np.random.default_rng(0).multinomial(40, [0.5, 0.3, 0.1, 0.1], size=400)
    hits = [
        low <= 0.2 <= high
        for both, lost, gained, _ in draws
        for low, high in [drop_interval(both, lost, gained, 40)]
    ]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_examples_are_asked_in_batches_and_nan_is_never_right(models, inputs):
    version = LoadedVersion(models / "shop" / "1")
    points = np.concatenate([inputs, inputs, [[np.nan, np.nan]]])

    def batches(size):
        return (points[k : k + min(size, 2)] for k in range(0, len(points), min(size, 2)))

    labels = np.array([1, 1, 1, 0, 0])
    right = answered_right(version, HeldOut("animals", "pets", labels, batches))
    assert right.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("bound", [-0.1, 1.1, float("nan")])
def test_a_bound_is_a_fraction(bound):
    with pytest.raises(UsageError, match="`max_forgetting` to be a fraction"):
        Bounds(max_forgetting=bound)
