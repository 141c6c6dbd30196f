import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from keras_mas.errors import UsageError
from keras_mas.serving import export
from keras_mas.serving.config import with_labels, write_config
from keras_mas.serving.export import ExportError, is_exported
from keras_mas.serving.gate import Bounds, HeldOut, RefusedError
from keras_mas.serving.manifest import read_manifest
from keras_mas.serving.paths import list_versions, new_version, remove_versions
from keras_mas.serving.publish import publish
from keras_mas.serving.published import check_published, check_version, is_published
from keras_mas.serving.runtime import LoadedVersion, LoadError

# Of four points the pets of `heads()` classify three right. Turned around, they get one right.
POINTS = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [0.0, 3.0]], np.float32)
PETS = np.array([1, 0, 1, 0])
FRUIT = np.array([2, 2, 2, 2])


def held_out(*names):
    labels = {"pets": PETS, "fruit": FRUIT, "none": PETS[:0]}
    return [HeldOut(name, name, labels[name], lambda _: [POINTS]) for name in names]


BOTH = held_out("pets", "fruit")
NO_LOSS = Bounds(max_forgetting=0.0)


@pytest.fixture(scope="module")
def once_published(models, make_heads, tmp_path_factory):
    """Folder of a model with version 1, and version 2 with the judgement of `publish`."""
    folder = tmp_path_factory.mktemp("published") / "shop"
    shutil.copytree(models / "shop" / "1", folder / "1")
    publish(make_heads(), folder, BOTH)
    return folder


@pytest.fixture
def shop(models, tmp_path):
    """Folder of a model with version 1, in which pets are right three times out of four."""
    shutil.copytree(models / "shop" / "1", tmp_path / "shop" / "1")
    return tmp_path / "shop"


def blessing_of(folder):
    return json.loads((folder / "blessing.json").read_text())


def test_a_version_that_forgot_nothing_is_published_with_its_judgement(shop, make_heads):
    folder = publish(make_heads(), shop, BOTH, bounds=Bounds(0.0, 1.0))
    assert folder == shop / "2" and list(list_versions(shop)) == [1, 2]
    blessing = blessing_of(folder / "assets.extra")
    assert blessing == blessing_of(shop)
    assert blessing["blessed"] and blessing["note"] is None
    assert blessing["compared_with"] == {"version": 1, "label": None}
    assert [(row["task"], row["accuracy"], row["drop"]) for row in blessing["tasks"]] == [
        ("pets", 0.75, 0.0),
        ("fruit", 1.0, 0.0),
    ]
    assert read_manifest(folder)["blessing"] == {"blessed": True, "forced": None}
    check_version(folder)


def test_a_damaged_version_is_refused_by_the_task_that_lost(shop, make_heads):
    with pytest.raises(RefusedError) as caught:
        publish(make_heads(sign=-1.0), shop, BOTH, bounds=Bounds(0.4))
    message = str(caught.value)
    assert message.startswith("Version 2 of 'shop' was not published: task 'pets' lost 0.5000 of ")
    assert "the latest; none is labelled stable" in message and "fruit" not in message
    assert str(shop / "blessing.json") in message
    assert list(list_versions(shop)) == [1]
    blessing = blessing_of(shop)
    assert not blessing["blessed"] and blessing["forced"] is None and blessing["version"] == 2
    # The number is free.
    assert publish(make_heads(), shop, BOTH, bounds=Bounds(0.4)) == shop / "2"


def test_a_damaged_version_is_published_for_a_reason(shop, make_heads):
    options = {"bounds": NO_LOSS, "version": 7, "manifest": {"seed": 3}}
    folder = publish(make_heads(sign=-1.0), shop, BOTH, force="cats are dogs now", **options)
    assert folder == shop / "7"
    blessing = blessing_of(folder / "assets.extra")
    assert (blessing["blessed"], blessing["forced"]) == (False, "cats are dogs now")
    assert len(blessing["refusals"]) == 1
    manifest = read_manifest(folder)
    assert manifest["blessing"] == {"blessed": False, "forced": "cats are dogs now"}
    assert manifest["run"] == {"seed": 3}
    with pytest.raises(UsageError, match="Expected `force` to say why"):
        publish(make_heads(), shop, BOTH, force=" ")


