"""What a run measures, apart from the run."""

import itertools
import time

import pytest

from keras_mas.training.record import Record


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is a second after the one before."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


def test_what_happens_between_two_steps_is_no_training(clock):
    record = Record()
    with record.timed("training"):  # from 0 to 5
        with record.timed_within_training("evaluation"):  # from 1 to 2
            pass
        with record.timed_within_training("saving"):  # from 3 to 4
            pass
    assert record.seconds == {"training": 3, "importance": 0, "evaluation": 1, "saving": 1}


def test_a_lap_adds_what_has_passed_since_the_last(clock):
    record = Record()
    with record.timed("training") as watch:
        watch.lap()
        assert record.seconds["training"] == 1
    assert record.seconds["training"] == 2


def test_what_was_kept_is_restored():
    record = Record()
    record.rows.append([1.0, 0.5])
    record.seconds["training"], record.memory["kept_by_method"] = 2.5, 40
    record.history = {"loss": [0.3]}
    again = Record()
    assert again.restore(record.progress(1)) == []
    assert (again.seconds, again.memory) == (record.seconds, record.memory)
    assert again.history == record.history
    assert again.rows == []  # accuracies are the caller's
