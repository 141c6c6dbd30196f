"""TFDS without a network: sets prepared here, and one that is downloaded from this machine."""

import hashlib
import http.server
import importlib
import itertools
import os
import socket
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.tasks import DataError, cache, datasets, load_tasks
from keras_mas.training.tasks.errors import BrokenFileError
from keras_mas.training.tasks.images import ImageSize
from keras_mas.training.tasks.store import Store

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def prepare(tmp_path):
    """Prepare a TFDS set as someone else would have left it: files, and no code that made them."""

    def store(features, **splits):
        spec = features.get_tensor_spec()
        tfds.dataset_builders.store_as_tfds_dataset(
            name="pets",
            version="1.0.0",
            features=features,
            split_datasets={
                name: tf.data.Dataset.from_generator(partial(iter, examples), output_signature=spec)
                for name, examples in splits.items()
            },
            data_dir=tmp_path,
        )

    return store


def image_features(shape=(None, None, 3)):
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )


def images(*shapes):
    """One-coloured images whose shade is their position, cats and dogs in turn."""
    return [
        {"image": np.full(shape, i, np.uint8), "label": i % 2} for i, shape in enumerate(shapes)
    ]


def read(tmp_path, image_size=None):
    size = ImageSize(image_size) if image_size else None
    return datasets.read_tfds("pets", size, tmp_path)


# What is prepared.


def test_images_of_one_size(prepare, tmp_path):
    prepare(image_features(), train=images(*[(4, 6, 3)] * 6), test=images(*[(4, 6, 3)] * 2))
    source = read(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.train.inputs.shape == (6, 4, 6, 3)
    assert source.train.inputs.dtype == np.uint8
    # TFDS shuffles when it prepares; the shade says which example is which.
    np.testing.assert_array_equal(source.train.inputs[:, 0, 0, 0] % 2, source.train.labels)
    assert source.validation is None


@pytest.mark.parametrize("shape", [(None, None, 3), (4, 4, 3), (4, 4, 1)])
def test_images_are_brought_to_one_size(prepare, tmp_path, shape):
    channels = shape[-1]
    sizes = [(4, 4, channels)] * 4 if shape[0] else [(4, 6, 3), (9, 2, 3), (8, 8, 3), (5, 5, 3)]
    prepare(image_features(shape), train=images(*sizes), test=images(*sizes))
    source = read(tmp_path, image_size=8)
    assert source.train.inputs.shape == (4, 8, 8, channels)
    np.testing.assert_array_equal(source.train.inputs.mean(axis=(1, 2, 3)) % 2, source.train.labels)


def test_images_keep_their_aspect_ratio(prepare, tmp_path):
    # Bright columns on both sides of a 4x8 image are cut off, and its square middle is dark.
    wide = np.full((4, 8, 3), 200, np.uint8)
    wide[:, 2:6] = 0
    rows = [{"image": wide, "label": 0}]
    prepare(image_features(), train=rows, test=rows)
    assert read(tmp_path, image_size=4).train.inputs.max() == 0
    stretched = datasets.read_tfds("pets", ImageSize(4, "stretch"), tmp_path).train.inputs
    assert stretched[0, :, 0].min() > 150


def test_images_that_do_not_fit_into_memory(prepare, tmp_path):
    prepare(image_features(), train=images((4, 6, 3)), test=images((4, 6, 3)))
    with pytest.raises(UsageError, match="one input of split 'train' of .*3.0 TB.*`image_size`"):
        read(tmp_path, image_size=1_000_000)


def test_images_of_several_sizes_need_image_size(prepare, tmp_path):
    prepare(image_features(), train=images((4, 6, 3), (5, 5, 3)), test=images((4, 6, 3)))
    with pytest.raises(UsageError, match="split 'train' of 'pets'.*Set `image_size`"):
        read(tmp_path)


# Small memory.


@pytest.mark.parametrize("image_size", [None, 4, 8])
def test_images_on_disk_are_those_in_memory(prepare, tmp_path, image_size):
    prepare(image_features((4, 4, 3)), train=images(*[(4, 4, 3)] * 7), test=images((4, 4, 3)))
    size = ImageSize(image_size) if image_size else None
    in_memory = read(tmp_path, image_size)
    stores = [Store(300, tmp_path / "cache") for _ in range(2)]
    for store in stores:
        on_disk = datasets.read_tfds("pets", size, tmp_path, store)
        assert (in_memory.train.in_memory, on_disk.train.in_memory) == (True, False)
        np.testing.assert_array_equal(on_disk.train.inputs, in_memory.train.inputs)
        np.testing.assert_array_equal(on_disk.train.labels, in_memory.train.labels)
        assert on_disk.train.fingerprint == in_memory.train.fingerprint
    assert in_memory.train.fingerprint != in_memory.test.fingerprint


def test_features_on_disk_are_those_in_memory(prepare, tmp_path):
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Tensor(shape=(2,), dtype=np.float64), "label": np.int64}
    )
    rows = [{"image": np.array([i, 0.5]), "label": i % 2} for i in range(40)]
    prepare(features, train=rows, test=rows[:3])
    in_memory = read(tmp_path)
    on_disk = datasets.read_tfds("pets", None, tmp_path, Store(64, tmp_path / "cache"))
    assert not on_disk.train.in_memory
    np.testing.assert_array_equal(on_disk.train.inputs, in_memory.train.inputs)
    np.testing.assert_array_equal(on_disk.train.labels, in_memory.train.labels)


