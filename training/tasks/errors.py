"""The errors for bad data."""


class DataError(RuntimeError):
    """The request is valid, but the data is bad or unavailable.

    Raised for a file that cannot be decoded, arrays whose shapes do not match, labels that number
    no class, or a data set that is not on disk and cannot be downloaded. The command line exits
    with code 1, and with code 2 after a wrong request (`keras_mas.errors.UsageError`).
    """


class BrokenFileError(DataError):
    """A file, or one example of a data set, cannot be decoded; it may be left out."""
