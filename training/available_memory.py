"""Refuse what would not fit into memory, before the operating system ends the process."""

from pathlib import Path

from keras_mas.errors import UsageError

GIB = 2**30

# Where Linux says how much memory a container may use: a number of bytes, or "max".
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def require_memory(needed: int, what: str, advice: str) -> None:
    """Check that the machine has enough free memory for arrays that are about to be made.

    Args:
        needed: Bytes.
        what: What the memory is for, as the subject of the error message.
        advice: A sentence on how to need less.

    Raises:
        UsageError: If less is available. A limit on the process alone, such as a container's, is
            not taken into account.
    """
    import psutil

    available = psutil.virtual_memory().available
    if needed > available:
        raise UsageError(
            f"Expected {what} to fit into memory. Received: {needed / GIB:,.1f} GiB needed, "
            f"{available / GIB:,.1f} GiB available. {advice}"
        )


def machine_memory() -> int:
    """Return the memory of the machine, or of the container that the process runs in, in bytes."""
    import psutil

    total = psutil.virtual_memory().total
    try:
        return min(total, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return total
