"""Images as arrays: one way to decode a file, one way to resize."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from keras_mas.errors import UsageError

from .errors import DataError

# Files with these endings must decode; others in a class folder are notes and are passed over. The
# list has formats that Pillow may lack (HEIC), since a photograph must not be dropped in silence.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"}
    | {".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


def read_image(path: Path) -> np.ndarray:
    """Decode an image file to colours as a viewer shows them.

    A photograph is turned upright as its EXIF data says; grey, palette and CMYK images become RGB;
    16-bit values are reduced to 8 bits; what is transparent becomes white; of an animation the
    first frame is taken.

    Args:
        path: The file.

    Returns:
        uint8 array `[height, width, 3]`.

    Raises:
        DataError: If the file cannot be decoded, or holds floating-point or 32-bit values, whose
            range is not known.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # decoders fail in too many ways to list, and all mean the same here
        raise DataError(
            f"Expected an image that can be decoded. Received: '{path}' ({error}). Repair, convert "
            "or remove this file."
        ) from error


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


def stack_images(images: Iterable[tuple[str, np.ndarray]], size: int | None) -> np.ndarray:
    """Bring images to one size and stack them.

    Args:
        images: Pairs of a name, for error messages, and a uint8 array `[H, W, C]`.
        size: Height and width of the result. Images are stretched to it, whatever their shape. None
            if they all have one size already.

    Returns:
        uint8 array `[N, size, size, C]`, or `[N, H, W, C]` if `size` is None.

    Raises:
        UsageError: If `size` is None and the images differ in size.
        DataError: If an image is not of dtype uint8.
    """
    stacked, first = [], None
    for name, image in images:
        if size is not None:
            image = _resize(name, image, size)
        first = first or (name, image.shape)
        if image.shape != first[1]:
            raise UsageError(
                f"Expected images of one size. Received: {_size(first[1])} in {first[0]} and "
                f"{_size(image.shape)} in {name}. Set `image_size` in the TOML file, for example "
                "image_size = 64."
            )
        stacked.append(image)
    return np.stack(stacked)


def _resize(name, image, size):
    """Bilinear, averaging over all pixels that fall on one when an image gets smaller."""
    from PIL import Image

    if image.shape[:2] == (size, size):
        return image
    if image.dtype != np.uint8:
        raise DataError(
            f"Expected uint8 pixels, to resize them. Received: {image.dtype} in {name}."
        )
    pixels = image[..., 0] if image.shape[-1] == 1 else image  # Pillow wants grey without its axis
    small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small).reshape(size, size, image.shape[-1])


def _size(shape):
    return "x".join(str(extent) for extent in shape)
