"""Who runs the trials of a search: this process, several of them, or other machines."""

import argparse
import dataclasses
import ipaddress
import os
import secrets
import socket

from keras_mas.errors import UsageError

from ..options import NOT_NEGATIVE, check_options, option


def address(text: str) -> str:
    """Return an address, `HOST:PORT`; an argparse type."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(
            f"expected HOST:PORT, such as 10.0.0.5:7007, received {text!r}"
        )
    return text


def is_of_this_machine(text: str) -> bool:
    """Return whether an address is reached from this machine only."""
    host = text.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reached_at(text: str, host_name: str) -> str:
    """Return where an address that is listened at is reached, from a machine that has a name.

    Example:
        >>> reached_at("0.0.0.0:7007", "node7")
        'node7:7007'
    """
    host, _, port = text.rpartition(":")
    return f"{host_name}:{port}" if host in ("0.0.0.0", "[::]") else text


# Where a chief has the name of a worker that it starts. Keras-tuner's own variable, which is the
# user's to set, may be the same for several.
NAME = "KERAS_MAS_WORKER"


def worker_name() -> str:
    """Return the name of this process as a worker, which no other one has."""
    # Processes of several containers may have the same number on the same machine.
    return os.environ.get(NAME) or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# More processes than this on a core only take memory and turns from each other.
_PER_CORE = 4


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who runs the trials.

    Attributes:
        workers: How many processes of this machine.
        listen: Address at which workers of other machines join; None for no others.
        join: Address of a search to run trials of, and nothing else; None for a search.

    Raises:
        UsageError: If nobody would run them, or both a search and a worker of one is asked for.
    """

    workers: int = option(
        1,
        "processes on this machine that run trials side by side, with an equal share of its cores "
        f"each, no more than there are trials, and at most {_PER_CORE} for a core; 0 leaves all "
        "trials to workers that join",
        bounds=NOT_NEGATIVE,
        metavar="N",
    )
    listen: str | None = option(
        None,
        "address at which workers of other machines may join, such as 0.0.0.0:7007; there is no "
        "password, so take one of a trusted network (default: this machine only)",
        parse=address,
        metavar="HOST:PORT",
    )
    join: str | None = option(
        None,
        "be a worker of the search that listens there: the other options and the content of "
        "--directory have to be those of that search",
        parse=address,
        metavar="HOST:PORT",
    )

    def __post_init__(self):
        check_options(self)
        if self.join is not None and (self.listen is not None or self.workers != 1):
            raise UsageError(
                "Expected --join alone, or --workers and --listen. Received both: a process is a "
                "worker of a search or has workers. Start one worker by --join for each process."
            )
        if self.workers == 0 and self.listen is None:
            raise UsageError(
                "Expected --listen HOST:PORT with --workers 0, for workers of other machines to "
                "join. Received none, so that nobody would run the trials."
            )

    def check_cores(self) -> None:
        """Refuse more processes than this machine has use for.

        Raises:
            UsageError: If there would be.
        """
        if self.workers > (most := _PER_CORE * cores()):
            raise UsageError(
                f"Expected --workers of at most {most}, {_PER_CORE} for each core that this "
                f"process may use. Received: {self.workers}. Each is a TensorFlow process with its "
                "own memory; have other machines join with --listen."
            )

    @property
    def are_processes(self) -> bool:
        """Whether trials are run by processes of their own."""
        return self.workers != 1 or self.listen is not None
