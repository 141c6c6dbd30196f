"""Your own data: an .npz archive of arrays, or a folder of images."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from .errors import DataError, one_of
from .images import IMAGE_SUFFIXES, read_image, stack_images
from .source import VALIDATION_NAMES, Source, numbered_classes
from .stream import Split, checked_split


def read_npz(path: Path) -> Source:
    """Read the arrays `x_train y_train x_test y_test` and, if there, `x_val y_val`.

    Args:
        path: An archive written by `np.savez` or `np.savez_compressed`. Labels count from 0; there
            are as many classes as the largest training label says, named "0", "1", …

    Returns:
        The source. uint8 inputs are pixels: `[N, H, W]` becomes `[N, H, W, 1]`, other shapes stay.
        Floats are features and keep their shape.

    Raises:
        DataError: If the archive cannot be read, holds pickled objects or lacks an array, or if a
            pair of arrays does not make a split; see `checked_split`.
    """
    try:
        # Opened here, for `np.load` does not close a file in which it finds no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # A pickle is a ValueError, a bare .npy array a TypeError, the others are damaged archives.
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"Expected an .npz archive of plain numeric arrays. Received: '{path}' ({error}). "
            "Write it with np.savez; object arrays and pickles are not read, for safety."
        ) from error
    train = _pair(arrays, "train", path)
    has_validation = not arrays.keys().isdisjoint({"x_val", "y_val"})
    return Source(
        classes=numbered_classes(train, f"y_train of '{path}'"),
        train=train,
        test=_pair(arrays, "test", path),
        validation=_pair(arrays, "val", path) if has_validation else None,
    )


def _pair(arrays, role, path):
    names = [f"x_{role}", f"y_{role}"]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(
            f"Expected the arrays {one_of(names)}. Received: {one_of(arrays) or 'none'} in "
            f"'{path}'. Add {one_of(missing)} with np.savez."
        )
    return checked_split(*(arrays[name] for name in names), f"{' and '.join(names)} of '{path}'")


def read_folder(path: Path, image_size: int | None) -> Source:
    """Read images from `train/CLASS/`, `test/CLASS/` and, if there, `val/CLASS/`.

    An image belongs to the class in whose folder it lies, however deep. Files whose ending is not
    that of an image are passed over, and so is all that is hidden (its name begins with a dot).

    Args:
        path: The folder that holds `train` and `test`.
        image_size: Height and width to bring the images to; None if they all have one size.

    Returns:
        The source: RGB images, uint8 `[N, H, W, 3]`, see `read_image`; classes are the names of the
        folders in `train`, sorted.

    Raises:
        UsageError: If `image_size` is None and the images differ in size.
        DataError: If `train` or `test` is missing, a class or a split has no images, a class occurs
            in a split but not in training, or an image cannot be decoded.
    """
    classes = _class_names(path / "train")
    own = [path / name for name in VALIDATION_NAMES if (path / name).is_dir()]
    return Source(
        classes=classes,
        train=_read_split(path / "train", classes, image_size),
        test=_read_split(path / "test", classes, image_size),
        validation=_read_split(own[0], classes, image_size) if own else None,
    )


def _class_names(folder):
    names = sorted(p.name for p in _visible(folder) if p.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(
            f"Expected a folder for each class, such as '{folder / 'cat'}'. Received: none in "
            f"'{folder}'. Put the images into train/CLASS/ and test/CLASS/."
        )
    return tuple(names)


def _read_split(folder, classes, image_size) -> Split:
    strangers = sorted(set(_class_names(folder)) - set(classes))
    if strangers:
        raise DataError(
            f"Expected only classes that occur in training ({one_of(classes)}). Received: "
            f"{one_of(strangers)} in '{folder}'. Add training images of this class, or remove it."
        )
    files = [(file, label) for label, name in enumerate(classes) for file in _images(folder / name)]
    if not files:
        raise DataError(
            f"Expected images. Received: none in '{folder}'. Known endings are "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}."
        )
    images = ((f"'{file}'", read_image(file)) for file, _ in files)
    labels = np.array([label for _, label in files])
    return checked_split(stack_images(images, image_size), labels, f"'{folder}'")


def _images(folder):
    """Every visible image below `folder`, in the order of their names."""
    for path in _visible(folder) if folder.is_dir() else []:
        if path.is_dir():
            yield from _images(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
