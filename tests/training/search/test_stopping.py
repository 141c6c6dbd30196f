import types

import pytest

from keras_mas.metrics import forgetting
from keras_mas.training.listening import TaskResult
from keras_mas.training.search.stopping import (
    CannotWinError,
    Judge,
    accuracy_bound,
    forgetting_bound,
    recovery_of,
    standard_error,
)

# After two of four tasks: the first fell from 0.9 to 0.5, the second is at 0.8.
ROWS = [[0.9, 0.1, 0.2, 0.3], [0.5, 0.8, 0.2, 0.3]]


def test_the_accuracy_that_can_be_reached():
    # What has not been learned counts with its ceiling, not with the guesses 0.2 and 0.3.
    assert accuracy_bound(ROWS, [1.0, 1.0, 0.9, 1.0]) == pytest.approx((0.5 + 0.8 + 0.9 + 1) / 4)


def test_old_tasks_may_gain_what_one_gained_in_another_run():
    # Of the task at 0.5 no more is expected than 0.5 + 0.3, and of the one at 0.8 no more than 1.
    assert accuracy_bound(ROWS, [1.0, 1.0, 0.9, 1.0], 0.3) == pytest.approx((0.8 + 2.9) / 4)
    assert forgetting_bound(ROWS, 0.3) == pytest.approx(0.1 / 3)
    # From 0.5 after the second task to 0.7 at the end, though it once was at 0.9.
    whole = [*ROWS, [0.4, 0.7, 0.7, 0.3], [0.7, 0.8, 0.7, 0.6]]
    assert recovery_of([whole]) == pytest.approx(0.3)
    assert recovery_of([[*ROWS[:1], [0.5, 0.8]], whole]) == pytest.approx(0.3)
    assert stop_of(Judge([1.0] * 4, 0.3, 0.83, None), ROWS) is None
    assert stop_of(Judge([1.0] * 4, 0.3, None, 0.13), ROWS) is None


def test_the_forgetting_that_is_certain():
    assert forgetting_bound(ROWS) == pytest.approx(0.4 / 3)
    # A run whose later tasks are kept, and whose earlier ones do not recover, ends with just that.
    whole = [*ROWS, [0.5, 0.8, 0.7, 0.3], [0.5, 0.8, 0.7, 0.6]]
    assert forgetting(whole) == pytest.approx(forgetting_bound(ROWS))


def stop_of(judge, rows, examples=10**8):
    """Why a run with these rows is stopped; None if it is not."""
    task = types.SimpleNamespace(validation=range(examples))
    try:
        for number, row in enumerate(rows, 1):
            judge.task_finished(TaskResult(number, task, row, {}, {}, 1.0))
    except CannotWinError as error:
        return error.stop
    return None


def test_a_run_is_stopped_when_it_falls_behind_what_is_needed():
    # It can reach (0.9 + 3) / 4 = 0.975 after one task, and 3.3 / 4 = 0.825 after two.
    assert stop_of(Judge([1.0] * 4, 0.0, 0.82, None), ROWS) is None
    stop = stop_of(Judge([1.0] * 4, 0.0, 0.83, None), ROWS)
    words = "at most 0.8250 is expected, and 0.8300 is needed"
    assert stop.reason == f"stopped after task 2 of 4: {words}"
    assert (stop.bound, len(stop.rows)) == (pytest.approx(0.825), 2)
    assert stop_of(Judge([1.0] * 4, 0.0, None, None), ROWS) is None  # nothing to compare with


def test_a_run_that_has_forgotten_too_much_is_stopped():
    assert stop_of(Judge([1.0] * 4, 0.0, None, 0.14), ROWS) is None
    stop = stop_of(Judge([1.0] * 4, 0.0, None, 0.13), ROWS)
    assert stop.reason == "stopped after task 2 of 4: it would forget 0.1333 at least"


def test_what_is_within_the_error_of_few_examples_may_come_back():
    # 0.4 of one task of three: 2 √((0.9·0.1 + 0.5·0.5 + 2·0.8·0.2) / 16) / 3 = 0.135.
    assert stop_of(Judge([1.0] * 4, 0.0, None, 0.01), ROWS, examples=16) is None
    assert stop_of(Judge([1.0] * 4, 0.0, None, 0.01), ROWS, examples=25) is not None


def test_a_run_that_is_finished_is_not_stopped():
    rows = [[0.95, 0.0, 0.0], [0.9, 0.95, 0.0], [0.1, 0.1, 0.1]]
    assert stop_of(Judge([1.0] * 3, 0.0, 0.9, 0.2), rows) is None
    assert stop_of(
        Judge([1.0] * 4, 0.0, 0.9, 0.2), [[*row, 0.0] for row in rows]
    )  # one task is left


def test_a_standard_error():
    # p (1 − p) / n of 0.5 on 100 examples and of 0.9 on 400, up to the few examples more.
    by_hand = (0.5 * 0.5 / 100 + 0.9 * 0.1 / 400) ** 0.5 / 2
    assert standard_error([[0.5, 0.9]], [100, 400]) == pytest.approx(by_hand, rel=0.01)


def test_one_wrong_answer_is_within_a_standard_error_of_none():
    # 28 examples of each of five tasks, as split-digits holds out: one of them is 1/140 ≈ 0.0071.
    assert standard_error([[1.0] * 5], [28] * 5) == pytest.approx(
        (142 / 144 * 2 / 144 / 144) ** 0.5
    )
    for n in (20, 100, 10_000):
        assert 1 / n < standard_error([[1.0]], [n]) < 2 / n
