"""Sources on disk: an .npz archive of arrays, or a folder of images."""

import re
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from keras_mas.arrays import read_archive

from ..wording import one_of
from .encoded import Encoded, Example
from .errors import DataError
from .images import DECODING_VERSION, IMAGE_SUFFIXES, ImageSize, read_image, resized, unreadable
from .inputs import Row, digest
from .source import VALIDATION_NAMES, Source, numbered_classes
from .store import Store
from .stream import Split, checked_split

# What stands for bytes of a name that are no UTF-8.
_UNDECODED = re.compile("[\udc80-\udcff]")

# What `read_archive` raises. ValueError: no archive, or a pickle; SyntaxError and TokenError: a
# header that is no Python; MemoryError: an array that says it is larger than the memory;
# RuntimeError: a compression or a version of zip that Python does not know, or a password; the
# others: a damaged archive.
UNREADABLE = (
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> Source:
    """Read the arrays `x_train y_train x_test y_test` and, if there, `x_val y_val`.

    Args:
        path: An archive written by `np.savez` or `np.savez_compressed`. Labels count from 0; there
            are as many classes as the largest training label says, named "0", "1", …

    Returns:
        The source. uint8 inputs are pixels: `[N, H, W]` becomes `[N, H, W, 1]`, other shapes are
        unchanged. Floats are features and keep their shape.

    Raises:
        DataError: If the archive cannot be read, holds pickled objects or lacks an array, or if a
            pair of arrays does not make a split; see `checked_split`.
    """
    try:
        with open(path, "rb") as file:
            arrays = read_archive(file)
    except UNREADABLE as error:
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
    inputs, labels = (arrays[name] for name in names)
    return checked_split(inputs, labels, f"{' and '.join(names)} of '{path}'")


def read_folder(path: Path, image_size: ImageSize | None, store: Store | None = None) -> Source:
    """Read images from `train/CLASS/`, `test/CLASS/` and, if there, `val/CLASS/`.

    An image belongs to the class in whose folder it lies, at any depth. Links are followed, but no
    folder and no file is read twice within a class. Files without the suffix of an image are
    ignored, and so are hidden files and folders (names that begin with a dot).

    Args:
        path: The folder that holds `train` and `test`.
        image_size: Size to bring the images to; None if they all have one size.
        store: Where decoded images are kept; None for one with default settings.

    Returns:
        The source: RGB images, uint8 `[N, H, W, 3]`, see `read_image`; classes are the names of the
        folders in `train`, sorted.

    Raises:
        UsageError: If `image_size` is None and the images differ in size, or if there is no room
            for them.
        DataError: If `train` or `test` is missing, a class or a split has no images, a class occurs
            in a split but not in training, one file is reached through two classes or splits, or
            an image cannot be decoded and `store` does not leave out such images.
    """
    classes = _class_names(path / "train")
    own = [path / name for name in VALIDATION_NAMES if (path / name).is_dir()]
    folders = [path / "train", path / "test", *own[:1]]
    files = {folder: _labelled_files(folder, classes) for folder in folders}
    _check_disjoint(files)
    store = store or Store()
    train, test, *validation = (
        _read_split(folder, labelled, image_size, store) for folder, labelled in files.items()
    )
    return Source(classes, train, test, validation[0] if validation else None)


def read_images(
    path: Path, image_size: ImageSize | None, limit: int, store: Store | None = None
) -> Split:
    """Read images anywhere below a folder, whatever its folders are called.

    Args:
        path: The folder.
        image_size: As for `read_folder`.
        limit: How many are read at most, drawn at random.
        store: As for `read_folder`.

    Returns:
        RGB images, uint8 `[N, H, W, 3]`, in random order; their labels say nothing.

    Raises:
        UsageError: As `read_folder`.
        DataError: If there is no image, or one cannot be decoded and `store` does not leave out
            such images.
    """
    files = list(_images(path, {file_identity(path)}))
    if not files:
        raise _no_images(path)
    drawn = np.random.default_rng(0).permutation(len(files))[:limit]
    return _read_split(path, [(files[k], 0) for k in drawn], image_size, store or Store())


def _class_names(folder):
    names = sorted(p.name for p in _visible(folder) if p.is_dir()) if folder.is_dir() else []
    if wrong := [name for name in names if _UNDECODED.search(name)]:
        raise DataError(
            f"Expected folders of classes with names in UTF-8, which a result records. Received: "
            f"{wrong[0]!r} in '{folder}'. Rename the folder."
        )
    if not names:
        raise DataError(
            f"Expected a folder for each class, such as '{folder / 'cat'}'. Received: none in "
            f"'{folder}'. Put the images into train/CLASS/ and test/CLASS/."
        )
    return tuple(names)


def _labelled_files(folder, classes) -> list[tuple[Path, int]]:
    """Return the image files of a split with their labels, class by class in order of names."""
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise DataError(
            f"Expected only classes that occur in training ({one_of(classes)}). Received: "
            f"{one_of(unknown)} in '{folder}'. Add training images of this class, or remove it."
        )
    class_folders = [folder / name for name in classes if (folder / name).is_dir()]
    # Images that a link upwards, or to another class, leads back to keep their own label.
    above = folder.resolve().parents
    visited = {file_identity(known) for known in (folder, *above, *class_folders)}
    files = [
        (file, classes.index(class_folder.name))
        for class_folder in class_folders
        for file in _images(class_folder, set(visited))
    ]
    if not files:
        raise _no_images(folder)
    return files


def _no_images(folder):
    return DataError(
        f"Expected images. Received: none in '{folder}'. Known suffixes are "
        f"{' '.join(sorted(IMAGE_SUFFIXES))}."
    )


def _images(folder, visited):
    """Yield every visible image below `folder` once, in order of names; `visited` grows.

    Raises:
        DataError: If what is named like an image is no file, or cannot be looked at.
    """
    for path in _visible(folder):
        is_folder = path.is_dir()
        if not is_folder and path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        identity = file_identity(path)
        if identity in visited:
            continue
        visited.add(identity)
        if is_folder:
            yield from _images(path, visited)
        elif path.is_file():
            yield path
        else:  # nothing may ever come out of a pipe
            raise DataError(
                f"Expected images in ordinary files. Received: '{path}', which is a pipe, a socket "
                "or a device. Remove it."
            )


def file_identity(path: Path) -> tuple[int, int]:
    """Return what two paths have in common if, and only if, they lead to the same file.

    Raises:
        DataError: If there is none, or it cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    return status.st_dev, status.st_ino


def _check_disjoint(files):
    """Refuse a file that would have two labels, or be both trained and tested on."""
    first: dict[tuple[int, int], Path] = {}
    for labelled in files.values():
        for file, _ in labelled:
            other = first.setdefault(file_identity(file), file)
            if other is not file:
                raise DataError(
                    f"Expected different files in every class and split. Received: '{file}', which "
                    f"is the same file as '{other}'. Remove one of the two links."
                )


def _read_split(folder, labelled, image_size, store) -> Split:
    files = [file for file, _ in labelled]
    encoded = Encoded(
        where=f"'{folder}'",
        count=len(files),
        fingerprint=_fingerprint(folder, files, image_size),
        identity=_identity_of_files(folder, files),
        examples=lambda first: (_example(file, image_size) for file in files[first:]),
        row=image_size and Row(np.dtype(np.uint8), (image_size.side, image_size.side, 3)),
    )
    inputs, rows = store.keep(encoded)
    labels = np.array([label for _, label in labelled])
    return Split(inputs, labels).take(rows)


def _example(file, image_size) -> Example:
    name = f"'{file}'"
    return Example(name, lambda: resized(name, read_image(file), image_size))


def _fingerprint(folder, files, image_size):
    """Return a hash of the files' names, sizes and times, so that none need be read to compare."""
    status = ((file, file.stat()) for file in files)
    listing = (
        (file.relative_to(folder.parent).as_posix(), found.st_size, found.st_mtime_ns)
        for file, found in status
    )
    return digest("folder", DECODING_VERSION, image_size, *listing)


def _identity_of_files(folder, files):
    """Return a hash of where the files lie and when they last changed in any way.

    Unlike a time of modification, that of a change cannot be set: archives that are unpacked with
    equal times are told apart.
    """
    status = [file.stat() for file in files]
    return digest(folder.resolve(), *((s.st_dev, s.st_ino, s.st_ctime_ns) for s in status))


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