def test_the_first_version_says_that_there_is_nothing_to_compare_it_with(tmp_path, make_heads):
    folder = publish(make_heads(sign=-1.0), tmp_path / "shop", BOTH, bounds=NO_LOSS)
    blessing = blessing_of(tmp_path / "shop")
    assert folder.name == "1" and blessing["blessed"]
    assert "The first version" in blessing["note"] and blessing["compared_with"] is None


def test_the_version_labelled_stable_is_the_one_to_compare_with(shop, models, make_heads):
    shutil.copytree(models / "shop" / "2", shop / "2")  # pets are right once
    config = with_labels(ModelServerConfig(), "shop", shop, {"stable": 1}, {1})
    write_config(shop.parent / "models.config", config)
    with pytest.raises(RefusedError, match=r"from 0.7500 in version 1 \(stable\) to 0.2500"):
        publish(make_heads(sign=-1.0), shop, BOTH, bounds=NO_LOSS)
    # Another configuration has no such label, and version 2 got as few of them right.
    other = shop.parent / "other.config"
    assert publish(make_heads(sign=-1.0), shop, BOTH, bounds=NO_LOSS, config=other) == shop / "3"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("cat dog", "dog cat"),
        ("cat dog", "cat hound"),
        ("cat dog", "kitten puppy"),
        ("dog cat", "hen cat dog"),
    ],
)
def test_classes_are_the_same_by_their_names(tmp_path, before, now):
    """Of three dogs and a cat, a version that says dog has lost half to one that says cat."""

    def publish_one_that_says(answer, classes):
        kinds = [{"cat": 0, "kitten": 0, "hen": 2}.get(name, 1) for name in classes]
        point = keras.Input((2,))
        head = keras.Model(point, keras.layers.Dense(len(classes), use_bias=False)(point))
        head.set_weights([np.full((2, 1), 1.0) * [kind == answer for kind in kinds]])
        labels = np.array([kinds.index(kind) for kind in (1, 0, 1, 1)])
        held_out = [HeldOut("pets", "pets", labels, lambda _: [POINTS])]
        options = {"classes": {"pets": classes}, "bounds": NO_LOSS}
        return publish({"pets": head}, tmp_path / "shop", held_out, **options)

    publish_one_that_says(1, before.split())
    with pytest.raises(RefusedError, match="task 'pets' lost 0.5000 of its accuracy, from 0.7500"):
        publish_one_that_says(0, now.split())


def test_a_version_without_a_task_of_the_stable_one_is_refused(shop, make_heads):
    pets = {"pets": make_heads()["pets"]}
    with pytest.raises(RefusedError, match="task 'fruit', which version 1"):
        publish(pets, shop, held_out("pets"), bounds=NO_LOSS)


def test_a_new_task_has_nothing_to_lose(tmp_path, make_heads):
    heads = make_heads()
    publish({"fruit": heads["fruit"]}, tmp_path / "shop", held_out("fruit"))
    with pytest.raises(RefusedError, match="the new task 'pets' has an accuracy of 0.2500"):
        publish(make_heads(sign=-1.0), tmp_path / "shop", BOTH, bounds=Bounds(0.0, 0.7))
    publish(heads, tmp_path / "shop", BOTH, bounds=Bounds(0.0, 0.7))


def test_a_stable_version_that_is_damaged_is_no_reason_to_publish(shop, make_heads):
    (shop / "1" / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(RefusedError, match="version 1 .*, cannot answer: Expected a complete Sav"):
        publish(make_heads(), shop, BOTH, bounds=NO_LOSS)
    options = {"bounds": NO_LOSS, "force": "1 is damaged"}
    assert publish(make_heads(), shop, BOTH, **options) == shop / "2"
    with pytest.raises(LoadError, match="complete SavedModel"):
        check_version(shop / "1")
    requests = shop / "2" / "assets.extra" / "tf_serving_warmup_requests"
    requests.write_bytes(requests.read_bytes()[:-9])
    with pytest.raises(LoadError, match="_requests' is damaged or cut off, after 7 requests"):
        check_version(shop / "2")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "saved_model.pb").write_bytes(b"\x08"), "complete SavedModel"),
        (lambda folder: shutil.rmtree(folder / "assets.extra"), "the manifest of a version"),
        (lambda f: (f / "assets.extra/tf_serving_warmup_requests").unlink(), "warm-up requests"),
    ],
    ids=["model", "assets.extra", "requests"],
)
def test_a_damaged_version_is_not_taken_for_published(shop, make_heads, damage, message):
    check_published(shop / "1")
    damage(shop / "1")
    assert is_exported(make_heads(), shop / "1")  # its weights are whole
    with pytest.raises(LoadError, match=f"(?s)version 1 .* damaged version.*{message}.*remove its"):
        check_published(shop / "1")


