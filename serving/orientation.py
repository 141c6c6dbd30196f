"""Which way up an image is: the rule by which both training and served models turn it.

A JPEG or PNG file is turned by the tag Orientation of its EXIF data, as viewers do: a SHORT in the
first directory of the first EXIF block that begins in the first 64 KiB of the file, within which it
is read. A file without one is upright, whatever its XMP or another kind of metadata says. The graph
of a served model follows the same rule in `images`.
"""

from typing import Literal

from .conventions import IMAGE_BEGINNINGS

EXIF_BYTES = 2**16
"""How many bytes of a file are searched for EXIF data."""

EXIF_MARKERS: dict[str, bytes] = {"JPEG": b"Exif\0\0", "PNG": b"eXIf"}
"""What stands before the EXIF data, which are a TIFF file, in each format."""

TAG, SHORT = 0x0112, 3
"""The number of the tag, and that of the type of its value."""


def is_served(content: bytes) -> bool:
    """Return whether this is the beginning of a file that a served model decodes."""
    return content.startswith(tuple(IMAGE_BEGINNINGS.values()))


def orientation_of(content: bytes) -> int:
    """Return the EXIF orientation of a JPEG or PNG file.

    Args:
        content: Its first `EXIF_BYTES`, or more.

    Returns:
        1 to 8, or what a damaged file says; 1, upright, if it does not say.
    """
    form = next(name for name, start in IMAGE_BEGINNINGS.items() if content.startswith(start))
    _, marker, tiff = content[:EXIF_BYTES].partition(EXIF_MARKERS[form])
    order: Literal["little", "big"] = "little" if tiff.startswith(b"I") else "big"

    def number(offset: int, size: int) -> int:
        """Read an unsigned integer; where the data have ended, there are zeros."""
        return int.from_bytes(tiff[offset : offset + size].ljust(size, b"\0"), order)

    directory = number(4, 4)
    first, entries = directory + 2, number(directory, 2)
    for entry in range(first, min(first + 12 * entries, len(tiff)), 12):
        if number(entry, 2) == TAG and number(entry + 2, 2) == SHORT:
            return number(entry + 8, 2)
    return 1