def test_a_feature_on_disk_that_is_no_number_is_named(prepare, tmp_path):
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Tensor(shape=(2,), dtype=np.float32), "label": np.int64}
    )
    rows = [{"image": np.array([1, np.nan], np.float32), "label": 0}] * 9
    prepare(features, train=rows, test=rows)
    with pytest.raises(DataError, match="finite.*example 0 of split 'train'"):
        datasets.read_tfds("pets", None, tmp_path, Store(64, tmp_path / "cache"))


def test_a_killed_preparation_goes_on_where_it_was(prepare, tmp_path, monkeypatch):
    prepare(image_features(), train=images(*[(4, 6, 3)] * 9), test=images((4, 6, 3)))
    monkeypatch.setattr(cache, "SHARD_BYTES", 2 * 48)
    decode, decoded = datasets._decode_image, []

    def note(name, *args):
        decoded.append(name)
        if fails and name.startswith("example 7"):
            raise KeyboardInterrupt
        return decode(name, *args)

    monkeypatch.setattr(datasets, "_decode_image", note)
    for fails in (True, False):
        decoded.clear()
        try:
            source = datasets.read_tfds(
                "pets", ImageSize(4), tmp_path, Store(100, tmp_path / "cache")
            )
        except KeyboardInterrupt:
            assert fails
    assert min(decoded) == "example 0 of split 'test' of 'pets'"
    assert sorted(name[8] for name in decoded if "train" in name) == ["6", "7", "8"]
    np.testing.assert_array_equal(source.train.inputs[:, 0, 0, 0] % 2, source.train.labels)


@pytest.mark.parametrize("name", ["val", "validation"])
def test_own_validation_split(prepare, tmp_path, name):
    some = images(*[(4, 4, 3)] * 2)
    prepare(image_features(), train=some, test=some, **{name: images(*[(4, 4, 3)] * 3)})
    assert len(read(tmp_path).validation) == 3


def test_features_that_are_no_images(prepare, tmp_path):
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Tensor(shape=(2,), dtype=np.float64), "label": np.int64}
    )
    rows = [{"image": np.array([i, 0.5]), "label": i % 2} for i in range(4)]
    prepare(features, train=rows, test=rows)
    source = read(tmp_path, image_size=8)
    assert source.classes == ("0", "1")
    assert source.train.inputs.shape == (4, 2)
    assert source.train.inputs.dtype == np.float32


def test_missing_split(prepare, tmp_path):
    prepare(image_features(), train=images((4, 4, 3)), extra=images((4, 4, 3)))
    with pytest.raises(
        DataError, match="none in 'test' of .*'pets', whose splits are 'train', 'extra'"
    ):
        read(tmp_path)


def test_share_of_the_training_data_in_place_of_a_missing_split(prepare, tmp_path):
    prepare(image_features(), train=images(*[(4, 4, 3)] * 20))
    source = datasets.read_tfds("pets", None, tmp_path, test_fraction=0.3)
    assert np.bincount(source.train.labels).tolist() == [7, 7]
    assert np.bincount(source.test.labels).tolist() == [3, 3]
    shades = [set(split.inputs[:, 0, 0, 0]) for split in (source.train, source.test)]
    assert not shades[0] & shades[1]
    with pytest.raises(DataError, match="give its share of the training data with `test_fraction`"):
        datasets.read_tfds("pets", None, tmp_path)


def test_share_of_the_training_data_beside_test_data(prepare, tmp_path):
    prepare(image_features(), train=images((4, 4, 3)), test=images((4, 4, 3)))
    with pytest.raises(UsageError, match="no `test_fraction` .*0.3 for .*'pets'"):
        datasets.read_tfds("pets", None, tmp_path, test_fraction=0.3)


