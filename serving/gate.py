"""The gate: whether a version may be published, by what it answers to held-out examples.

The tasks are the slices. Both versions, the new one and the one it is compared with, answer the
same examples, so their accuracies are paired: what counts is the examples that one of them gets
right and the other wrong,

    loss of accuracy = (lost − gained) / N,

`lost` being those that only the earlier version gets right, and `gained` those that only the new
one does. This estimate is compared with the bound. Its interval and McNemar's test are reported
beside it, so that a small set is seen to be one, and decide nothing: a bound on the upper end of
the interval would refuse every version on a small set, and one on the lower end would let a damaged
version pass.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file

from .runtime import LoadedVersion

CONFIDENCE = 0.95
"""Confidence of the intervals."""

BLESSING = "blessing.json"
"""Name of the file of a judgement."""

_FORMAT = 1
_BATCH_SIZE = 128

# What a judgement says of a task without examples; of a new one, from `before` on.
_UNMEASURED: Mapping[str, None] = {
    "accuracy": None,
    "interval": None,
    "before": None,
    "drop": None,
    "drop_interval": None,
    "lost": None,
    "gained": None,
    "p_value": None,
}


class RefusedError(RuntimeError):
    """A version was not published; the message says which task lost how much."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out examples of a task.

    Attributes:
        task: Name of the task.
        head: Signature that answers for it, which tasks may share.
        labels: The classes `[N]` as the head numbers them, from 0; none, N = 0, if there are no
            examples of the task, which is then not measured.
        batches: From a batch size to the N inputs in their order, `[n, ...]` batch after batch, as
            often as it is called.
    """

    task: str
    head: str
    labels: np.ndarray
    batches: Callable[[int], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a version has to meet.

    Attributes:
        max_forgetting: How much accuracy, a fraction, a task may lose; None for any.
        min_accuracy: Accuracy, a fraction, that a new task has to reach; None for any.

    Raises:
        UsageError: If one is no number from 0 to 1.
    """

    max_forgetting: float | None = None
    min_accuracy: float | None = None

    def __post_init__(self):
        for name, bound in dataclasses.asdict(self).items():
            if bound is not None and not 0 <= bound <= 1:  # NaN neither
                raise UsageError(
                    f"Expected `{name}` to be a fraction, from 0 to 1. Received: {bound!r}."
                )


@dataclasses.dataclass(frozen=True)
class Compared:
    """The version that a new one is compared with.

    Attributes:
        version: Its number.
        label: The label that made it the one; empty for the latest version published.
        tasks: Names of the tasks that it answers for.
        right: From the name of a task, of those that the new version has too, to whether each
            held-out example is answered right, bool `[N]`.
    """

    version: int
    label: str
    tasks: Collection[str]
    right: Mapping[str, np.ndarray]

    def __str__(self) -> str:
        return f"version {self.version} ({self.label or 'the latest; none is labelled stable'})"


def answered_right(version: LoadedVersion, held_out: HeldOut) -> np.ndarray:
    """Ask a version about the held-out examples of a task.

    Args:
        version: The version in the C++ runtime, with a signature of the name of the head.
        held_out: The examples.

    Returns:
        Bool `[N]`: whether the class is the right one, and the probabilities are finite.

    Raises:
        UsageError: If there are more inputs than labels, or fewer.
        tf.errors.OpError: If the version refuses the examples.
    """
    if not len(held_out.labels):
        return np.zeros(0, bool)
    [name] = version.signatures[held_out.head].inputs
    answers = [
        version.run(held_out.head, {name: np.asarray(batch, np.float32)})
        for batch in held_out.batches(_BATCH_SIZE)
    ]
    classes = np.concatenate([np.zeros(0, np.int64), *(answer["class"] for answer in answers)])
    if len(classes) != len(held_out.labels):
        raise UsageError(
            f"Expected {len(held_out.labels)} held-out examples of '{held_out.task}' from "
            f"`batches`, one for each label. Received: {len(classes)}. Return all of them every "
            "time that it is called."
        )
    probabilities = np.concatenate([answer["probabilities"] for answer in answers])
    return (classes == held_out.labels) & np.isfinite(probabilities).all(axis=-1)


