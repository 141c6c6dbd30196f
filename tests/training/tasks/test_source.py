from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_mas.errors import UsageError
from keras_mas.training.tasks import DataError, Split
from keras_mas.training.tasks.source import (
    LoadOptions,
    Source,
    hold_out,
    make_task,
    numbered_classes,
    shuffled,
)
from keras_mas.training.tasks.stream import check_labels


def numbered_split(labels):
    """Inputs that are the examples' own numbers, so that each can be recognised."""
    return Split(np.arange(len(labels), dtype=np.float32)[:, None], np.array(labels, np.int64))


def numbers(split):
    return split.inputs[:, 0].tolist()


@pytest.fixture
def zoo():
    """Four classes, ten training examples and two test examples of each, sorted by class."""
    return Source(
        classes=("ant", "bee", "cow", "dog"),
        train=numbered_split(np.repeat([0, 1, 2, 3], 10)),
        test=numbered_split(np.repeat([0, 1, 2, 3], 2)),
    )


# Holding out.


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.99),
)
def test_hold_out_divides_every_class_and_loses_nothing(labels, fraction):
    split = numbered_split(labels)
    rest, held = hold_out(split, fraction)
    assert sorted(numbers(rest) + numbers(held)) == numbers(split)
    for label in set(labels):
        n, count = labels.count(label), held.labels.tolist().count(label)
        assert count <= n - 1
        assert count >= min(1, n - 1)
        assert abs(count - fraction * n) <= 1


def test_hold_out_of_a_class_with_one_example_leaves_it_in_training():
    rest, held = hold_out(numbered_split([0, 1, 1]), 0.5)
    assert rest.labels.tolist() == [0, 1]
    assert held.labels.tolist() == [1]


def test_hold_out_keeps_inputs_with_their_labels():
    rest, held = hold_out(numbered_split([0, 1, 0, 1]), 0.5)
    assert (numbers(rest), rest.labels.tolist()) == ([2, 3], [0, 1])
    assert (numbers(held), held.labels.tolist()) == ([0, 1], [0, 1])


def test_shuffling_depends_on_the_seed_only():
    split = numbered_split(range(50))
    assert numbers(shuffled(split, 1)) == numbers(shuffled(split, 1))
    assert numbers(shuffled(split, 1)) != numbers(shuffled(split, 2))
    assert sorted(numbers(shuffled(split, 1))) == numbers(split)


@pytest.mark.parametrize("labels", [[-1, -2], [-1, 1, 1]])
def test_negative_labels_number_no_classes(labels):
    with pytest.raises(DataError, match="number the classes 0, 1, 2, .*label -[12] .*y_train"):
        numbered_classes(numbered_split(labels), "y_train")


def test_labels_without_classes():
    with pytest.raises(DataError, match="Expected at least one class. Received: none in here"):
        check_labels(np.array([0]), (), "here")


# Making a task.


def test_validation_is_held_out_of_training_and_never_of_test(zoo):
    task = make_task("zoo", zoo, None, LoadOptions(validation_fraction=0.2))
    assert sorted(numbers(task.train) + numbers(task.validation)) == numbers(zoo.train)
    assert np.bincount(task.validation.labels).tolist() == [2, 2, 2, 2]
    assert task.test is zoo.test


def test_another_seed_holds_out_other_examples(zoo):
    held = [
        sorted(numbers(make_task("zoo", zoo, None, LoadOptions(seed)).validation))
        for seed in (0, 0, 1)
    ]
    assert held[0] == held[1] != held[2]


def test_training_examples_are_mixed_even_if_the_source_is_sorted(zoo):
    labels = make_task("zoo", zoo, None, LoadOptions()).train.labels
    assert set(labels[:12].tolist()) == {0, 1, 2, 3}


def test_own_validation_data_leaves_the_training_data_whole(zoo):
    own = numbered_split([0, 1, 2, 3])
    source = Source(zoo.classes, zoo.train, zoo.test, validation=own)
    task = make_task("zoo", source, None, LoadOptions())
    assert task.validation is own
    assert len(task.train) == 40


