"""In which order versions of a model come and go.

Written after TensorFlow Serving's `core/availability_preserving_policy.cc`, its default.
"""

import enum
from collections.abc import Iterable
from typing import NamedTuple


class Action(enum.Enum):
    """What is to be done with a version."""

    LOAD = "load"
    UNLOAD = "unload"


class Snapshot(NamedTuple):
    """A version as the policy sees it."""

    version: int
    aspired: bool
    """Whether it is to be served."""
    new: bool = False
    """Whether it has not been loaded yet."""
    ready: bool = False
    """Whether it answers requests."""


def next_action(versions: Iterable[Snapshot]) -> tuple[Action, int] | None:
    """Return what is to be done next with one of a model's versions; None if all is done.

    A version that is not to be served any more is unloaded once another one answers requests, or if
    none is to be served. Of the versions to load, the highest comes first.

    Args:
        versions: All versions of one model that the server knows.
    """
    versions = list(versions)
    aspired = [each for each in versions if each.aspired]
    obsolete = [each.version for each in versions if each.ready and not each.aspired]
    replaced = not aspired or any(each.ready for each in aspired) or len(obsolete) > 1
    if obsolete and replaced:
        return Action.UNLOAD, min(obsolete)
    new = [each.version for each in aspired if each.new]
    return (Action.LOAD, max(new)) if new else None
