import dataclasses

import numpy as np
import pytest

from keras_mas.training.exporting import manifest_of
from keras_mas.training.tasks import Split, Task, TaskStream


def stream_of(inputs, resize=None):
    split = Split(inputs, np.arange(len(inputs)) % 2)
    task = Task("pets", ("cat", "dog"), split, split, split)
    return TaskStream("animals", "task", (task,), (1.0, 0.0), resize=resize)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_read_from_files_of_their_size_unless_images_were_resized(channels):
    stream = stream_of(np.zeros([4, 6, 6, channels], np.uint8))
    assert stream.resize_of_files == "none"
    assert dataclasses.replace(stream, resize="stretch").resize_of_files == "stretch"


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros([4, 6], np.uint8),
        np.zeros([4, 6, 6, 2], np.uint8),
        np.zeros([4, 6, 6, 3], np.float32),
    ],
    ids=lambda inputs: f"{inputs.dtype}{inputs.shape}",
)
def test_other_inputs_are_no_images(inputs):
    assert stream_of(inputs).resize_of_files is None


def test_a_manifest_says_what_was_known_after_its_task():
    result = {"method": "mas", "tasks": ["a", "b", "c"], "seconds": {"training": 1.0}}
    matrix = [[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.6, 0.5, 0.4]]
    assert manifest_of(result | {"accuracy_matrix": matrix}, 2, "keras-mas train letters") == {
        "method": "mas",
        "tasks": ["a", "b"],
        "accuracy_matrix": [[0.9, 0.1], [0.8, 0.7]],
        "command": "keras-mas train letters",
    }
