"""Data sets with labels from TensorFlow Datasets (TFDS)."""

import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from keras_mas.errors import UsageError
from keras_mas.logs import quiet

from .errors import DataError, did_you_mean, one_of
from .images import ImageSize, stack_images
from .source import VALIDATION_NAMES, Source, numbered_classes
from .stream import checked_split

PROBE_SECONDS = 3.0


def read_tfds(name: str, image_size: ImageSize | None, data_dir: str | Path | None) -> Source:
    """Read the splits `train`, `test` and, if there, `validation` or `val` of a TFDS data set.

    A data set that is prepared on disk is read without a network, even if TFDS has no builder of
    its name. Otherwise it is downloaded and prepared, provided that its hosts answer.

    Args:
        name: As `tfds.builder` takes it: `"mnist"`, `"mnist:3.0.1"`, `"emnist/letters"`.
        image_size: Size to bring images to; None if they all have one size. Features other than
            images are unchanged.
        data_dir: Directory of prepared data; None for the environment variable `TFDS_DATA_DIR`,
            else `~/tensorflow_datasets`.

    Returns:
        The source, with the class names of the data set's label feature.

    Raises:
        UsageError: If there is no such data set, it has no pair of an input and a label,
            `image_size` is None and the images differ in size, or the images would not fit into
            memory.
        DataError: If the data set is not prepared and cannot be downloaded, lacks a split, or holds
            arrays that do not make a split; see `checked_split`.
    """
    with quiet():
        builder = _find(name, data_dir)
        _prepare(builder, name)
        _require_splits(builder.info, name)
        keys = _keys(builder.info, name)

        def read(split):
            inputs, labels = _read_arrays(builder, split, keys, image_size)
            return checked_split(inputs, labels, f"split '{split}' of the TFDS data set '{name}'")

        own = [split for split in VALIDATION_NAMES if split in builder.info.splits]
        train = read("train")
        return Source(
            classes=_class_names(builder.info.features[keys[1]], train, f"TFDS data set '{name}'"),
            train=train,
            test=read("test"),
            validation=read(own[0]) if own else None,
        )


def _find(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        # Community data sets are listed over the network, which may be unavailable.
        known = tfds.list_builders(with_community_datasets=False)
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
                "a network."
            )
    _download(builder, name)


def _urls_to_download(builder):
    """Return a URL for each host, without archives that the user has placed in TFDS's folder."""
    manual = Path(builder.data_dir_root) / "downloads" / "manual"
    wanted = [
        url
        for url, info in (builder.url_infos or {}).items()
        if not (manual / info.filename).exists()
    ]
    return {urlsplit(url).hostname: url for url in wanted}.values()


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
            "to the directory that holds it."
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


def _require_splits(info, name):
    missing = [
        split
        for split in ("train", "test")
        if split not in info.splits or not info.splits[split].num_examples
    ]
    if missing:
        raise DataError(
            f"Expected examples in the splits 'train' and 'test'. Received: none in "
            f"{one_of(missing)} of the TFDS data set '{name}', whose splits are "
            f"{one_of(info.splits)}. Divide it yourself into an .npz file or folders."
        )


def _read_arrays(builder, split, keys, image_size):
    """Return inputs and labels of one split, read as one batch if no image must be resized."""
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(split=split).map(lambda example: [example[key] for key in keys])
    feature = builder.info.features[keys[0]]
    count = builder.info.splits[split].num_examples
    if not isinstance(feature, tfds.features.Image) or _has_size(feature.shape, image_size):
        return next(iter(tfds.as_numpy(dataset.batch(count))))
    labels = []

    def images():  # one at a time, so that memory holds only the resized images
        for index, (pixels, label) in enumerate(tfds.as_numpy(dataset)):
            labels.append(label)
            yield f"example {index} of split '{split}' of '{builder.name}'", pixels

    return stack_images(images(), count, image_size), np.array(labels)


def _has_size(shape, image_size):
    """Return whether the feature's shape says that all images have the size asked for."""
    return None not in shape and (image_size is None or shape[:2] == (image_size.side,) * 2)


def _class_names(feature, train, where):
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names)
    return numbered_classes(train, where)


def _first_line(error):
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
