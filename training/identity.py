"""What a run is: everything that decides its result."""

import dataclasses

from keras_mas.plugins import is_own, load_named

from .backbones import weights_digest
from .backbones.weights import digest_of_file
from .continuing import Continued
from .first_task import digest
from .own_modules import files_of
from .run_directory import DATA_OF_TASKS
from .settings import Settings
from .tasks import TaskStream


def describe(
    stream: TaskStream,
    settings: Settings,
    evaluate_on: str,
    continued: Continued | None = None,
) -> dict:
    """Return everything that decides a result, for JSON.

    Fingerprints stand for the data, for the file that the weights begin with, and for the modules
    of a method and a backbone that are not ours, with those of the user's that they import. λ and
    penalty are None where they make no difference.

    Raises:
        UsageError: If there are no such weights.
    """
    described = dataclasses.asdict(settings) | settings.of_method
    recipe = settings.recipe
    for what, name in (("method", settings.method), ("backbone", recipe.backbone)):
        if is_own(name):
            described[f"{what}_module"] = _digest_of_modules(name, what)
    if continued is None:
        described["recipe"]["weights"] = weights_digest(
            recipe.backbone, stream.input_shape, recipe.weights
        )
        of_data = {"data": stream.fingerprint, "files_left_out": len(stream.left_out)}
    else:
        described["recipe"] = continued.recipe_of(described["recipe"])
        of_data = continued.description
    return {
        "stream": stream.name,
        "scenario": stream.scenario,
        "rescale": list(stream.rescale),
        "tasks": [task.name for task in stream.tasks],
        **of_data,
        "evaluate_on": evaluate_on,
        **described,
    }


def data_of_tasks(stream: TaskStream, continued: Continued | None = None) -> dict:
    """Return the fingerprint of the data of each task that is loaded for a run, for JSON.

    It decides no more than that of all data, in `describe`. It is recorded beside that, to say
    whose data have changed, and is not a part of it, since folders are named after that.
    """
    tasks = stream.tasks if continued is None else continued.added
    return {DATA_OF_TASKS: {task.name: task.fingerprint for task in tasks}}


def _digest_of_modules(name, what):
    """Return a hash of the files that something of a user's own is written in; empty without any.

    That of a single file is the file's own, as versions recorded it that knew no others.
    """
    digests = [digest_of_file(path) for path in files_of(name, load_named(name, what))]
    return digest({"files": digests}) if len(digests) > 1 else "".join(digests)