def test_chosen_classes_are_renumbered_in_the_order_given(zoo):
    task = make_task("zoo", zoo, [3, "bee"], LoadOptions())
    assert task.classes == ("dog", "bee")
    # Examples 30-39 are dogs, 10-19 bees; in the test split 6-7 and 2-3.
    assert {
        n for n, y in zip(numbers(task.train), task.train.labels, strict=True) if y == 0
    } <= set(range(30, 40))
    assert (numbers(task.test), task.test.labels.tolist()) == ([2, 3, 6, 7], [1, 1, 0, 0])


def test_choice_applies_to_own_validation_data_too(zoo):
    source = Source(zoo.classes, zoo.train, zoo.test, validation=numbered_split([0, 1, 2, 3]))
    task = make_task("zoo", source, ["dog", "ant"], LoadOptions())
    assert task.validation.labels.tolist() == [1, 0]


@pytest.mark.parametrize("role", ["train", "test", "validation"])
@pytest.mark.parametrize("classes", [None, [0, 1]])
@pytest.mark.parametrize("label", [-1, 9])
def test_label_that_no_class_has(zoo, role, classes, label):
    source = replace(zoo, **{role: numbered_split([0, 0, 1, 1, 2, 3, label])})
    with pytest.raises(DataError, match=f"from 0 to 3.*label {label} in the {role} split .*'zoo'"):
        make_task("zoo", source, classes, LoadOptions())


@pytest.mark.parametrize(("role", "word"), [("train", "training"), ("test", "test")])
def test_chosen_class_without_examples(zoo, role, word):
    source = replace(zoo, **{role: numbered_split([0, 0, 1, 1, 3, 3])})
    with pytest.raises(DataError, match=f"{word} examples of every class.*none of class 'cow'"):
        make_task("zoo", source, ["ant", "cow"], LoadOptions())
    assert len(make_task("zoo", source, ["ant", "bee"], LoadOptions()).classes) == 2


@pytest.mark.parametrize(
    ("classes", "facts"),
    [
        ([0, 4], ["from 0 to 3", "Received: 4", "task 'zoo'"]),
        ([-1, 0], ["from 0 to 3", "Received: -1"]),
        (["ant", "bea"], ["'ant', 'bee', 'cow', 'dog'", "'bea'", "Did you mean 'bee'?"]),
        ([0, "ant"], ["none twice", "[0, 'ant']", "task 'zoo'"]),
        ([], ["at least one class", "[]"]),
    ],
)
def test_classes_that_cannot_be_chosen(zoo, classes, facts):
    with pytest.raises(UsageError) as error:
        make_task("zoo", zoo, classes, LoadOptions())
    for fact in facts:
        assert fact in str(error.value)


def test_one_example_per_class_leaves_nothing_to_hold_out(zoo):
    source = Source(("ant", "bee"), numbered_split([0, 1]), numbered_split([0, 1]))
    with pytest.raises(DataError, match="validation split of task 'zoo'. Received: none"):
        make_task("zoo", source, None, LoadOptions())


# Small parts.


def test_numbered_classes():
    assert numbered_classes(numbered_split([2, 0, 1]), "y") == ("0", "1", "2")


def test_labels_that_are_years_are_not_class_numbers():
    with pytest.raises(DataError, match="label 2019 among 2 training examples in y_train.*unique"):
        numbered_classes(numbered_split([2018, 2019]), "y_train")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2, float("nan")])
def test_fractions_that_hold_out_nothing_or_all(fraction):
    with pytest.raises(UsageError, match=f"between 0 and 1.*Received: {fraction}"):
        LoadOptions(validation_fraction=fraction)


def test_negative_seed():
    with pytest.raises(UsageError, match="seed of at least 0. Received: -1"):
        LoadOptions(seed=-1)
