"""Loading a stream of tasks by its name or from a TOML file."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

from keras_mas.errors import UsageError

from ..load_options import LoadOptions
from ..options import flag
from ..wording import did_you_mean, one_of
from .builtin import builtin_names, load_builtin
from .store import OnDecoded
from .stream import TaskStream
from .tables import Encoding
from .toml_file import check_toml, load_toml


def load_tasks(
    tasks: str | Path,
    *,
    seed: int = 0,
    validation_fraction: float = 0.1,
    data_dir: str | Path | None = None,
    cache_memory: int | None = None,
    cache_dir: str | Path | None = None,
    skip_broken: bool = False,
    scenario: str | None = None,
    on_decoded: OnDecoded = lambda *_: None,
    batch_size: int = 1,
    encoding: Encoding | None = None,
) -> TaskStream:
    """Load a stream of tasks by its name or from a TOML file.

    Validation data is held out from the training data of each class, unless the source has
    validation data of its own. Test data is always the source's own.

    Args:
        tasks: One of `builtin_names()`, or the path of a TOML file, whose format the module
            `toml_file` documents. The suffix `.toml` is not required.
        seed: Determines which examples are held out, and the order of the training data.
        validation_fraction: Share of each class to hold out, between 0 and 1.
        data_dir: Directory where TFDS reads and writes prepared data; None for the environment
            variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        cache_memory: Bytes of memory that decoded data may take; None for a quarter of the machine.
            What exceeds them is kept on disk, and read while it is used.
        cache_dir: Folder for decoded data that exceed the memory; None for the user's cache folder.
        skip_broken: Whether files that cannot be decoded are left out, with a warning for each,
            rather than refused.
        scenario: Scenario in place of the stream's own, out of `SCENARIOS`.
        on_decoded: Called after every input that was decoded, with what it belongs to, the folder
            that it is kept in (None for memory), how many have been decoded, and of how many.
        batch_size: How many examples will be read at once, as far as that is known: a memory that
            is too small for them is refused before anything is decoded.
        encoding: That of the tables which a network has learned, for more of them; None to make it.

    Returns:
        The stream: inputs unscaled, as uint8 or float32, and labels from 0 in each task.

    Raises:
        UsageError: If the request is wrong: an unknown name, a missing file, an unknown key.
        DataError: If the data is bad or unavailable.
    """
    options = LoadOptions(
        seed,
        validation_fraction,
        data_dir,
        cache_memory,
        cache_dir,
        skip_broken,
        scenario,
        on_decoded,
        batch_size,
        encoding,
    )
    stream = _load(tasks, options)
    left_out = tuple(options.store.left_out)
    if left_out:
        warnings.warn(
            f"{len(left_out)} files that cannot be decoded were left out of '{stream.name}'",
            stacklevel=1,
        )
    _warn_of_idle(options, stream)
    return replace(stream, left_out=left_out)


def check_tasks(tasks: str | Path) -> None:
    """Check what needs no data: that there is such a stream, and a TOML file as a whole.

    It takes no TensorFlow, which takes seconds to import.

    Args:
        tasks: As for `load_tasks`.

    Raises:
        UsageError: If the name is unknown, or the file is missing or wrong.
    """
    if tasks not in builtin_names():
        check_toml(_path_of(tasks))


def _warn_of_idle(options, stream):
    """Warn of options for data that are decoded where none are, as of tables alone."""
    asked = [name for name in ("cache_dir", "skip_broken") if getattr(options, name)]
    if asked and not options.store.is_used:
        one = len(asked) == 1
        warnings.warn(
            f"{' and '.join(map(flag, asked))} {'makes' if one else 'make'} no difference: nothing "
            f"in '{stream.name}' is decoded, as images are",
            stacklevel=1,
        )


def _load(tasks, options):
    if tasks in builtin_names():
        return load_builtin(str(tasks), options)
    return load_toml(_path_of(tasks), options)


def _path_of(tasks):
    path = Path(tasks)
    if path.suffix == ".toml" or os.path.exists(path):  # which no name is too long for
        return path
    raise UsageError(
        f"Expected the path of a TOML file, or one of {one_of(builtin_names(), 99)}. Received: "
        f"'{tasks}'.{did_you_mean(str(tasks), builtin_names())}"
    )
