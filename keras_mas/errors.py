"""Errors that callers tell apart from others."""


class UsageError(ValueError):
    """What was asked for is wrong, and only the person who asked can mend it.

    Raised for an unknown name, a missing file, a wrong key in a TOML file, an output folder that is
    taken. The command line answers it with exit code 2, and every other error with exit code 1.
    """


class NotFiniteError(ValueError):
    """An importance or an anchor is NaN or infinite, as after a training that diverged."""
