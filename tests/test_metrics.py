import numpy as np
import pytest
from pytest import approx

from keras_mas.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    measured,
    min_accuracy,
    worst_case_accuracy,
)

#             task 0  task 1  task 2
R = np.array([[0.90, 0.20, 0.10], [0.95, 0.80, 0.30], [0.60, 0.70, 0.90]])


def test_metrics_of_a_small_matrix():
    assert average_accuracy(R) == approx((0.6 + 0.7 + 0.9) / 3)
    assert backward_transfer(R) == approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    # Task 0 was best after task 1, not when it was learned.
    assert forgetting(R) == approx(((0.95 - 0.6) + (0.8 - 0.7)) / 2)
    assert forward_transfer(R, [0.1, 0.1, 0.1]) == approx(((0.2 - 0.1) + (0.3 - 0.1)) / 2)


def test_luck_before_training_is_not_forgotten():
    # Task 1 had 0.9 by chance before it was learned (R[0, 1]); only what came after counts.
    assert forgetting([[1.0, 0.9, 0.0], [1.0, 0.5, 0.0], [1.0, 0.5, 1.0]]) == 0.0


def test_an_improved_task_is_forgotten_less_than_not_at_all():
    assert forgetting([[0.5, 0.5], [0.75, 1.0]]) == -0.25


def test_a_constant_matrix_forgets_nothing():
    constant = np.full([4, 4], 0.7)
    assert forgetting(constant) == backward_transfer(constant) == 0.0


def test_one_task_has_nothing_to_forget():
    assert average_accuracy([[0.5]]) == 0.5
    assert backward_transfer([[0.5]]) == forgetting([[0.5]]) == forward_transfer([[0.5]], [0]) == 0


def test_what_was_not_measured_counts_as_no_number():
    # After task 2 no examples of task 0 were left, and after task 1 none of task 1.
    known = [[0.9, 0.2, 0.1], [0.95, None, 0.3], [None, 0.7, 0.9]]
    assert measured(known) == [1, 2]
    assert average_accuracy(known) == approx((0.7 + 0.9) / 2)
    # Of task 1 it is not known what it was, of task 0 not what became of it.
    assert np.isnan(forgetting(known))
    assert np.isnan(backward_transfer(known))
    assert forward_transfer(known, [None, 0.1, 0.1]) == approx(((0.2 - 0.1) + (0.3 - 0.1)) / 2)
    assert forward_transfer(known, [0.1, None, 0.1]) == approx(0.3 - 0.1)
    assert min_accuracy(known) == approx((0.95 + 0.7) / 2)
    assert np.isnan(min_accuracy([[0.9, 0.2], [None, 0.5]]))
    assert np.isnan(worst_case_accuracy([[0.9, 0.2], [None, 0.5]]))
    assert min_accuracy([[0.9, 0.2], [None, 0.5]], {1: [[0.8, 0.1], [None, 0.2]]}) == 0.8
    # The best that is known: 0.9, though it may have been better after task 1.
    again = [[0.9, 0.2, 0.1], [None, 0.8, 0.3], [0.5, None, 0.9]]
    assert forgetting(again) == approx(0.9 - 0.5)
    assert backward_transfer(again) == approx(0.5 - 0.9)


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        ([[0.5, 0.5]], r"square accuracy matrix.*Received: shape \(1, 2\)"),
        ([], r"square accuracy matrix.*Received: shape \(0,\)"),
        ([[97.0]], "fractions from 0 to 1.*from 97.0 to 97.0.*Divide percentages"),
        ([[np.nan]], "fractions from 0 to 1"),
    ],
)
def test_a_matrix_of_something_else_is_refused(matrix, sentence):
    for metric in (average_accuracy, backward_transfer, forgetting, min_accuracy):
        with pytest.raises(ValueError, match=sentence):
            metric(matrix)


def test_a_baseline_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"baseline of shape \(3,\).*Received: shape \(2,\)"):
        forward_transfer(R, [0.1, 0.1])


def test_the_worst_of_each_task_at_the_ends_of_tasks():
    # Task 0 is worst after task 2 (0.6), task 1 too (0.7); R[0, 1] = 0.2 was before task 1.
    assert min_accuracy(R) == approx((0.6 + 0.7) / 2)
    assert worst_case_accuracy(R) == approx(0.9 / 3 + 2 / 3 * (0.6 + 0.7) / 2)


# While task 1 was learned, task 0 fell to 0.5 and recovered to 0.95; while task 2 was, task 0 fell
# to 0.55 and task 1 to 0.1. That task 0 had 0.0 while it was itself learned does not count.
DURING = {0: [[0.0]], 1: [[0.5, 0.3], [0.9, 0.4]], 2: [[0.55, 0.1, 0.2], [0.7, 0.6, 0.3]]}


def test_the_worst_while_other_tasks_are_learned():
    assert min_accuracy(R, DURING) == approx((0.5 + 0.1) / 2)
    assert worst_case_accuracy(R, DURING) == approx(0.9 / 3 + 2 / 3 * (0.5 + 0.1) / 2)
    # The accuracy on the task under way, and on those to come, may be left out.
    old = {1: [[0.5], [0.9]], 2: [[0.55, 0.1], [0.7, 0.6]]}
    assert min_accuracy(R, old) == min_accuracy(R, DURING)


def test_the_worst_of_one_task_is_its_accuracy():
    assert min_accuracy([[0.5]], {0: [[0.25]]}) == worst_case_accuracy([[0.5]]) == 0.5


def test_more_evaluations_never_raise_the_worst():
    assert min_accuracy(R, {1: [[1.0]]}) == min_accuracy(R)
    assert worst_case_accuracy(R, DURING) <= worst_case_accuracy(R)


@pytest.mark.parametrize(
    ("during", "sentence"),
    [
        ({2: [[0.5]]}, r"each of the 2 tasks before task 2.*Received: shape \(1,\)"),
        ({1: [[0.5] * 4]}, r"at most for 3. Received: shape \(4,\)"),
        ({3: [[0.5] * 3]}, "tasks 0 to 2 were learned. Received: some of task 3"),
    ],
)
def test_evaluations_of_something_else_are_refused(during, sentence):
    with pytest.raises(ValueError, match=sentence):
        worst_case_accuracy(R, during)
