"""Images as arrays: decoding files and bringing images to one size."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_mas.serving.conventions import MAX_PIXELS
from keras_mas.serving.orientation import EXIF_BYTES, is_served, orientation_of

from .errors import BrokenFileError, DataError

# Raised when the same file gives other pixels than before, so that cached ones are decoded again.
DECODING_VERSION = 1

# Files with these suffixes are images and must decode; all others in a class folder are ignored.
# Formats that Pillow may not support (HEIC) are listed, so that no photograph is ignored silently.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"}
    | {".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)

RESIZE_MODES = ("crop", "stretch")


@dataclass(frozen=True)
class ImageSize:
    """The square size that the images of a stream are resized to.

    Attributes:
        side: Height and width in pixels, ≥ 1.
        mode: "crop" keeps the aspect ratio: the short side is resized to `side` and the middle of
            the long side is kept. "stretch" keeps the whole image and changes its aspect ratio.
    """

    side: int
    mode: str = "crop"


def read_image(path: Path) -> np.ndarray:
    """Decode an image file to the RGB colours that a viewer shows.

    The image is turned as its EXIF orientation says; JPEG and PNG files by the rule of
    `keras_mas.serving.orientation`, which a served model follows, others by Pillow's. Grey,
    palette and CMYK images become RGB, 16-bit values are reduced to 8 bits, transparent pixels are
    blended with white, and only the first frame of an animation is read.

    Args:
        path: The file.

    Returns:
        uint8 array `[height, width, 3]`.

    Raises:
        BrokenFileError: If the content of the file cannot be decoded, has more than `MAX_PIXELS`,
            or holds floating-point or 32-bit values, whose range is not known.
        DataError: If the machine cannot read the file, or has no memory to decode it. That says
            nothing of the file's content.
    """
    try:
        return _decoded(path, io.BytesIO(path.read_bytes()))
    except MemoryError as error:
        raise unreadable(path, "not enough memory") from error
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error


def unreadable(path: Path, why: str) -> DataError:
    """Return the error for a file that the machine cannot read, whatever its content."""
    return DataError(
        f"Expected a file that can be read. Received: '{path}' ({why}). Repair or remove this file "
        "or link, or what keeps the machine from reading it, and run the same command again; what "
        "has been decoded stays."
    )


def _decoded(path, file):
    """Decode the content of a file, which is in memory, so that no error in it is the system's."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} × {image.height} pixels, more than {MAX_PIXELS:,}, which take "
                    "gigabytes"
                )
            return _upright(image, bytes(file.getbuffer()[:EXIF_BYTES]))
    except Exception as error:  # decoders raise too many kinds of error to list
        if _is_of_the_machine(error):
            raise
        why = str(error).replace(f" {file!r}", "")  # by which Pillow names what it reads
        raise BrokenFileError(f"'{path}' ({why})") from error


def _is_of_the_machine(error):
    """Return whether memory or the system failed; what Pillow says of a content has no number."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) is not None


def _upright(image, beginning):
    from PIL import ImageOps

    if is_served(beginning):
        return _turned(np.asarray(_to_rgb(image)), orientation_of(beginning))
    return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def _turned(pixels, orientation):
    """Turn an image as it was seen, given its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _to_rgb(image):
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode == "F":
        raise ValueError("floating-point values, of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(values):
    """Reduce 16-bit grey values; `Image.convert` would clip everything above 255 to white."""
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("values that need more than 16 bits, of unknown range")
    return np.round(values / 257).astype(np.uint8)  # 65535 / 257 = 255


def resized(name: str, image: np.ndarray, size: ImageSize | None) -> np.ndarray:
    """Bring an image to a size.

    It is resized bilinearly, averaging over all pixels that are reduced to one.

    Args:
        name: Its name, for error messages.
        image: uint8 array `[H, W, C]`.
        size: Size of the result; None to leave the image as it is.

    Returns:
        uint8 array `[side, side, C]`.

    Raises:
        DataError: If an image that must be resized is not of dtype uint8.
    """
    from PIL import Image, ImageOps

    if size is None or image.shape[:2] == (size.side, size.side):
        return image
    if image.dtype != np.uint8:
        raise DataError(
            f"Expected uint8 pixels, to resize them. Received: {image.dtype} in {name}."
        )
    shape, bilinear = (size.side, size.side), Image.Resampling.BILINEAR
    # Pillow takes grey images without their channel axis.
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    fit = ImageOps.fit if size.mode == "crop" else Image.Image.resize
    return np.asarray(fit(pixels, shape, bilinear)).reshape(*shape, image.shape[-1])
