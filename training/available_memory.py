"""Refuse what would not fit into memory, before the operating system ends the process."""

from keras_mas.errors import UsageError

GIB = 2**30


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