def without(*keys):
    """What takes entries away from the manifest of a version."""

    def damage(folder):
        path = folder / "assets.extra" / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({key: manifest[key] for key in manifest if key not in keys}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("classes", "input", "resize", "weights", "versions", "run"), "manifest to have"),
        (lambda folder: (folder / "assets.extra/blessing.json").unlink(), "judgement in '.*jso"),
        (lambda folder: (folder / "assets.extra/blessing.json").write_text("{}"), "KeyError"),
    ],
    ids=["manifest", "no judgement", "empty judgement"],
)
def test_a_version_without_its_records_is_damaged(
    once_published, tmp_path, make_heads, damage, message
):
    published = shutil.copytree(once_published, tmp_path / "shop") / "2"
    assert is_published(make_heads(), published)
    damage(published)
    with pytest.raises(LoadError, match=f"damaged version.*{message}.*remove its"):
        is_published(make_heads(), published)


def test_a_version_of_the_same_weights_and_other_options_is_not_the_same(shop, make_heads):
    as_it_was = {
        "classes": {"pets": ("cat", "dog")},
        "manifest": {"tasks": ["pets", "fruit"], "command": "keras-mas train a", "seed": 1},
    }
    published = publish(make_heads(), shop, BOTH, **as_it_was)
    assert not is_published(make_heads(), shop / "3", **as_it_was)
    assert not is_published(make_heads(sign=-1.0), published, **as_it_was)
    same = {
        "manifest": as_it_was["manifest"] | {"command": "keras-mas train b", "scenario": "task"}
    }
    assert is_published(make_heads(), published, **as_it_was | same, bounds=NO_LOSS, force="b")
    other = {"resize": "stretch", "manifest": {"tasks": ["pets", "plants"]}}
    with pytest.raises(UsageError) as caught:
        is_published(make_heads(), published, **as_it_was | other)
    assert (
        "Received: one of other options: resize None instead of 'stretch'; tasks ['pets', 'fruit'] "
        "instead of ['pets', 'plants']. A version is never overwritten"
    ) in str(caught.value)
    with pytest.raises(UsageError, match="other options: classes {.*'dog'.* instead of .*'hound'"):
        is_published(make_heads(), published, **as_it_was | {"classes": {"pets": ("cat", "hound")}})


def test_versions_that_vanish_during_an_export_leave_nothing_to_judge_by(shop, make_heads):
    folder = publish(make_heads(), shop, BOTH, version=2, after=[1], bounds=NO_LOSS)
    shutil.rmtree(folder)
    with pytest.raises(ExportError, match="before this one: 2. Received: none, for they have van"):
        publish(make_heads(), shop, BOTH, version=3, after=[1, 2], bounds=NO_LOSS)
    shutil.rmtree(shop)
    with pytest.raises(ExportError, match="one: 1, 2. Received: none, for that folder has vanish"):
        publish(make_heads(), shop, BOTH, version=3, after=[1, 2], bounds=NO_LOSS)
    assert not shop.exists()


def test_why_a_version_cannot_be_compared_with_is_one_sentence(shop, make_heads):
    weights = shop / "1" / "variables" / "variables.data-00000-of-00001"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(RefusedError, match="OutOfRangeError: Read less bytes than requ") as caught:
        publish(make_heads(), shop, BOTH, bounds=NO_LOSS)
    assert "\n" not in str(caught.value) and "{{node" not in str(caught.value)


