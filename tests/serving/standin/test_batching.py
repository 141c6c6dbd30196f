"""Requests that arrive together and are answered as one batch."""

import concurrent.futures
import threading

import numpy as np
import pytest
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.serving.standin.batching import (
    Batcher,
    BatchingParameters,
    read_batching_parameters,
)
from keras_mas.serving.standin.protocol import RequestError


class Recorder:
    """Stands for a loaded version: y = 2x, and the shapes of the batches that it was given."""

    def __init__(self):
        self.batches = []
        self.go_on = threading.Event()
        self.go_on.set()

    def check(self, signature, inputs, outputs):
        if signature == "missing":
            raise tf.errors.FailedPreconditionError(None, None, "missing")

    def run(self, signature, inputs, outputs=()):
        assert self.go_on.wait(20)
        self.batches.append(inputs["x"].copy())
        if signature == "fails":
            raise tf.errors.InvalidArgumentError(None, None, "fails")
        return {"y": 2 * inputs["x"]}


@pytest.fixture
def version():
    return Recorder()


@pytest.fixture
def batched(version):
    """A function that makes the batching function of some parameters."""
    batchers = []

    def make(**parameters):
        batchers.append(Batcher(BatchingParameters(**{"num_batch_threads": 1} | parameters)))
        return batchers[-1].batched(version)

    yield make
    version.go_on.set()
    for batcher in batchers:
        batcher.close()


def together(run, *xs, signature="s"):
    """Send several requests at once; return the answers in order, or what was raised."""

    def ask(x):
        try:
            return run(signature, {"x": np.asarray(x, np.float32)})["y"].tolist()
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(xs)) as pool:
        return list(pool.map(ask, xs))


def test_requests_are_joined_until_the_batch_is_full(batched, version):
    run = batched(max_batch_size=4, batch_timeout_micros=20_000_000)
    assert together(run, [1, 2], [3], [4]) == [[2, 4], [6], [8]]
    (batch,) = version.batches
    assert sorted(batch.tolist()) == [1, 2, 3, 4]


def test_a_batch_that_is_not_full_waits_for_the_timeout_only(batched, version):
    run = batched(max_batch_size=100, batch_timeout_micros=1000)
    assert together(run, [1]) == [[2]]
    assert len(version.batches) == 1


def test_a_batch_is_padded_to_an_allowed_size_with_its_last_first_row(batched, version):
    run = batched(max_batch_size=8, allowed_batch_sizes=(1, 4, 8))
    assert together(run, [[5, 6], [7, 8]]) == [[[10, 12], [14, 16]]]
    assert version.batches[0].tolist() == [[5, 6], [7, 8], [5, 6], [5, 6]]


def test_an_empty_request_is_not_padded(batched, version):
    run = batched(max_batch_size=8, allowed_batch_sizes=(4, 8))
    assert together(run, []) == [[]]


def test_rows_of_several_sizes_need_padding(batched, version):
    options = {"max_batch_size": 2, "batch_timeout_micros": 20_000_000}
    (first, second) = together(batched(**options), [[1, 2]], [[3]])
    assert "have different shapes and padding is turned off" in first.message
    assert second.message == first.message  # a batch fails as a whole
    run = batched(**options, pad_variable_length_inputs=True)
    answers = together(run, [[1, 2]], [[3]])
    assert answers == [[[2, 4]], [[6, 6]]]  # filled with the first value of the row's tensor


def test_what_is_too_large_or_too_much_is_refused(batched, version):
    run = batched(max_batch_size=2, max_enqueued_batches=2)
    (large,) = together(run, [1, 2, 3])
    assert large.message == "Task size 3 is larger than maximum input batch size 2"
    version.go_on.clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # At most one batch runs and two wait, so that of eight requests the last are refused.
        asked = [pool.submit(together, run, [n, n]) for n in range(8)]
        done, _ = concurrent.futures.wait(asked, 20, concurrent.futures.FIRST_COMPLETED)
        refused = next(iter(done)).result()[0]
        version.go_on.set()
    assert "to which this task was submitted is full; currently 2 batches" in refused.message


def test_large_requests_can_be_divided(batched, version):
    run = batched(max_batch_size=5, max_execution_batch_size=2, enable_large_batch_splitting=True)
    assert together(run, [1, 2, 3, 4, 5]) == [[2, 4, 6, 8, 10]]
    assert [batch.tolist() for batch in version.batches] == [[1, 2], [3, 4], [5]]


def test_an_error_reaches_every_request_of_its_batch(batched, version):
    run = batched(max_batch_size=2, batch_timeout_micros=20_000_000)
    errors = together(run, [1], [2], signature="fails")
    assert [error.message for error in errors] == ["fails", "fails"]
    (missing,) = together(run, [1], signature="missing")
    assert missing.message == "missing" and len(version.batches) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "must have at least one input tensor"),
        ({"x": np.float32(1)}, "must have at least one dimension"),
        ({"x": np.zeros(1), "z": np.zeros(2)}, "must have equal 0th-dimension size"),
    ],
)
def test_what_cannot_be_joined_is_refused(batched, inputs, message):
    with pytest.raises(RequestError, match=message):
        batched()("s", {name: np.asarray(array) for name, array in inputs.items()})


def test_parameters_are_read_from_a_file(tmp_path):
    path = tmp_path / "batching.txt"
    path.write_text(
        "max_batch_size { value: 8 }\nbatch_timeout_micros { value: 500 }\n"
        'thread_pool_name { value: "a" }\nnum_batch_threads { value: 2 }\n'
        "allowed_batch_sizes: 4\nallowed_batch_sizes: 8\npad_variable_length_inputs: true\n"
        "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }"
    )
    assert read_batching_parameters(path) == BatchingParameters(
        max_batch_size=8,
        batch_timeout_micros=500,
        num_batch_threads=2,
        allowed_batch_sizes=(4, 8),
        pad_variable_length_inputs=True,
        enable_large_batch_splitting=True,
        max_execution_batch_size=4,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 8", "to hold BatchingParameters"),
        ("allowed_batch_sizes: 4", "last entry was 4; expected 1000"),
        ("max_batch_size { value: 0 }", "max_batch_size ≥ 1. Received: 0"),
        (
            "max_batch_size { value: 2 } allowed_batch_sizes: 4 allowed_batch_sizes: 2",
            "in increasing order",
        ),
    ],
)
def test_parameters_that_are_not_allowed_are_refused(tmp_path, text, message):
    (tmp_path / "batching.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_batching_parameters(tmp_path / "batching.txt")
    with pytest.raises(UsageError, match="No such file"):
        read_batching_parameters(tmp_path / "none.txt")
