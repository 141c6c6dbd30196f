"""Data sets with labels from TensorFlow Datasets (TFDS)."""

import contextlib
import itertools
import sys
import threading
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from keras_mas.errors import UsageError
from keras_mas.logs import quiet

from ..wording import did_you_mean, one_of
from . import builders
from .encoded import Encoded, Example
from .errors import BrokenFileError, DataError
from .images import DECODING_VERSION, ImageSize, resized
from .inputs import Row, digest
from .source import VALIDATION_NAMES, Source, divided, numbered_classes
from .store import Store
from .stream import Split, checked_labels, checked_split, standard_inputs

PROBE_SECONDS = 3.0
_AT_A_TIME = 16  # photographs of some megabytes each fit


def read_tfds(
    name: str,
    image_size: ImageSize | None,
    data_dir: str | Path | None,
    store: Store | None = None,
    test_fraction: float | None = None,
) -> Source:
    """Read the splits `train`, `test` and, if there, `validation` or `val` of a TFDS data set.

    A data set that is prepared on disk is read without a network, even if TFDS has no builder of
    its name. Otherwise it is downloaded and prepared, provided that its hosts answer.

    Args:
        name: As `tfds.builder` takes it: `"mnist"`, `"mnist:3.0.1"`, `"emnist/letters"`.
        image_size: Size to bring images to; None if they all have one size. Features other than
            images are unchanged.
        data_dir: Directory of prepared data; None for the environment variable `TFDS_DATA_DIR`,
            else `~/tensorflow_datasets`.
        store: Where decoded inputs are kept; None for one with default settings.
        test_fraction: Share of each class in the split `train` that becomes test data, for a data
            set without a split `test`; None if it has one.

    Returns:
        The source, with the class names of the data set's label feature.

    Raises:
        UsageError: If there is no such data set, it has no pair of an input and a label,
            `image_size` is None and the images differ in size, or there is no room for them.
        DataError: If the data set is not prepared and cannot be downloaded, lacks a split, or holds
            arrays that do not make a split; see `checked_split`.
    """
    with quiet():
        builder = _find(name, data_dir)
        _prepare(builder, name)
        _require_splits(builder.info, name, test_fraction)
        keys = _keys(builder.info, name)

        def read(split):
            return _read_split(builder, split, keys, image_size, store or Store())

        own = [split for split in VALIDATION_NAMES if split in builder.info.splits]
        train = read("train")
        classes = _class_names(builder.info.features[keys[1]], train, f"TFDS data set '{name}'")
        train, test = divided(train, test_fraction) if test_fraction else (train, read("test"))
        return Source(
            classes=classes,
            train=train,
            test=test,
            validation=read(own[0]) if own else None,
        )


def _find(name, data_dir):
    import tensorflow_datasets as tfds

    builders.register(name)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        # Community data sets are listed over the network, which may be unavailable.
        known = [*tfds.list_builders(with_community_datasets=False), *builders.names()]
        raise UsageError(
            "Expected a data set that TFDS knows or that is prepared in its data directory. "
            f"Received: tfds = {name!r}.{did_you_mean(name, known)}"
        ) from error
    except (ValueError, AssertionError, ImportError) as error:  # syntax, configuration, version
        raise UsageError(
            f"Expected a name that TFDS accepts, such as 'mnist' or 'emnist/letters'. Received: "
            f"tfds = {name!r} ({_first_line(error)})."
        ) from error


def _prepare(builder, name):
    """Download and prepare the data set if it is not on disk.

    Without a network, TFDS retries for minutes, so the hosts are contacted first.
    """
    if builder.is_prepared():
        return
    for url in _urls_to_download(builder):
        if not _answers(url):
            raise DataError(
                f"Expected the TFDS data set '{name}' on disk, or a network to download it. "
                f"Received: nothing prepared in '{builder.data_dir}', and no answer from "
                f"'{urlsplit(url).hostname}' within {PROBE_SECONDS:g} seconds. Set TFDS_DATA_DIR "
                "to a directory where the data set is prepared, or prepare it once where there is "
                f"a network.{_by_hand(builder)}"
            )
    _download(builder, name)


