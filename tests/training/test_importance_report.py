import dataclasses
import re

import numpy as np
import pytest

from keras_mas import SynapticMemory
from keras_mas.training import importance_report
from keras_mas.training.html_report import write_html
from keras_mas.training.importance_report import importance_sections, pixel_importance
from keras_mas.training.run import train
from keras_mas.training.run_directory import DamagedError
from keras_mas.training.saved_tasks import saved_importance
from keras_mas.training.tasks import Split, Task, TaskStream

# 2×2 pixels of 2 channels, 3 hidden units: Ω[i, h] = 10 i + h, i = 4 row + 2 column + channel.
OMEGA = 10.0 * np.arange(8)[:, None] + np.arange(3)


def test_the_importance_of_pixels_is_the_sum_over_units_and_channels():
    # Pixel (0, 0) is rows 0 and 1: 0 + 1 + 2 and 10 + 11 + 12. Each next one has 2 · 3 · 20 more.
    expected = [[36, 156], [276, 396]]
    assert pixel_importance({"first": OMEGA}, (2, 2, 2)).tolist() == expected


@pytest.mark.parametrize(
    ("importance", "shape"),
    [
        ({"first": OMEGA}, (8,)),  # no image
        ({"first": OMEGA}, (2, 2, 1)),  # not of these inputs
        ({"first": np.zeros([3, 3, 2, 4])}, (2, 2, 2)),  # a convolution
        ({}, (2, 2, 2)),
    ],
)
def test_there_is_no_map_without_images_and_a_layer_that_reads_them(importance, shape):
    assert pixel_importance(importance, shape) is None


def photos(task):
    """The task with its four features as images of 2×2 pixels, the last of which is always 0."""

    def image(split):
        values = split.inputs.copy()
        values[:, 3] = 0
        return Split(values.reshape(-1, 2, 2, 1), split.labels)

    splits = {role: image(split) for role, split in task.splits.items()}
    return Task(task.name, task.classes, **splits)


@pytest.fixture
def images(stream):
    tasks = tuple(photos(task) for task in stream.tasks[:2])
    return TaskStream("photos", "task", tasks, stream.rescale)


def shown(folder, result, name="mas"):
    return list(importance_sections([(name, folder, result)]))


def test_the_pictures_of_a_run(images, settings, tmp_path):
    result = train(images, settings, tmp_path / "run")
    assert result["input_shape"] == [2, 2, 1]
    [section] = shown(tmp_path / "run", result)
    assert section["title"] == "What the network must keep: mas"
    captions = [figure["caption"].split(":")[0] for figure in section["figures"]]
    pixels = ["Pixels, all tasks", "Pixels, added by ants", "Pixels, added by bees"]
    assert captions == ["Importance of the weights by layer", *pixels]
    # A pixel that is always 0 reaches nothing, whatever the weights are.
    memory = SynapticMemory.load(tmp_path / "run/2/memory.npz")
    by_pixel = pixel_importance(memory.importance, (2, 2, 1))
    assert by_pixel[1, 1] == 0 < by_pixel[0, 0]
    assert section["figures"][1]["caption"].endswith(f"at most {by_pixel.max():.3g}")
    assert "hidden-1/kernel" in section["figures"][0]["alt"]
    assert "$" not in str(section["figures"][0]["svg"])  # no formula is left as its source
    row, column = re.search(r"row (\d) and column (\d)", section["figures"][1]["alt"]).groups()
    assert by_pixel[int(row) - 1, int(column) - 1] == by_pixel.max()
    write_html(tmp_path / "report.html", [result], more=[section])
    assert "Pixels, added by bees" in (tmp_path / "report.html").read_text()


def test_the_filters_of_the_first_convolution(images, settings, tmp_path):
    recipe = dataclasses.replace(settings.recipe, backbone="cnn-3", epochs=1)
    asked = dataclasses.replace(settings, recipe=recipe)
    result = train(images, asked, tmp_path)
    [section] = shown(tmp_path, result)
    captions = [figure["caption"] for figure in section["figures"]]
    assert len(captions) == 2 and captions[1].startswith("The 3 filters of ")
    assert str(section["figures"][1]["svg"]).count("<image") == 3


def memories(monkeypatch, *by_task):
    """Have the folders of the tasks hold these importances."""
    kept = {str(number): importance for number, importance in enumerate(by_task, 1)}
    monkeypatch.setattr(importance_report, "saved_importance", lambda folder: kept[folder.name])
    return {"tasks": [f"task-{n}" for n in kept], "input_shape": (2, 2, 2)}


@pytest.mark.parametrize(("factor", "word"), [(1.0, "added"), (0.5, "change")])
def test_importance_that_falls_is_drawn(monkeypatch, tmp_path, factor, word):
    result = memories(monkeypatch, {"first": OMEGA}, {"first": OMEGA * factor})
    [section] = shown(tmp_path, result)
    assert section["figures"][-1]["caption"].startswith(f"Pixels, {word} by task-2: at most ")


def test_weights_that_are_all_zero_are_left_out(monkeypatch, tmp_path):
    names = {"first": OMEGA, "a-bias-of-a-layer-with-a-long-name/bias": np.ones(3)}
    result = memories(monkeypatch, {**names, "free": np.zeros(3)})
    [section] = shown(tmp_path, result)
    assert section["about"].endswith(
        "Of 3 kernels, biases and the like, 1 is not drawn: all Ω is 0."
    )
    drawn = str(section["figures"][0]["svg"])
    assert "first" in drawn and "free" not in drawn and "…" not in drawn
    [section] = shown(tmp_path, memories(monkeypatch, {"first": 0 * OMEGA, "free": np.zeros(3)}))
    assert "2 are not drawn" in section["about"]
    assert section["figures"][0]["caption"] == "Pixels, all tasks: at most 0"


def test_a_method_without_importance_has_no_pictures(images, settings, tmp_path):
    asked = dataclasses.replace(settings, method="finetune")
    assert shown(tmp_path, train(images, asked, tmp_path)) == []


def test_what_is_read_is_what_was_saved(images, settings, tmp_path):
    train(images, settings, tmp_path)
    saved = SynapticMemory.load(tmp_path / "2/memory.npz").importance
    read = saved_importance(tmp_path / "2")
    assert list(read) == list(saved)
    assert all(np.array_equal(read[name], saved[name]) for name in saved)
    (tmp_path / "2/memory.npz").write_bytes(b"PK")
    with pytest.raises(DamagedError, match=r"2/memory.npz' is damaged"):
        saved_importance(tmp_path / "2")