def test_a_set_is_divided_into_tasks_by_its_name(prepare, tmp_path):
    prepare(image_features(), train=images(*[(4, 4, 3)] * 20))
    text = 'name = "p"\nscenario = "class"\ntfds = "pets"\ntasks = 2\ntest_fraction = 0.3\n'
    (tmp_path / "p.toml").write_text(text + "image_size = 2\n")
    stream = load_tasks(tmp_path / "p.toml", data_dir=tmp_path)
    assert [task.classes for task in stream.tasks] == [("cat",), ("dog",)]
    assert stream.input_shape == (2, 2, 3)


def test_empty_split():
    # TFDS itself refuses to prepare one, but others may have prepared it.
    splits = {"train": SimpleNamespace(num_examples=1), "test": SimpleNamespace(num_examples=0)}
    with pytest.raises(DataError, match="none in 'test' of .*'pets'"):
        datasets._require_splits(SimpleNamespace(splits=splits), "pets", None)


def test_set_without_labels(prepare, tmp_path):
    features = tfds.features.FeaturesDict({"text": np.int64, "label": np.int64})
    rows = [{"text": 0, "label": 0}]
    prepare(features, train=rows, test=rows)
    with pytest.raises(UsageError, match="inputs and labels. Received: the features.*'text'"):
        read(tmp_path)


def test_toml_task_from_tfds(prepare, tmp_path):
    prepare(image_features(), train=images(*[(4, 6, 3)] * 8), test=images(*[(4, 6, 3)] * 2))
    path = tmp_path / "shop.toml"
    path.write_text(
        'name = "shop"\nimage_size = 8\n[[task]]\nname = "a"\ntfds = "pets"\n'
        'classes = ["dog", "cat"]'
    )
    stream = load_tasks(path, data_dir=tmp_path)
    assert stream.input_shape == (8, 8, 3)
    assert stream.rescale == (1 / 255, 0.0)
    assert stream.tasks[0].classes == ("dog", "cat")
    assert sorted(stream.tasks[0].test.labels) == [0, 1]


def test_reading_is_silent(prepare, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(datasets, "_answers", lambda url: False)
    prepare(image_features(), train=images((4, 4, 3)), test=images((4, 4, 3)))
    capsys.readouterr()
    caplog.clear()
    with pytest.raises(DataError, match="fashion_mnist"):  # TFDS remarks on the missing folder
        datasets.read_tfds("fashion_mnist", None, tmp_path)
    read(tmp_path)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


# What is not.


def test_unknown_set(tmp_path):
    with pytest.raises(UsageError, match="tfds = 'fashion_mnits'.*Did you mean 'fashion_mnist'"):
        datasets.read_tfds("fashion_mnits", None, tmp_path)


@pytest.mark.parametrize("name", ["two words", "mnist/no_such_config", "mnist:9.9.9"])
def test_name_that_tfds_does_not_take(tmp_path, name):
    with pytest.raises(UsageError, match=f"name that TFDS accepts.*tfds = '{name}'"):
        datasets.read_tfds(name, None, tmp_path)


@pytest.fixture
def silent_host():
    """The address of a host that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """Make a builder, unique to the test, of a set that is downloaded from a given address."""

    def make(address, archive=b""):
        name = f"letters{next(_NUMBERS)}"  # TFDS keeps every builder it has seen
        folder = tmp_path / "builders" / name
        folder.mkdir(parents=True)
        if archive is not None:
            checksum = hashlib.sha256(archive).hexdigest()
            (folder / "checksums.tsv").write_text(
                f"{address}/letters.npy\t{len(archive)}\t{checksum}\tletters.npy\n"
            )
        (folder / "__init__.py").write_text(
            BUILDER.format(class_name=name.capitalize(), address=address)
        )
        monkeypatch.syspath_prepend(folder.parent)
        importlib.import_module(name)
        return name

    return make


_NUMBERS = itertools.count()
BUILDER = '''
import numpy as np
import tensorflow_datasets as tfds


class {class_name}(tfds.core.GeneratorBasedBuilder):
    """Sixteen vectors in a file."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {{
                    "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                    "letter": tfds.features.ClassLabel(names=["a", "b"]),
                }}
            ),
            supervised_keys=("vector", "letter"),
        )

    def _split_generators(self, dl_manager):
        path = dl_manager.download("{address}/letters.npy")
        return {{"train": self._generate_examples(path), "test": self._generate_examples(path)}}

    def _generate_examples(self, path):
        for number, vector in enumerate(np.load(path)):
            yield number, {{"vector": vector, "letter": number % 2}}
