"""Plateaus of a loss, followed number by number."""

import pytest
import tensorflow as tf

from keras_mas.plateau import PlateauDetector


def plateaus(losses, detector=None):
    """Return after which losses, counted from 0, a plateau was found."""
    detector = detector or PlateauDetector(window=2, mean_threshold=0.2, variance_threshold=0.001)
    found = []
    for number, loss in enumerate(losses):
        detector.add(tf.constant(loss))
        if bool(detector.has_met_plateau):
            found.append(number)
            detector.has_met_plateau.assign(False)
    return found


def test_a_plateau_is_low_and_flat():
    # The mean of 0.3 and 0.08 is 0.19, and their variance 0.0121: low, not flat. Of 0.3 and 0.3 the
    # variance is 0: flat, not low. Of 0.08 and 0.06 both are small.
    assert plateaus([0.3, 0.3, 0.08, 0.06]) == [3]


def test_the_first_losses_are_no_window():
    assert plateaus([0.1]) == []
    assert plateaus([0.1, 0.1]) == [1]


def test_a_plateau_is_found_once():
    assert plateaus([0.1] * 9) == [1]


def test_the_next_plateau_comes_after_a_peak():
    # A mean of 0.1 and a variance of 0: any mean above 0.1 is a peak, here the 0.5, and the next
    # plateau is found when it has left the window.
    assert plateaus([0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1]) == [1, 5]
    # Of 0.1 and 0.14 the mean is 0.12 and the deviation 0.02: 0.13 is no peak, and 0.15 is one.
    assert plateaus([0.1, 0.14, 0.12, 0.14, 0.12]) == [1]
    assert plateaus([0.1, 0.14, 0.14, 0.16, 0.16]) == [1, 3]


def test_a_restart_forgets_the_window_and_the_last_plateau():
    detector = PlateauDetector(window=2)
    assert plateaus([0.1, 0.1], detector) == [1]
    detector.restart()
    assert plateaus([0.1, 0.1], detector) == [1]


def test_it_works_in_a_traced_function():
    detector = PlateauDetector(window=2)
    add = tf.function(detector.add)
    for loss in (0.1, 0.1):
        assert not bool(detector.has_met_plateau)
        add(tf.constant(loss))
    assert bool(detector.has_met_plateau)


@pytest.mark.parametrize("stop", range(6))
def test_its_state_is_all_that_matters(stop):
    losses = [0.1, 0.1, 0.5, 0.3, 0.1, 0.1]
    whole = plateaus(losses)
    first, second = PlateauDetector(2, 0.2, 0.001), PlateauDetector(2, 0.2, 0.001)
    found = plateaus(losses[:stop], first)
    for name, variable in second.variables.items():
        variable.assign(first.variables[name])
    assert found + [stop + number for number in plateaus(losses[stop:], second)] == whole