def judge(
    version: int,
    right: Mapping[str, np.ndarray],
    bounds: Bounds,
    compared: Compared | None,
    incomparable: str = "",
) -> dict[str, Any]:
    """Compare a new version, task by task, with an earlier one.

    Args:
        version: Number of the new version.
        right: From the name of each of its tasks to whether each held-out example is answered
            right, bool `[N]`; N = 0 for a task that cannot be measured, whose numbers are None.
        bounds: What it has to meet.
        compared: The earlier version; None if there is none.
        incomparable: Why an earlier version cannot be compared with, which is refused if there is a
            bound for what a task may lose; empty if it can be, or if there is none.

    Returns:
        What `blessing.json` holds:

            format          number of this format
            version         number of the version
            blessed         whether it meets the bounds; None, not judged, if there is none, or no
                            task was measured
            refusals        a sentence for each bound that it does not meet
            missing         tasks that the earlier version answers and this one does not, which is
                            refused if there is a bound for what a task may lose
            compared_with   `version` and `label` of the earlier one; None for the first version
            max_forgetting, min_accuracy, confidence
            tasks           for each `task`: `examples` and `accuracy` with `interval`, its Wilson
                            interval. For a task that the earlier version knows: `before`, its
                            accuracy there; `drop`, which is negative for a gain, `drop_interval`;
                            `lost` and `gained`, in examples; `p_value`, how likely a drop so large
                            is by chance if none is real, by McNemar's exact test. None for others
    """
    tasks = [_of_task(task, each, compared) for task, each in right.items()]
    refusals = [sentence for row in tasks for sentence in _refusals(row, bounds, compared)]
    missing = [] if compared is None else _missing(compared, right)
    if bounds.max_forgetting is not None:
        refusals += [
            f"task '{task}', which {compared} answers, is not answered by a signature of that name"
            for task in missing
        ]
        refusals += [incomparable.rstrip(".")] if incomparable else []
    is_judged = bounds != Bounds() and any(row["examples"] for row in tasks)
    return {
        "format": _FORMAT,
        "version": version,
        "blessed": not refusals if is_judged or refusals else None,
        "refusals": refusals,
        "missing": missing,
        "compared_with": compared
        and {"version": compared.version, "label": compared.label or None},
        **dataclasses.asdict(bounds),
        "confidence": CONFIDENCE,
        "tasks": tasks,
    }


def _missing(compared: Compared, right: Collection[str]) -> list[str]:
    both = [task for task in compared.right if task in right]
    return [task for task in compared.tasks if task not in both]


def _of_task(task: str, right: np.ndarray, compared: Compared | None) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "examples": len(right), **_UNMEASURED}
    if not len(right):
        return row
    row["accuracy"] = right.mean().item()
    row["interval"] = list(wilson_interval(int(right.sum()), len(right)))
    if compared is None or task not in compared.right:
        return row
    before = compared.right[task]
    lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
    return row | {
        "before": before.mean().item(),
        "drop": (lost - gained) / len(right),
        "drop_interval": list(drop_interval(int((before & right).sum()), lost, gained, len(right))),
        "lost": lost,
        "gained": gained,
        "p_value": mcnemar_p_value(lost, gained),
    }


def _refusals(row: Mapping[str, Any], bounds: Bounds, compared: Compared | None) -> Iterable[str]:
    if row["accuracy"] is None:
        return
    if row["drop"] is None:
        if bounds.min_accuracy is not None and row["accuracy"] < bounds.min_accuracy:
            low, high = row["interval"]
            yield (
                f"the new task '{row['task']}' has an accuracy of {row['accuracy']:.4f} on "
                f"{row['examples']} held-out examples ({CONFIDENCE:.0%} interval {low:.4f} to "
                f"{high:.4f}), less than the {bounds.min_accuracy:g} that is asked for"
            )
    elif bounds.max_forgetting is not None and row["drop"] > bounds.max_forgetting:
        low, high = row["drop_interval"]
        yield (
            f"task '{row['task']}' lost {row['drop']:.4f} of its accuracy, from "
            f"{row['before']:.4f} in {compared} to {row['accuracy']:.4f}, on {row['examples']} "
            f"held-out examples ({CONFIDENCE:.0%} interval of the loss {low:.4f} to {high:.4f}), "
            f"more than the {bounds.max_forgetting:g} that is allowed"
        )