'''


def test_host_that_does_not_answer_is_given_up_soon(letters, silent_host, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "PROBE_SECONDS", 0.2)
    name = letters(silent_host)
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        datasets.read_tfds(name, None, tmp_path / "data")
    assert time.perf_counter() - start < 2
    for fact in [name, "'127.0.0.1' within 0.2 seconds", str(tmp_path / "data"), "TFDS_DATA_DIR"]:
        assert fact in str(error.value)


def test_name_that_takes_forever_to_look_up_is_given_up_soon(monkeypatch):
    # requests' time-out begins only after the look-up.
    monkeypatch.setattr(datasets, "PROBE_SECONDS", 0.2)
    released = threading.Event()

    def look_up(*args, **kwargs):
        released.wait(5)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    start = time.perf_counter()
    assert not datasets._answers("http://slow-to-look-up.invalid")
    released.set()
    assert time.perf_counter() - start < 2


def test_host_that_does_not_exist_is_given_up_soon(letters, tmp_path):
    name = letters("http://no-such-host.invalid")
    with pytest.raises(DataError, match="no answer from 'no-such-host.invalid'"):
        datasets.read_tfds(name, None, tmp_path / "data")


@pytest.fixture
def vectors(tmp_path):
    """A file of 16 vectors, and the address that serves it."""
    folder = tmp_path / "www"
    folder.mkdir()
    np.save(folder / "letters.npy", np.arange(32, dtype=np.float32).reshape(16, 2))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder / "letters.npy", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_set_is_downloaded_once_where_there_is_a_network(
    letters, vectors, tmp_path, monkeypatch, capfd
):
    path, address = vectors
    name = letters(address, path.read_bytes())
    first = datasets.read_tfds(name, None, tmp_path / "data")
    monkeypatch.setattr(datasets, "_answers", lambda url: False)
    second = datasets.read_tfds(name, None, tmp_path / "data")
    for source in (first, second):
        assert source.classes == ("a", "b")
        assert sorted(source.train.inputs[:, 0]) == list(range(0, 32, 2))
    assert capfd.readouterr().out == ""


def test_download_that_fails_says_why(letters, vectors, tmp_path):
    path, address = vectors
    name = letters(address, b"another file")
    with pytest.raises(DataError, match=f"'{name}' to download and prepare. Received: .*hecksum"):
        datasets.read_tfds(name, None, tmp_path / "data")


def test_set_whose_addresses_are_not_listed_is_tried_all_the_same(letters, vectors, tmp_path):
    _, address = vectors
    name = letters(address, archive=None)
    assert len(datasets.read_tfds(name, None, tmp_path / "data").train) == 16


def test_archive_that_was_put_in_place_needs_no_network(letters, vectors, tmp_path):
    path, _ = vectors
    name = letters("http://no-such-host.invalid", path.read_bytes())
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    path.rename(manual / "letters.npy")
    assert len(datasets.read_tfds(name, None, tmp_path / "data").train) == 16


needs_flowers = pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", ""), "flowers102_64").is_dir(),
    reason="needs the prepared set flowers102_64 in TFDS_DATA_DIR",
)


@needs_flowers
def test_real_flowers():
    source = datasets.read_tfds("flowers102_64", None, None)
    assert len(source.classes) == 102
    assert source.train.inputs.shape == (1020, 64, 64, 3)
    assert np.bincount(source.validation.labels).tolist() == [10] * 102


def test_values_are_fetched_many_at_a_time_until_they_cannot_be():
    import tensorflow as tf

    def check(number):
        tf.debugging.assert_less(number, tf.constant(20, tf.int64))
        return tf.range(number % 2 if number > 17 else tf.constant(2, tf.int64))

    dataset = tf.data.Dataset.range(40).map(check)
    values = datasets._one_by_one(dataset)
    # The second sixteen differ in length and have one that cannot be read.
    assert [len(next(values)) for _ in range(20)] == [2] * 18 + [0, 1]
    with pytest.raises(tf.errors.InvalidArgumentError):
        next(values)


@pytest.mark.parametrize(
    ("kind", "is_broken"),
    [(tf.errors.InvalidArgumentError, True), (tf.errors.ResourceExhaustedError, False)],
)
def test_an_image_is_broken_by_its_content_and_not_by_a_lack_of_memory(kind, is_broken):
    def fail(content):
        raise kind(None, None, "a reason")

    feature = SimpleNamespace(decode_example=fail)
    with pytest.raises(DataError, match="example 3.*a reason") as found:
        datasets._decode_image("example 3", b"", feature, None)
    assert isinstance(found.value, BrokenFileError) == is_broken
