"""What is published already: whether it is whole, how it was judged, and what it holds."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_mas.errors import UsageError

from . import warmup
from .conventions import EXTRA_ASSETS, in_one_line
from .export import description_of, is_exported
from .gate import BLESSING, read_blessing
from .manifest import ManifestError, read_manifest
from .runtime import LoadError, damaged

# The entries of a manifest that say what a version takes and answers; and of its run, which.
_DESCRIBED = ("classes", "input", "resize", "run")
_OF_RUN = ("scenario", "tasks")


def check_version(directory: str | os.PathLike) -> None:
    """Load a version that is published, and send it its own warm-up requests, if it has any.

    Args:
        directory: Folder of the version.

    Raises:
        LoadError: If it does not load, or fails on a request.
    """
    try:
        warmup.load_warmed_up(directory).close()
    except warmup.WarmupError as error:
        raise LoadError(
            f"Expected the version in '{directory}' to answer the warm-up requests in its folder, "
            "without which a server refuses it. Received: "
            f"{in_one_line(error).rstrip('.')}. Export the version again."
        ) from error


def check_published(directory: str | os.PathLike) -> None:
    """Check that a version is as `publish` left it: it answers, and none of its files is missing.

    Args:
        directory: Folder of a version that `publish` wrote.

    Raises:
        LoadError: If it is damaged.
    """
    try:
        _check_records(directory)
        if not warmup.has_warmup(directory):
            raise LoadError(f"Expected warm-up requests in '{directory}'. Received: none.")
        check_version(directory)
    except (ManifestError, LoadError) as error:
        raise damaged(directory, str(error)) from error


def _check_records(directory: str | os.PathLike) -> None:
    """Check that a version has the manifest, and if that names one, the judgement of `publish`."""
    manifest = read_manifest(directory)
    if missing := [key for key in _DESCRIBED if key not in manifest]:
        raise LoadError(
            f"Expected its manifest to have {', '.join(map(repr, missing))}. Received: "
            f"{', '.join(map(repr, manifest))}."
        )
    if "blessing" not in manifest:  # it was exported without a judgement
        return
    try:
        blessing_of(directory)["tasks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"Expected its judgement in '{Path(directory) / EXTRA_ASSETS / BLESSING}'. Received: "
            f"{type(error).__name__}: {error}."
        ) from error


def is_published(
    heads: Mapping[str, keras.Model],
    directory: str | os.PathLike,
    *,
    input_name: str = "inputs",
    classes: Mapping[str, Sequence[object]] | None = None,
    resize: str | None = None,
    manifest: Mapping[str, Any] | None = None,
    **_: Any,
) -> bool:
    """Return whether a version is there already that `publish` would publish.

    How its network was trained and judged is not compared, for the weights are: the first task of
    several runs may be one. Nor is what depends on the machine.

    Args:
        heads: As for `publish`.
        directory: Folder of the version, which need not exist.
        input_name: Name of the input.
        classes: Class names of tasks.
        resize: How images get the size of inputs.
        manifest: The entry `run` of the manifest, of which `scenario` and `tasks` are compared.
        **_: What else `publish` takes.

    Returns:
        False if there is none, or one of other weights, which `publish` refuses to overwrite.

    Raises:
        LoadError: If there is a damaged one.
        UsageError: If there is one of these weights that takes or answers something else.
    """
    if not is_exported(heads, directory):
        return False
    check_published(directory)
    description = description_of(heads, input_name=input_name, classes=classes, resize=resize)
    expected = _described(description | {"run": manifest or {}})
    found = _described(read_manifest(directory))
    # Versions that were exported by other means say less of their run.
    keys = [key for key in expected if key in found and expected[key] != found[key]]
    if keys:
        said = "; ".join(f"{key} {found[key]!r} instead of {expected[key]!r}" for key in keys)
        raise UsageError(
            f"Expected '{directory}', which holds these weights already, to be the version that "
            f"would be published. Received: one of other options: {said}. A version is never "
            "overwritten, since a server may be answering from it: export as it was, to another "
            "folder, or with `--as next`."
        )
    return True


def _described(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is compared of a manifest, as JSON has it, by the name of each entry."""
    run = manifest["run"] if isinstance(manifest["run"], Mapping) else {}
    compared = {key: manifest[key] for key in _DESCRIBED if key != "run"}
    compared |= {key: run[key] for key in _OF_RUN if key in run}
    described: dict[str, Any] = json.loads(json.dumps(compared))
    return described


def blessing_of(directory: str | os.PathLike) -> dict[str, Any]:
    """Return the judgement of a version, as `gate.judge` describes it.

    Args:
        directory: Folder of a version that `publish` wrote.
    """
    return read_blessing(Path(directory) / EXTRA_ASSETS)