def wilson_interval(right: int, examples: int) -> tuple[float, float]:
    """Return Wilson's interval of an accuracy, `right / examples`, with `CONFIDENCE`."""
    interval = stats.binomtest(right, examples).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def drop_interval(both: int, lost: int, gained: int, examples: int) -> tuple[float, float]:
    """Return an interval of the loss of accuracy between two versions on the same examples.

    Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17 (1998): Wilson's intervals of both
    accuracies, put together by their correlation φ. It is not empty if no answer differs, as an
    interval by the normal distribution or by a bootstrap would be.

    Args:
        both: Examples that both versions get right.
        lost: Those that only the earlier version gets right.
        gained: Those that only the new one does.
        examples: All examples, N ≥ 1.

    Returns:
        Lower and upper end, from −1 to 1, with `CONFIDENCE`.
    """
    before, now = (both + lost) / examples, (both + gained) / examples
    low_before, high_before = wilson_interval(both + lost, examples)
    low_now, high_now = wilson_interval(both + gained, examples)
    phi = _correlation(both, lost, gained, examples - both - lost - gained)

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    drop = (lost - gained) / examples
    return (
        drop - distance(before - low_before, high_now - now),
        drop + distance(now - low_now, high_before - before),
    )


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """Return φ of a table of two by two, with Newcombe's correction for continuity."""
    product = math.prod([both + lost, gained + neither, both + gained, lost + neither])
    excess: float = both * neither - lost * gained
    if excess > 0:
        excess = max(excess - (both + lost + gained + neither) / 2, 0)
    return excess / math.sqrt(product) if product else 0.0


def mcnemar_p_value(lost: int, gained: int) -> float:
    """Return how likely at least so many of the differing answers are lost, if half were expected.

    McNemar's exact test, one-sided.
    """
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)


def write_blessing(directory: str | os.PathLike, blessing: Mapping[str, Any]) -> Path:
    """Write a judgement to a folder, in the place of an earlier one.

    Args:
        directory: The folder.
        blessing: What `judge` returned, and what the caller adds.

    Returns:
        The file.
    """
    path = Path(directory) / BLESSING
    with atomic_file(path, "w") as file:
        json.dump(blessing, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return path


def read_blessing(directory: str | os.PathLike) -> dict[str, Any]:
    """Return the judgement that was written to a folder by `write_blessing`."""
    blessing: dict[str, Any] = json.loads((Path(directory) / BLESSING).read_text(encoding="utf-8"))
    return blessing


def comparison_sentence(blessing: Mapping[str, Any]) -> str:
    """Return with what a version was compared, and what it lost."""
    compared = blessing["compared_with"]
    if compared is None:
        note: str = blessing["note"].rstrip(".")
        return note[0].lower() + note[1:]
    said = f"compared with version {compared['version']} ({compared['label'] or 'the latest'})"
    unmeasured = unmeasured_sentence(
        row["task"] for row in blessing["tasks"] if not row["examples"]
    )
    if all(row["accuracy"] is None for row in blessing["tasks"]):
        return f"{said}: {unmeasured}"
    lost = losses(blessing, 0.0) or "no task lost accuracy"
    return f"{said}: {lost}; {unmeasured}" if unmeasured else f"{said}: {lost}"


def unmeasured_sentence(tasks: Iterable[str]) -> str:
    """Return that tasks were not measured, and why; empty for none."""
    names = [f"'{task}'" for task in tasks]
    if not names:
        return ""
    were, them = ("were", "them") if len(names) > 1 else ("was", "it")
    return f"{', '.join(names)} {were} not measured, since there are no examples of {them}"


def losses(blessing: Mapping[str, Any], allowed: float) -> str:
    """Return the tasks that lost more accuracy than is allowed, and how much; empty for none."""
    return ", ".join(
        f"task '{row['task']}' lost {row['drop']:.4f} of its accuracy, from {row['before']:.4f} to "
        f"{row['accuracy']:.4f}"
        for row in blessing["tasks"]
        if row["drop"] is not None and row["drop"] > allowed
    )


def refusal_sentence(blessing: Mapping[str, Any], model: str, path: Path) -> str:
    """Return why a version was not published, and what to do."""
    refusals: Sequence[str] = blessing["refusals"]
    return (
        f"Version {blessing['version']} of '{model}' was not published: {'; '.join(refusals)}. All "
        f"numbers are in '{path}'. Train it again, allow more, or publish it all the same and say "
        "why (`--force REASON`)."
    )
