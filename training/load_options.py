"""What a user may say of how streams are loaded; importing it takes no time."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mas.errors import UsageError

from .options import POSITIVE, check_options, option, size

if TYPE_CHECKING:
    from .tasks.store import OnDecoded, Store
    from .tasks.tables import Encoding

SCENARIOS = ("task", "domain", "class")

# Name of the one head of a domain-incremental and of a class-incremental stream.
SHARED_HEADS = {"domain": "shared", "class": "all"}


@dataclass(frozen=True)
class LoadOptions:
    """Options of `load_tasks` that apply to every source.

    Attributes:
        seed: Seed of the order of the training data, which also determines the examples that are
            held out; ≥ 0.
        validation_fraction: Share of the training data of each class to hold out; between 0 and 1.
        data_dir: Directory of prepared TFDS data; None for the environment variable
            `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        cache_memory: Bytes of memory that decoded data may take; None for a quarter of the machine.
        cache_dir: Folder for decoded data that exceed it; None for `store.default_directory()`.
        skip_broken: Whether files that cannot be decoded are left out.
        scenario: Scenario in place of the one that the stream's definition names.
        on_decoded: As for `Store`.
        batch_size: As for `Store`.
        encoding: As for `tables.read_tables`.

    Raises:
        UsageError: If the seed is negative, the fraction not between 0 and 1, the memory not
            positive, or there is no such scenario.
    """

    seed: int = 0
    validation_fraction: float = 0.1
    data_dir: str | Path | None = option(
        None,
        "where TensorFlow Datasets keeps its data (default: $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets)",
        parse=Path,
        metavar="FOLDER",
    )
    cache_memory: int | None = option(
        None,
        "memory for decoded data, such as 500MB or 4GB; what does not fit is kept in --cache-dir "
        "(default: a quarter of the machine's)",
        bounds=POSITIVE,
        parse=size,
        metavar="SIZE",
    )
    cache_dir: str | Path | None = option(
        None,
        "where decoded data that exceed --cache-memory are kept for the next run (default: "
        "$XDG_CACHE_HOME/keras_mas, or ~/.cache/keras_mas)",
        parse=Path,
        metavar="FOLDER",
    )
    skip_broken: bool = option(
        False, "leave out files that cannot be decoded, and count them (default: stop)"
    )
    scenario: str | None = option(
        None,
        "task: the task is known at test time, a head for each; domain: one head, the tasks share "
        "their classes; class: one head that tells all classes of all tasks apart (default: the "
        "stream's own)",
        choices=SCENARIOS,
    )
    on_decoded: "OnDecoded" = lambda *_: None
    batch_size: int = 1
    encoding: "Encoding | None" = None

    def __post_init__(self):
        if self.seed < 0:
            raise UsageError(f"Expected a seed of at least 0. Received: {self.seed}.")
        if not 0 < self.validation_fraction < 1:
            raise UsageError(
                "Expected a validation fraction between 0 and 1, both excluded. Received: "
                f"{self.validation_fraction}."
            )
        check_options(self)

    @cached_property
    def store(self) -> "Store":
        """Where all sources of a stream keep what they decode."""
        from .tasks.store import Store

        return Store(
            self.cache_memory, self.cache_dir, self.skip_broken, self.on_decoded, self.batch_size
        )
