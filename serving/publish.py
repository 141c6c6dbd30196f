"""Publishing: a version is written beside the others, checked, judged, and appears by one rename.

A process that is killed leaves no version, or a whole one; see `paths.new_version`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mas.errors import UsageError

from .config import config_path, labels_of, read_config
from .conventions import EXTRA_ASSETS, STABLE, in_one_line
from .export import (
    Approval,
    ExportError,
    check_exportable,
    description_of,
    export_version,
)
from .gate import (
    Bounds,
    Compared,
    HeldOut,
    RefusedError,
    answered_right,
    judge,
    refusal_sentence,
    unmeasured_sentence,
    write_blessing,
)
from .head_checks import check_heads
from .manifest import ManifestError, read_manifest
from .paths import list_versions, version_path
from .runtime import LoadedVersion, LoadError

_EXAMPLES_OF_A_TASK = 16


def publish(
    heads: Mapping[str, keras.Model],
    base_path: str | os.PathLike,
    held_out: Sequence[HeldOut],
    *,
    version: int | None = None,
    after: Collection[int] = (),
    bounds: Bounds | None = None,
    force: str | None = None,
    config: str | os.PathLike | None = None,
    examples: np.ndarray | None = None,
    **options: Any,
) -> Path:
    """Publish a version of a model, unless it is damaged or lost what an earlier one knew.

    The version is exported as `export_version` does it, and answers some of the held-out examples
    as the Keras models do. Then it is judged by all of them, beside the version now labelled
    `stable`, or the latest one before it if none is; classes are the same by their names, however a
    version numbers them. The judgement, as `gate.judge` describes it,
    is written to `blessing.json` in the folder of the model and, if the version is published, in
    its `assets.extra`. It has besides

        model       name of the model
        forced      why it was published all the same; None unless `force` was given
        note        what could not be compared, and why; None if everything was

    The manifest has `blessing`: `blessed` and `forced`.

    Args:
        heads: As for `export_version`.
        base_path: Folder of the model, `models/NAME`.
        held_out: Held-out examples of every task of the version; a task without any is published
            unmeasured, which the note says.
        version: Number of the version; None for the next one.
        after: Versions that have been published, which have to be there still: if they vanished
            meanwhile, there would be nothing to compare this one with.
        bounds: What it has to meet; by default nothing: it is measured only, and not judged.
        force: Reason to publish it even if it does not meet the bounds.
        config: The model server configuration with the labels; by default `models/models.config`.
        examples: Inputs `[n, *input_shape]` that are answered as the Keras models do if no task of
            the version has held-out examples; those of other tasks, for example.
        **options: Further arguments of `export_version`.

    Returns:
        The folder of the version.

    Raises:
        UsageError: As `export_version`; or if there are no held-out examples, and no `examples`
            either, they are not as `HeldOut` says, or `force` is empty.
        ExportError: As `export_version`; or if one of the versions `after` is missing. The message
            says which of them are there.
        RefusedError: If it does not meet the bounds, or there is no telling what was lost since
            the version to compare it with cannot be loaded.
        ConfigError: If the labels cannot be read.
    """
    base_path = Path(base_path)
    check_heads(heads)
    _check_held_out(heads, held_out, examples)
    _check_labels(heads, held_out)
    if force is not None and not force.strip():
        raise UsageError(
            "Expected `force` to say why the version is published all the same. Received: nothing. "
            "Give a reason, which its manifest records."
        )
    _check_still_there(base_path, after)
    check_exportable(heads, base_path)
    labels = config if config is not None else config_path(base_path)
    classes = description_of(heads, classes=options.get("classes"))["classes"]
    gate = _Gate(base_path, held_out, classes, bounds or Bounds(), force, Path(labels), after)
    batches = [_first_batch(each) for each in held_out if len(each.labels)]
    examples = np.concatenate(batches) if batches else examples
    while True:
        number = max(list_versions(base_path), default=0) + 1 if version is None else version
        folder = version_path(base_path, number)
        try:
            with _saying_which_stand(base_path, after):
                return export_version(
                    heads, folder, examples=examples, approve=gate.approve(number), **options
                )
        except UsageError:
            # While this process waited for its turn, another one took the number.
            if version is not None or number not in list_versions(base_path):
                raise


class _Gate:
    """Judges versions of a model before they appear.

    Args:
        base_path: Folder of the model.
        held_out: As for `publish`.
        classes: Class names of every head.
        bounds: As for `publish`.
        force: As for `publish`.
        config: The model server configuration, which need not exist.
        after: As for `publish`.
    """

    def __init__(
        self,
        base_path: Path,
        held_out: Sequence[HeldOut],
        classes: Mapping[str, Sequence[str]],
        bounds: Bounds,
        force: str | None,
        config: Path,
        after: Collection[int],
    ):
        self.base_path, self.held_out, self.classes = base_path, held_out, classes
        self.bounds, self.force, self.config, self.after = bounds, force, config, after

    def approve(self, number: int) -> Approval:
        """Return what approves version `number`, for `export_version`."""

        def approve(folder: Path, version: LoadedVersion) -> dict[str, Any]:
            _check_still_there(self.base_path, self.after)
            blessing = self._judge(number, version)
            path = write_blessing(self.base_path, blessing)
            if blessing["blessed"] is False and self.force is None:
                raise RefusedError(refusal_sentence(blessing, self._model, path))
            write_blessing(folder / EXTRA_ASSETS, blessing)
            return {"blessing": {key: blessing[key] for key in ("blessed", "forced")}}

        return approve

    @property
    def _model(self) -> str:
        return self.base_path.resolve().name

    def _judge(self, number: int, version: LoadedVersion) -> dict[str, Any]:
        right = {each.task: answered_right(version, each) for each in self.held_out}
        earlier, label = self._earlier(number)
        compared, incomparable, note = None, "", ""
        if earlier is None:
            note = "The first version: there is nothing to compare it with."
        else:
            try:
                compared = self._compared(earlier, label)
            except (LoadError, tf.errors.OpError) as error:
                note = incomparable = (
                    f"version {earlier} ({label or 'the latest'}), which it is compared with, "
                    f"cannot answer: {in_one_line(error)}"
                )
        notes = [each for each in (note, _unmeasured(self.held_out)) if each]
        return {
            "model": self._model,
            **judge(number, right, self.bounds, compared, incomparable),
            "forced": self.force,
            "note": " ".join(notes) or None,
        }

    def _earlier(self, number: int) -> tuple[int | None, str]:
        """Return the version to compare with, and the label that makes it the one."""
        stable = labels_of(read_config(self.config), self._model).get(STABLE)
        if stable is not None:
            return stable, STABLE
        return max((n for n in list_versions(self.base_path) if n < number), default=None), ""

    def _compared(self, earlier: int, label: str) -> Compared:
        folder = list_versions(self.base_path).get(earlier, version_path(self.base_path, earlier))
        with contextlib.closing(LoadedVersion(folder)) as version:
            tasks, classes = _tasks_of(folder, version), _classes_of(folder)
            right = {
                each.task: answered_right(
                    version, _numbered(each, self.classes[each.head], classes.get(each.head, ()))
                )
                for each in self.held_out
                if each.task in tasks and each.head in version.signatures
            }
        return Compared(earlier, label, tasks, right)


def _tasks_of(folder: Path, version: LoadedVersion) -> list[str]:
    """Return the names of the tasks that a version has learned."""
    try:
        manifest = read_manifest(folder)
        return list(manifest["run"].get("tasks", manifest["classes"]))
    except (ManifestError, KeyError, AttributeError, TypeError):  # it was exported by other means
        return [name for name, sig in version.signatures.items() if "class" in sig.outputs]


def _classes_of(folder: Path) -> Mapping[str, Sequence[str]]:
    """Return the class names of every head of a version; none if it was exported by other means."""
    try:
        return dict(read_manifest(folder)["classes"])
    except (ManifestError, KeyError, TypeError, ValueError):
        return {}


def _numbered(held_out: HeldOut, ours: Sequence[str], theirs: Sequence[str]) -> HeldOut:
    """Return held-out examples with the numbers that another version has for their classes.

    A class is known by its name. One that the other version lacks has the same number there if that
    is of no other class of ours, as of one that was renamed; or else it has none, -1.
    """

    def number(index: int, name: str) -> int:
        if name in theirs:
            return theirs.index(name)
        return -1 if index < len(theirs) and theirs[index] in ours else index

    numbers = [number(index, name) for index, name in enumerate(ours)]
    if numbers == list(range(len(ours))) or not len(held_out.labels):
        return held_out
    return dataclasses.replace(held_out, labels=np.array(numbers)[held_out.labels])


def _check_still_there(base_path: Path, versions: Collection[int]) -> None:
    there = list_versions(base_path)
    if missing := [str(version) for version in versions if version not in there]:
        vanished = "that folder has vanished" if not base_path.is_dir() else "they have vanished"
        raise ExportError(
            f"Expected versions in '{base_path}' that were published before this one: "
            f"{', '.join(missing)}. Received: none, for {vanished} meanwhile. Nothing more was "
            "published; restore the folder, or export all versions again."
        )


@contextlib.contextmanager
def _saying_which_stand(base_path: Path, versions: Collection[int]) -> Iterator[None]:
    """Add to an error which of the versions that were published before are there."""
    try:
        yield
    except ExportError as error:
        standing = [str(number) for number in list_versions(base_path) if number in versions]
        if not standing:
            raise
        what = "version" if len(standing) == 1 else "versions"
        raise ExportError(
            f"{error} What was published before stays: {what} {', '.join(standing)}."
        ) from error


def _unmeasured(held_out: Sequence[HeldOut]) -> str:
    sentence = unmeasured_sentence(each.task for each in held_out if not len(each.labels))
    return sentence and f"{sentence}."


def _check_held_out(
    heads: Mapping[str, keras.Model], held_out: Sequence[HeldOut], examples: np.ndarray | None
) -> None:
    if examples is None and not any(len(each.labels) for each in held_out):
        raise UsageError(
            "Expected held-out examples of one task at least. Received: none. They show that the "
            "version answers as it should, and what it forgot."
        )
    missing = [name for name in heads if all(each.head != name for each in held_out)]
    unknown = [each.head for each in held_out if each.head not in heads]
    if missing or unknown:
        raise UsageError(
            f"Expected held-out examples of these heads: {', '.join(map(repr, heads))}. Received: "
            f"{', '.join(repr(each.head) for each in held_out)}. Every head needs some."
        )
    tasks = [each.task for each in held_out]
    if repeated := [task for task in dict.fromkeys(tasks) if tasks.count(task) > 1]:
        raise UsageError(
            "Expected the held-out examples of each task together. Received: those of "
            f"'{repeated[0]}' {tasks.count(repeated[0])} times. Join them, or name the tasks "
            "differently."
        )


def _check_labels(heads: Mapping[str, keras.Model], held_out: Sequence[HeldOut]) -> None:
    """Refuse labels that no answer can equal: they would count as wrong without a word."""
    measured = [each for each in held_out if len(each.labels)]
    classes = description_of(heads)["classes"] if measured else {}
    for each in measured:
        labels, count = np.asarray(each.labels), len(classes[each.head])
        others = labels[~np.isin(labels, range(count))]
        if labels.ndim != 1 or others.size:
            shape = f"an array of shape {list(labels.shape)}"
            received = shape if labels.ndim != 1 else f"{others[0].item()!r} among them"
            raise UsageError(
                f"Expected labels [N] of '{each.task}' that are numbers of classes, from 0 to "
                f"{count - 1}, for '{each.head}' has {count}. Received: {received}. Number the "
                "classes in the order of the logits."
            )
        if not callable(each.batches):
            raise UsageError(
                f"Expected `batches` of '{each.task}' to be a function from a batch size to "
                f"batches of inputs. Received: {type(each.batches).__name__}. For an array x: "
                "`lambda size: (x[k : k + size] for k in range(0, len(x), size))`."
            )


def _first_batch(held_out: HeldOut) -> np.ndarray:
    return next(iter(held_out.batches(_EXAMPLES_OF_A_TASK)))