def test_a_model_that_answers_otherwise_than_keras_is_not_published(tmp_path):
    class Eager(keras.layers.Layer):
        def call(self, x):
            return x if tf.executing_eagerly() else x + [[1.0, 0.0]]

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Eager()(inputs))
    with pytest.raises(ExportError, match="another 'probabilities' from the signature 'pets' than"):
        publish({"pets": model}, tmp_path / "shop", held_out("pets"))
    assert list_versions(tmp_path / "shop") == {}


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "Expected held-out examples of one task at least. Received: none"),
        (held_out("none"), "Expected held-out examples of one task at least. Received: none"),
        (held_out("pets"), "of these heads: 'pets', 'fruit'. Received: 'pets'."),
        (
            [HeldOut("cats", "cats", PETS, lambda _: [POINTS]), *BOTH],
            "Received: 'cats', 'pets', 'fruit'",
        ),
        ([*BOTH, *BOTH], "Received: those of 'pets' 2 times. Join them"),
    ],
)
def test_every_head_needs_held_out_examples(tmp_path, make_heads, examples, message):
    with pytest.raises(UsageError) as caught:
        publish(make_heads(), tmp_path / "shop", examples)
    assert message in str(caught.value) and not (tmp_path / "shop").exists()


def test_a_model_alone_is_no_mapping_of_tasks(tmp_path, make_heads):
    with pytest.raises(UsageError, match="mapping from task name to model, with .* Functional"):
        publish(make_heads()["pets"], tmp_path / "shop", held_out("pets"))


@pytest.mark.parametrize(
    ("labels", "batches", "message"),
    [
        (PETS + 1, [POINTS], "from 0 to 1, for 'pets' has 2. Received: 2 among them"),
        (-PETS, [POINTS], "Received: -1 among them"),
        (np.array(["dog", "cat"])[PETS], [POINTS], "Received: 'cat' among them"),
        (np.eye(2)[PETS], [POINTS], "Received: an array of shape [4, 2]"),
        (PETS[:, None], [POINTS], "Received: an array of shape [4, 1]"),
        (PETS[:1], [POINTS], "Expected 1 held-out examples of 'pets' from `batches`"),
        (PETS, [POINTS[:3]], "one for each label. Received: 3."),
        (PETS, None, "`batches` of 'pets' to be a function from a batch size to"),
    ],
)
def test_labels_that_are_not_those_of_the_examples_are_refused(
    tmp_path, make_heads, labels, batches, message
):
    examples = HeldOut("pets", "pets", labels, batches and (lambda _: batches))
    with pytest.raises(UsageError) as caught:
        publish({"pets": make_heads()["pets"]}, tmp_path / "shop", [examples])
    assert message in str(caught.value) and list_versions(tmp_path / "shop") == {}


def test_held_out_examples_may_be_tensors_of_a_dataset(tmp_path, make_heads):
    batches = tf.data.Dataset.from_tensor_slices(POINTS.astype(np.float64)).batch
    examples = [HeldOut("pets", "pets", PETS.astype(np.float32), batches)]
    folder = publish({"pets": make_heads()["pets"]}, tmp_path / "shop", examples)
    [row] = blessing_of(folder / "assets.extra")["tasks"]
    assert (row["examples"], row["accuracy"]) == (4, 0.75)


def test_a_task_without_examples_is_published_unmeasured(tmp_path, make_heads):
    without = [HeldOut(name, name, PETS[:0], lambda _: iter([])) for name in ("pets", "fruit")]
    folder = publish(make_heads(), tmp_path / "shop", without, examples=POINTS)
    blessing = blessing_of(folder / "assets.extra")
    assert blessing["note"] == (
        "The first version: there is nothing to compare it with. 'pets', 'fruit' were not "
        "measured, since there are no examples of them."
    )
    folder = publish(make_heads(), tmp_path / "shop", [without[0], BOTH[1]])
    blessing = blessing_of(folder / "assets.extra")
    assert [row["accuracy"] for row in blessing["tasks"]] == [None, 1.0]
    assert blessing["note"] == "'pets' was not measured, since there are no examples of it."


@pytest.fixture
def photos():
    """A head for images, and pixels to ask it about."""
    image = keras.Input((2, 2, 3))
    corner = keras.layers.Reshape([3])(keras.layers.Cropping2D(((0, 1), (0, 1)))(image))
    model = keras.Model(image, keras.layers.Rescaling(0.01)(corner))
    pixels = np.random.default_rng(0).integers(0, 256, [5, 2, 2, 3]).astype(np.uint8)
    return {"colour": model}, pixels


