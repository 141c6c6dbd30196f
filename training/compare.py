"""The comparison of methods: every method with every seed, each of them an ordinary run."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from .available_memory import machine_memory
from .divergence import DivergedError
from .learner import Learner
from .listening import Listener
from .run import finished_result, train
from .search.plan import Observer as SearchObserver
from .search.recommend import Recommendation
from .search.search import Found, search
from .search.space import SearchSpace, with_values
from .search.trial import Trial
from .settings import Settings, run_name
from .summary import title
from .tasks import TaskStream
from .tasks.inputs import ChangedArray

# The streams of all seeds are kept if they take no more than this share of the machine's memory.
_SHARE_OF_STREAMS = 0.25


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method with one seed.

    Attributes:
        settings: How it was trained.
        directory: Folder of the run.
        result: As `run.train` returns it; None if there is none.
        error: Why there is no result, in one line; empty if there is one.
        is_new: Whether it was trained now, rather than read from its folder.
    """

    settings: Settings
    directory: Path
    result: dict | None
    error: str = ""
    is_new: bool = True

    @property
    def name(self) -> str:
        """The method with its λ, and the seed."""
        return name_of(self.settings)


def name_of(settings: Settings) -> str:
    """Return the method of a run with its λ, and the seed."""
    return f"{title(settings.of_method)} seed {settings.seed}"


class Observer:
    """Base class of what follows the progress of a comparison; this one ignores it."""

    def run_started(self, settings: Settings, directory: Path) -> Sequence[Listener]:
        """A run is about to be trained; return the listeners that it has."""
        return ()

    def run_ended(self, entry: Entry) -> None:
        """A run has been trained, has been read, or has failed."""

    def trial_ended(self, settings: Settings, trial: Trial) -> None:
        """A λ of the search for a method has been tried."""

    def search_ended(
        self, settings: Settings, found: Found, recommendation: Recommendation
    ) -> None:
        """The search for a method has ended, and its runs take the λ that is recommended."""


def compare(
    stream_of: Callable[[int], TaskStream],
    contestants: Sequence[Settings],
    seeds: Sequence[int],
    directory: Path,
    *,
    space: SearchSpace | None = None,
    searches: Path = Path("search"),
    arguments_of: Callable[[Settings], dict] = lambda settings: {},
    observer: Observer | None = None,
) -> list[Entry]:
    """Train every method with every seed, and read those runs that are finished already.

    All runs share one network for as long as they can, so that another seed traces nothing again. A
    run that fails is an entry with its reason, and the others go on. With `space`, λ of every
    method that has one is searched for first, on the validation data of the contestant's own seed;
    test data is read by the runs with the λ that was found alone.

    Args:
        stream_of: Loads the tasks for a seed.
        contestants: The settings of each method; their seed is that of the search.
        seeds: The seeds of the runs.
        directory: Folder in which every run has its own, named as `keras-mas train` does.
        space: Which values of λ are tried; None to use that of the contestants.
        searches: Folder of all searches, as for `search`.
        arguments_of: What the result of a run records as the user's request.
        observer: Follows the progress.

    Returns:
        An entry per method and seed, in the order of the contestants and then of the seeds.

    Raises:
        OSError: If a file cannot be read or written, a full disk for example: finished runs stay.
    """
    streams = _Streams(stream_of, len(seeds))
    any_stream = streams(seeds[0])  # the name of a run depends on no seed but that of its settings

    def folder_of(settings):
        return directory / run_name(any_stream, settings)

    runner = _Runner(streams, folder_of, arguments_of, observer)
    entries = []
    for asked in contestants:
        reason = ""
        if space is not None and asked.has_strength:
            asked, reason = runner.search(asked, space, searches)
        for seed in seeds:
            entries.append(runner.run(dataclasses.replace(asked, seed=seed), reason))
    return entries


class _Runner:
    """Trains one run after the other with one learner."""

    def __init__(self, stream_of, folder_of, arguments_of, observer):
        self.stream_of, self.folder_of, self.arguments_of = stream_of, folder_of, arguments_of
        self.observer = observer or Observer()
        self._learner: Learner | None = None

    def run(self, settings, reason):
        """Return the entry of a run, trained or read; with a reason, that of a run that cannot."""
        entry = self._failed(settings, reason) if reason else self._attempt(settings)
        self.observer.run_ended(entry)
        return entry

    def search(self, asked, space, searches):
        """Return the settings with the recommended λ, and why there is none, empty if there is.

        It is 0, no protection, if that is best on the validation data.
        """
        try:
            stream = self.stream_of(asked.seed)
            learner = self._learner_of(stream)
            # What is measured while tasks are learned is not for choosing λ.
            plain = dataclasses.replace(asked, evaluate_every=None)
            watching = _TrialsOf(asked, self.observer)
            found = search(stream, plain, space, searches, observer=watching, learner=learner)
            recommendation = found.recommendation()
            self.observer.search_ended(asked, found, recommendation)
            return with_values(asked, recommendation.trial.values), ""
        except OSError:
            raise
        except Exception as error:
            self._learner = None
            return asked, _one_line(error)

    def _attempt(self, settings):
        try:
            stream = self.stream_of(settings.seed)
            folder = self.folder_of(settings)
            result = finished_result(stream, settings, folder)
            if result is not None:
                return Entry(settings, folder, result, is_new=False)
            listeners = self.observer.run_started(settings, folder)
            arguments = self.arguments_of(settings)
            learner = self._learner_of(stream)
            result = train(
                stream, settings, folder, arguments=arguments, listeners=listeners, learner=learner
            )
        except OSError:  # it would come for the next run too
            raise
        except Exception as error:
            if not isinstance(error, DivergedError):
                self._learner = None  # half a network, perhaps
            return self._failed(settings, _one_line(error))
        return Entry(settings, folder, result)

    def _failed(self, settings, reason):
        return Entry(settings, self.folder_of(settings), None, reason)

    def _learner_of(self, stream):
        if self._learner is None:
            self._learner = Learner(stream)
        return self._learner


class _TrialsOf(SearchObserver):
    """Passes on the trials of the search for one contestant that end now."""

    def __init__(self, asked, observer):
        self.asked, self.observer = asked, observer

    def trial_ended(self, trial):
        if trial.is_new:
            self.observer.trial_ended(self.asked, trial)


class _Streams:
    """Loads the stream of a seed, and keeps it if those of all seeds fit into memory."""

    def __init__(self, load, count):
        self.load, self.count = load, count
        self.kept: dict[int, TaskStream] = {}

    def __call__(self, seed):
        if seed not in self.kept:
            stream = self.load(seed)
            if self.count * _bytes_in_memory(stream) > _SHARE_OF_STREAMS * machine_memory():
                self.kept.clear()  # but for this one
            self.kept[seed] = stream
        return self.kept[seed]


def _bytes_in_memory(stream):
    splits = [split for task in stream.tasks for split in task.splits.values()]
    found = (_unchanged(split.source) for split in splits if split.in_memory)
    sources = {id(source): source for source in found}
    return sum(math.prod(source.shape) * source.dtype.itemsize for source in sources.values())


def _unchanged(source):
    """Return the inputs that a source holds, however it changes them when they are read."""
    return _unchanged(source.source) if isinstance(source, ChangedArray) else source


def _one_line(error):
    """Return the reason of a failure; the type of an error that was not worded for users too."""
    text = " ".join(str(error).split())
    is_worded = isinstance(error, (RuntimeError, ValueError, OSError)) and text
    return text if is_worded else f"{type(error).__name__}: {text}".removesuffix(": ")
