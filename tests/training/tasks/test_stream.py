import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.tasks import DataError, Split, TaskStream
from keras_mas.training.tasks.stream import checked_split


def stream(*tasks, scenario="task"):
    return TaskStream("pets", scenario, tasks, (1.0, 0.0))


# Arrays to splits.


def test_pixels_stay_raw_and_gain_a_channel_axis():
    split = checked_split(np.full((2, 4, 5), 255, np.uint8), np.array([0, 1]), "here")
    assert split.inputs.shape == (2, 4, 5, 1)
    assert split.inputs.dtype == np.uint8
    assert split.inputs.max() == 255


def test_floats_become_float32_and_keep_their_shape():
    # A sequence [N, time, features] has the rank of grey images; only uint8 says "pixels".
    split = checked_split(np.full((2, 4, 5), 0.5), np.array([0, 1], np.uint8), "here")
    assert split.inputs.shape == (2, 4, 5)
    assert split.inputs.dtype == np.float32
    assert split.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("inputs", "labels", "facts"),
    [
        (np.ones((4, 3)), np.zeros(3, int), ["4 inputs and 3 labels"]),
        (np.ones((0, 3)), np.zeros(0, int), ["at least one example", "(0, 3)"]),
        (np.ones((4, 0)), np.zeros(4, int), ["at least one example", "(4, 0)"]),
        (np.ones(4), np.zeros(4, int), ["[N, ...]", "(4,)", "reshape"]),
        (np.array(1.0), np.zeros(4, int), ["[N, ...]", "()"]),
        (np.ones((4, 3), bool), np.zeros(4, int), ["uint8", "bool", "astype"]),
        (np.ones((4, 3), np.uint16), np.zeros(4, int), ["uint8", "uint16", "astype"]),
        (np.ones((4, 3), complex), np.zeros(4, int), ["uint8", "complex128"]),
        (np.ones((4, 3), np.int64), np.zeros(4, int), ["uint8", "int64", "astype"]),
        (np.full((4, 3), "a"), np.zeros(4, int), ["uint8", "<U1"]),
        (np.array([[1.0, np.nan], [np.inf, 1.0]]), np.zeros(2, int), ["finite", "2 values"]),
        (np.full((1, 2), 1e300), np.zeros(1, int), ["finite", "as float32"]),
        (np.ones((4, 3)), np.zeros((4, 1), int), ["shape [N]", "(4, 1)", "reshape(-1)"]),
        (np.ones((4, 3)), np.eye(4, dtype=int), ["shape [N]", "(4, 4)", "argmax"]),
        (np.ones((4, 3)), np.zeros(4), ["whole numbers", "float64"]),
        (np.ones((4, 3)), np.zeros(4, bool), ["whole numbers", "bool"]),
    ],
)
def test_arrays_that_make_no_split(inputs, labels, facts):
    with pytest.raises(DataError) as error:
        checked_split(inputs, labels, "x and y of 'a.npz'")
    for fact in [*facts, "x and y of 'a.npz'"]:
        assert fact in str(error.value)


# Splits to tasks.


def test_task_knows_its_shape_and_splits(make_a_task):
    task = make_a_task()
    assert task.input_shape == (2,)
    assert list(task.splits) == ["train", "validation", "test"]
    assert len(task.train) == 4


@pytest.mark.parametrize("name", ["a/b", "", "_a", "-a", ".a", "a b", "a\n", "ä", "a:0"])
def test_names_that_no_layer_signature_or_file_can_have(make_a_task, name):
    with pytest.raises(UsageError, match="letters, digits") as error:
        make_a_task(name)
    assert repr(name) in str(error.value)


def test_name_of_the_signature_for_all_tasks(make_a_task):
    with pytest.raises(UsageError, match="another task name than 'serving_default'"):
        make_a_task("serving_default")


@pytest.mark.parametrize("name", ["0-1", "a", "Shop_2.b-C"])
def test_names_that_all_of_them_can_have(make_a_task, name):
    import keras
    import tensorflow as tf

    layer = keras.layers.Dense(1, name=make_a_task(name).name)
    layer.build((None, 2))
    assert layer.kernel.path == f"{name}/kernel"
    with tf.compat.v1.Graph().name_scope(name) as scope:
        assert scope == f"{name}/"


