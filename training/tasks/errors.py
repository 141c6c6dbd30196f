"""The errors for bad data."""


class DataError(RuntimeError):
    """The request is valid, but the data is bad or unavailable.

    Raised for a file that cannot be decoded, arrays whose shapes do not match, labels that number
    no class, or a data set that is not on disk and cannot be downloaded. The command line exits
    with code 1, and with code 2 after a wrong request (`keras_mas.errors.UsageError`).
    """


class BrokenFileError(DataError):
    """A file, or one example of a data set, cannot be decoded; it may be left out.

    Args:
        reason: What cannot be decoded, and in parentheses why.
    """

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(
            f"Expected an image that can be decoded. Received: {reason}. Repair, convert or remove "
            "it, or leave out all that cannot be decoded with `--skip-broken`."
        )
