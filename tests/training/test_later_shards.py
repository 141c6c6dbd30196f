"""Ω of later inputs by a map over shards and a reduce, with a map of this process."""

import functools

import numpy as np
import pytest

from keras_mas.importance import ImportanceSums
from keras_mas.serving.traffic import Asked, Collector, Counts, InputForm
from keras_mas.training import later_shards
from keras_mas.training.later_shards import Chosen, Measured, Reading, choose, measured, survey

FORM = InputForm((1,), ("a",))
SHARDS = [("x",), ("y",), ("z",)]

# What the shards hold: 2 is in two of them, and 3 twice in one.
HELD = {"x": [1, 2, 3, 3], "y": [4, 2, 5], "z": [6]}


def read(path, collector):
    collector.files += 1
    for value in HELD[path]:
        collector.add(np.array([value], np.float32), "a" if value == 5 else None)


READING = Reading(read, FORM, seed=3)


class Doubling:
    """Measures 2x of every input, and cannot measure 4; stands for a network."""

    def measurable(self, asked):
        return asked.inputs[:, 0] != 4

    def sums(self, asked):
        return {
            head: ImportanceSums({"w": np.array([2.0 * inputs.sum()])}, len(inputs))
            for head, inputs in asked.by_head()
        }


class File:
    """Stands for the file of the network."""

    def loaded(self, load):
        return Doubling()


def by_map(limit=None, sample=1000):
    surveys = map(functools.partial(survey, reading=READING), SHARDS)
    counts, chosen = choose(surveys, SHARDS, limit, sample)
    parts = [later_shards.measure(each, READING, "mas", File()) for each in chosen]
    return counts, chosen, measured(parts)


def by_one(limit=None):
    collector = Collector(FORM, limit, seed=3)
    for [path] in SHARDS:
        read(path, collector)
    return collector


def test_sums_are_those_of_the_distinct_inputs_of_all_shards():
    _, _, all_of_them = by_map()
    # 2 · (1 + 2 + 3 + 6) of all heads and 2 · 5 of the head a; 4 cannot be measured.
    assert all_of_them.sums[None].sums["w"] == 24 and all_of_them.sums[None].examples == 4
    assert all_of_them.sums["a"].sums["w"] == 10 and all_of_them.sums["a"].examples == 1
    assert all_of_them.not_finite == 1


def test_what_was_read_is_what_one_process_counts():
    counts, _, _ = by_map()
    assert counts == by_one().counted()
    assert (counts.files, counts.examples, counts.duplicates) == (3, 8, 2)


@pytest.mark.parametrize("limit", [1, 3, 5, None])
def test_the_inputs_that_one_process_draws_are_drawn(limit):
    _, chosen, all_of_them = by_map(limit)
    asked = by_one(limit).asked
    assert sum(len(each.keys) for each in chosen) == len(asked.heads)
    sample = np.array(list(all_of_them.sample.values())).reshape(-1, 1)
    # In the order of one process, so that a sample of them is the same too.
    np.testing.assert_array_equal(sample, asked.only(asked.inputs[:, 0] != 4).inputs)


def test_a_sample_is_of_the_first_that_were_drawn():
    _, _, some = by_map(sample=3)
    first = Asked(by_one().asked.inputs[:3], by_one().asked.heads[:3])
    expected = first.only(first.inputs[:, 0] != 4).inputs
    np.testing.assert_array_equal(list(some.sample.values()), expected)
    assert by_map(sample=0)[2].sample == {}


def test_inputs_are_measured_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(later_shards, "_AT_A_TIME", 2)
    _, _, all_of_them = by_map()
    assert all_of_them.sums[None].sums["w"] == 24 and all_of_them.sums[None].examples == 4


def test_no_shard_holds_an_input():
    nothing = [(Counts(files=1), np.zeros(0, np.uint64))] * 3
    counts, chosen = choose(nothing, SHARDS, 10)
    assert counts.files == 3 and [len(each.keys) for each in chosen] == [0, 0, 0]
    assert measured(later_shards.measure(each, READING, "mas", File()) for each in chosen) == (
        Measured({}, 0, {})
    )


def test_a_shard_that_has_changed_is_named():
    _, chosen, _ = by_map()
    changed = Chosen(("z", "x"), np.append(chosen[2].keys, np.uint64(7)))
    with pytest.raises(RuntimeError, match="Expected 2 inputs in 'z and 1 more'.* Received: 1."):
        later_shards.measure(changed, READING, "mas", File())