def test_class_without_training_examples(make_a_task, make_split):
    with pytest.raises(DataError, match="none of class 'dog' in task 'pets'.*`classes`"):
        make_a_task(train=make_split(0, 0))


def test_test_label_that_never_occurs_in_training(make_a_task, make_split):
    with pytest.raises(DataError, match="from 0 to 1.*label 2 in the test split of task 'pets'"):
        make_a_task(test=make_split(0, 1, 2))


def test_negative_label(make_a_task, make_split):
    with pytest.raises(DataError, match="label -1 in the validation split"):
        make_a_task(validation=make_split(0, -1))


def test_empty_split(make_a_task, make_split):
    empty = make_split(0).take(np.zeros(0, int))
    with pytest.raises(DataError, match="in the validation split of task 'pets'. Received: none"):
        make_a_task(validation=empty)


def test_splits_of_different_shape(make_a_task):
    wide = Split(np.ones((2, 3), np.float32), np.array([0, 1]))
    with pytest.raises(DataError, match=r"float32 of shape \[2\].*float32 of shape \[3\].*test"):
        make_a_task(test=wide)


def test_splits_of_different_dtype(make_a_task):
    pixels = Split(np.ones((2, 2), np.uint8), np.array([0, 1]))
    with pytest.raises(DataError, match=r"float32 of shape \[2\].*uint8 of shape \[2\]"):
        make_a_task(test=pixels)


# Tasks to streams.


def test_stream_of_one_task(make_a_task):
    assert stream(make_a_task()).input_shape == (2,)


def test_stream_without_tasks():
    with pytest.raises(UsageError, match="at least one task. Received: none"):
        stream()


def test_two_tasks_of_one_name(make_a_task):
    with pytest.raises(UsageError, match="different task names. Received: 'pets' 2 times"):
        stream(make_a_task(), make_a_task())


def test_stream_name_is_checked_too(make_a_task):
    with pytest.raises(UsageError, match="stream name.*'a/b'"):
        TaskStream("a/b", "task", (make_a_task(),), (1.0, 0.0))


def test_unknown_scenario(make_a_task):
    with pytest.raises(UsageError) as error:
        stream(make_a_task(), scenario="domian")
    assert "'task', 'domain', 'class'" in str(error.value)
    assert "Did you mean 'domain'?" in str(error.value)


def test_tasks_of_different_shape(make_a_task):
    wide = Split(np.ones((2, 3), np.float32), np.array([0, 1]))
    other = make_a_task("wide", train=wide, validation=wide, test=wide)
    with pytest.raises(UsageError) as error:
        stream(make_a_task(), other)
    for fact in ["[2] in task 'pets'", "[3] in task 'wide'", "`image_size`"]:
        assert fact in str(error.value)


def test_tasks_of_different_range(make_a_task):
    # One `rescale` serves all tasks, so pixels and features cannot share a stream.
    pixels = Split(np.ones((2, 2), np.uint8), np.array([0, 1]))
    other = make_a_task("pixels", train=pixels, validation=pixels, test=pixels)
    with pytest.raises(UsageError, match="float32 .*'pets' and uint8 .*'pixels'"):
        stream(make_a_task(), other)


def test_domain_tasks_need_the_same_number_of_classes(make_a_task, make_split):
    three = make_split(0, 1, 2)
    other = make_a_task(
        "more", classes=("cat", "dog", "cow"), train=three, validation=three, test=three
    )
    assert len(stream(make_a_task(), other).tasks) == 2
    with pytest.raises(UsageError, match="'pets': 2, 'more': 3"):
        stream(make_a_task(), other, scenario="domain")


def test_single_class_makes_sense_only_where_classes_add_up(make_a_task, make_split):
    one = make_split(0, 0)
    task = make_a_task(classes=("cat",), train=one, validation=one, test=one)
    assert len(stream(task, scenario="class").tasks) == 1
    with pytest.raises(UsageError, match="at least 2 classes.*Received: 1 in task 'pets'"):
        stream(task)
