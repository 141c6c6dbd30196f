"""The states of a model's versions, and what they mean to a client."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import messages


class VersionStatus(NamedTuple):
    """State of one version of a served model."""

    version: int
    state: str
    """START, LOADING, AVAILABLE, UNLOADING, END or UNKNOWN."""
    error: str
    """Why the version is not available, as the server puts it; "" if nothing went wrong."""


class Readiness(enum.Enum):
    """What the states of a model's versions mean to a client that waits for the newest."""

    AVAILABLE = "available"
    WAITING = "waiting"
    FAILED = "failed"


def readiness(statuses: Sequence[VersionStatus]) -> Readiness:
    """Tell whether the newest version answers requests, may do so later, or never will.

    Args:
        statuses: States of all versions, in any order; may be empty.

    Returns:
        A `Readiness`. The state END is final: the version failed to load, or was unloaded.
    """
    if not statuses:
        return Readiness.WAITING
    finals = {"AVAILABLE": Readiness.AVAILABLE, "END": Readiness.FAILED}
    return finals.get(newest(statuses).state, Readiness.WAITING)


def newest(statuses: Sequence[VersionStatus]) -> VersionStatus:
    """Return the newest version of those that have not been unloaded, as after a rollback.

    A server goes on to list versions that it has unloaded, with the state END and no error.

    Args:
        statuses: States of all versions, in any order; one or more.
    """
    leaving = {"UNLOADING", "END"}
    staying = [each for each in statuses if each.error or each.state not in leaving]
    return max(staying or statuses)


def statuses_of(response: Any) -> list[VersionStatus]:
    """Return the states in a `GetModelStatusResponse`, by ascending version."""
    return sorted(
        VersionStatus(
            item.version, messages.STATES.get(item.state, "UNKNOWN"), item.status.error_message
        )
        for item in response.model_version_status
    )