def colours(pixels):
    return [HeldOut("colour", "colour", np.zeros(len(pixels), int), lambda _: [pixels])]


@pytest.mark.slow
def test_images_are_answered_alike_as_pixels_files_and_examples(tmp_path, photos):
    heads, pixels = photos
    folder = publish(heads, tmp_path / "photos", colours(pixels), resize="crop")
    assert set(LoadedVersion(folder).signatures) >= {"encoded", "examples"}


def test_pixels_that_no_file_can_hold_are_refused(tmp_path, photos):
    heads, pixels = photos
    with pytest.raises(UsageError, match="whole numbers from 0 to 255"):
        publish(heads, tmp_path / "photos", colours(pixels / 2), resize="crop")
    assert list_versions(tmp_path / "photos") == {}


def test_what_a_killed_publisher_left_is_removed_by_the_next_one(shop):
    (shop / ".tmp-2-0123abcd" / "variables").mkdir(parents=True)
    (shop / ".tmp-blessing.json-0123abcd").touch()
    with new_version(shop / "2") as unfinished:
        (unfinished / "saved_model.pb").touch()
        assert [path.name for path in shop.glob(".tmp-*")] == [unfinished.name]
    assert list(list_versions(shop)) == [1, 2] and list(shop.glob(".tmp-*")) == []


def test_a_removed_version_disappears_at_once(shop, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "shutil.rmtree", lambda path: seen.append((path.name, *list_versions(shop)))
    )
    remove_versions(shop, [1, 5])
    assert seen == [(".tmp-removed-1",)]


def test_of_a_version_that_is_a_link_the_link_is_removed(shop):
    (shop / "2").symlink_to("1")
    remove_versions(shop, [2])
    assert list(list_versions(shop)) == [1] and (shop / "1/saved_model.pb").exists()
    with new_version(shop / "2") as unfinished:
        (unfinished / "saved_model.pb").touch()
    assert list(list_versions(shop)) == [1, 2]


TAKE_NUMBERS = """
import sys, warnings
from pathlib import Path
from keras_mas.errors import UsageError
from keras_mas.serving.paths import list_versions, new_version

warnings.simplefilter("ignore")
base = Path(sys.argv[1])
for _ in range(5):
    published = False
    while not published:
        number = max(list_versions(base), default=0) + 1
        try:
            with new_version(base / str(number)) as unfinished:
                (unfinished / "saved_model.pb").write_text("whole")
            published = True
        except UsageError:
            pass
    print(number)
"""


def test_publishers_take_different_numbers(tmp_path):
    command = [sys.executable, "-c", TAKE_NUMBERS, tmp_path / "shop"]
    publishers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    numbers = [int(line) for each in publishers for line in each.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 16)) == list(list_versions(tmp_path / "shop"))


def test_the_second_of_two_publishers_takes_the_next_number(shop, make_heads, monkeypatch):
    seen = list_versions(shop)
    # What this process knew before it waited for its turn.
    lists = iter([{}, seen])
    monkeypatch.setattr(
        "keras_mas.serving.publish.list_versions", lambda path: next(lists, list_versions(path))
    )
    assert publish(make_heads(), shop, BOTH) == shop / "2"


def test_a_full_disk_leaves_what_is_there(shop, make_heads, monkeypatch):
    def fill(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", fill)
    said = "No space left on device. Version 2 was not published.$"
    with pytest.raises(ExportError, match=said):
        publish(make_heads(), shop, BOTH)
    with pytest.raises(ExportError, match=r"2 was not published. What .* before stays: version 1."):
        publish(make_heads(), shop, BOTH, after=[1])
    assert list(list_versions(shop)) == [1] and list(shop.glob(".tmp-*")) == []


def test_answers_are_compared_before_the_judgement(shop, make_heads, monkeypatch):
    monkeypatch.setattr(export, "different_answer", lambda *_: "another answer")
    with pytest.raises(ExportError, match="answer 8 examples as the Keras model does"):
        publish(make_heads(), shop, BOTH)
    assert not (shop / "blessing.json").exists()