def _urls_to_download(builder):
    """Return a URL for each host, without archives that the user has placed in TFDS's folder."""
    folder = _manual_folder(builder)
    wanted = [url for url, name in _files(builder).items() if not (folder / name).exists()]
    return {urlsplit(url).hostname: url for url in wanted}.values()


def _files(builder):
    """Return the name of the file at each URL that the data set is made of, if they are listed."""
    if hasattr(builder, "URLS"):  # one of our own
        return {url: url.rsplit("/", 1)[1] for url in builder.URLS.values()}
    return {url: info.filename for url, info in (builder.url_infos or {}).items()}


def _manual_folder(builder):
    return Path(builder.data_dir_root) / "downloads" / "manual"


def _by_hand(builder):
    """Return a sentence on how to do without the download, if the files are known."""
    files = one_of(_files(builder).values())
    folder = _manual_folder(builder)
    return f" Files in '{folder}' are taken from there: {files}." if files else ""


def _answers(url):
    """Return whether the host answers in time, with any status, through a proxy if one is set."""
    import requests

    outcome = []

    def ask():
        try:
            requests.head(url, timeout=PROBE_SECONDS)
        except (requests.ConnectionError, requests.Timeout):
            return
        except requests.RequestException:
            pass  # not a network failure (such as a scheme unknown to requests): let TFDS try
        outcome.append(True)

    # In a thread, because requests' timeout does not cover the host name's look-up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(outcome)


def _download(builder, name):
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):  # TFDS prints its progress to stdout
            builder.download_and_prepare()
    except Exception as error:  # network, checksum, disk, a missing package: builders differ
        raise DataError(
            f"Expected the TFDS data set '{name}' to download and prepare. Received: "
            f"{_first_line(error)}. Try again later, or prepare it elsewhere and set TFDS_DATA_DIR "
            f"to the directory that holds it.{_by_hand(builder)}"
        ) from error


def _keys(info, name):
    """Return the names of the input and the label feature; "image" and "label" by default."""
    keys = info.supervised_keys or ("image", "label")
    if len(keys) == 2 and all(isinstance(key, str) and key in info.features for key in keys):
        return keys
    raise UsageError(
        "Expected a data set of inputs and labels. Received: the features "
        f"{one_of(info.features)} in the TFDS data set '{name}'. Convert it to an .npz file of "
        "x_train y_train x_test y_test, and use the key `npz`."
    )


def _require_splits(info, name, test_fraction):
    there = [split for split, found in info.splits.items() if found.num_examples]
    if test_fraction and "test" in there:
        raise UsageError(
            "Expected no `test_fraction` for a data set with test data. Received: test_fraction = "
            f"{test_fraction:g} for the TFDS data set '{name}', which has a split 'test'. Remove "
            "the key."
        )
    missing = [split for split in ("train", "test") if split not in there]
    if missing and not (test_fraction and missing == ["test"]):
        raise DataError(
            f"Expected examples in the splits 'train' and 'test'. Received: none in "
            f"{one_of(missing)} of the TFDS data set '{name}', whose splits are "
            f"{one_of(info.splits)}. Where only 'test' is missing, give its share of the training "
            "data with `test_fraction`; else divide it yourself into an .npz file or folders."
        )


def _read_split(builder, split, keys, image_size, store):
    where = f"split '{split}' of the TFDS data set '{builder.name}'"
    feature, count = builder.info.features[keys[0]], builder.info.splits[split].num_examples
    row = _fixed_row(feature, image_size)
    # Of what has one size as it is, batches are read, which is many times as fast.
    fits = store.reserve(count * row.nbytes) if row is not None else not _is_image(feature)
    if fits:
        inputs, labels = _read_batch(builder, split, keys, count)
        fingerprint = _fingerprint(builder, split, keys[0], image_size)
        return checked_split(inputs, labels, where, fingerprint)
    inputs, rows = store.keep(_encoded(builder, split, keys[0], image_size))
    labels, _ = store.keep(_encoded(builder, split, keys[1], None), inputs.in_memory)
    labels = checked_labels(labels.read(np.arange(count)), where)
    return Split(inputs, labels).take(rows)


def _fingerprint(builder, split, key, image_size):
    """Return a hash of what TFDS knows of a feature in a split, and of its files."""
    info = builder.info
    files = info.splits[split]
    status = ((path.name, path.stat()) for path in map(Path, sorted(files.filepaths)))
    listing = ((name, found.st_size, found.st_mtime_ns) for name, found in status)
    return digest(
        "tfds", DECODING_VERSION, image_size, info.full_name, info.features, key, split, *listing
    )


def _fixed_row(feature, image_size):
    """Return type and shape of an input, if the feature says them and no image is resized."""
    if not isinstance(feature.shape, tuple) or None in feature.shape:
        return None
    dtype = np.dtype(feature.np_dtype)
    if dtype.kind not in "uf":
        return None
    if _is_image(feature) and image_size and feature.shape[:2] != (image_size.side,) * 2:
        return None
    return Row(dtype, feature.shape)


def _is_image(feature):
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Image)


def _read_batch(builder, split, keys, count):
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(split=split).map(lambda example: [example[key] for key in keys])
    return next(iter(tfds.as_numpy(dataset.batch(count))))


def _encoded(builder, split, key, image_size) -> Encoded:
    """Return one feature of a split, its images not decoded yet."""
    import tensorflow_datasets as tfds

    feature = builder.info.features[key]
    decoders = {key: tfds.decode.SkipDecoding()} if _is_image(feature) else None
    decode = _decode_image if _is_image(feature) else _standard

    def examples(first):
        dataset = builder.as_dataset(
            split=split, decoders=tfds.decode.PartialDecoding({key: feature}, decoders)
        )
        values = _one_by_one(dataset.skip(first).map(lambda example: example[key]))
        for number in itertools.count(first):
            name = f"example {number} of split '{split}' of '{builder.name}'"
            with _naming_example(name):
                value = next(values, None)
            if value is None:
                return
            yield Example(name, partial(decode, name, value, feature, image_size))

    return Encoded(
        where=f"split '{split}' of the TFDS data set '{builder.name}'",
        count=builder.info.splits[split].num_examples,
        fingerprint=_fingerprint(builder, split, key, image_size),
        examples=examples,
        row=_resized_row(feature, image_size),
    )


def _one_by_one(dataset):
    """Yield the values of a data set, fetched many at a time, which is several times as fast."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    count = 0
    # Values of different shapes cannot be batched, and of a batch one cannot be read.
    with contextlib.suppress(tf.errors.OpError):
        for batch in tfds.as_numpy(dataset.batch(_AT_A_TIME)):
            yield from batch
            count += len(batch)
        return
    yield from tfds.as_numpy(dataset.skip(count))


def _resized_row(feature, image_size):
    """Return type and shape of resized images; None for anything else."""
    if image_size is None or not _is_image(feature) or feature.shape[-1] is None:
        return None
    return Row(np.dtype(np.uint8), (image_size.side, image_size.side, feature.shape[-1]))


@contextlib.contextmanager
def _naming_example(name):
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise DataError(
            f"Expected data that can be read to their end. Received: {name}, on which TensorFlow "
            f"said: {_first_line(error)}. Prepare the data set again."
        ) from error


def _decode_image(name, content, feature, image_size):
    import tensorflow as tf

    with _naming_example(name):  # a machine without memory says nothing of the content
        try:
            image = feature.decode_example(content).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise BrokenFileError(f"{name} ({_first_line(error)})") from error
    return standard_inputs(resized(name, image, image_size)[np.newaxis], name)[0]


def _standard(name, value, feature, image_size):
    """Return features as inputs are stored, and labels as they are."""
    value = np.asarray(value)
    return standard_inputs(value[np.newaxis], name)[0] if value.ndim else value


def _class_names(feature, train, where):
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names)
    return numbered_classes(train, where)


def _first_line(error):
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
