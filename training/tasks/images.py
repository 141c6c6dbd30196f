"""Images as arrays: decoding files and bringing images to one size."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_mas.errors import UsageError

from ..available_memory import require_memory
from .errors import DataError

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

    The image is rotated as its EXIF orientation says. Grey, palette and CMYK images become RGB,
    16-bit values are reduced to 8 bits, transparent pixels are blended with white, and only the
    first frame of an animation is read.

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
    except Exception as error:  # decoders raise too many kinds of error to list
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


def stack_images(
    images: Iterable[tuple[str, np.ndarray]], count: int, size: ImageSize | None
) -> np.ndarray:
    """Bring images to one size and stack them.

    Args:
        images: Pairs of a name, for error messages, and a uint8 array `[H, W, C]`.
        count: Number of images N, ≥ 1.
        size: Size of the result; None if all images have one size already.

    Returns:
        uint8 array `[N, side, side, C]`, or `[N, H, W, C]` if `size` is None.

    Raises:
        UsageError: If `size` is None and the images differ in size, if they differ in their number
            of channels, or if the result would not fit into memory.
        DataError: If there is no image, or one that must be resized is not of dtype uint8.
    """
    stacked, first = None, ""
    for index, (name, image) in enumerate(images):
        shape = image.shape if size is None else (size.side, size.side, image.shape[-1])
        if stacked is None:
            stacked, first = _allocate(count, shape, image.dtype), name
        if shape != stacked.shape[1:]:
            raise UsageError(
                f"Expected images of one size. Received: {_size(stacked.shape[1:])} in {first} and "
                f"{_size(shape)} in {name}. Set `image_size` in the TOML file, for example "
                "image_size = 64."
            )
        stacked[index] = image if image.shape == shape else _resize(name, image, size)
    if stacked is None:
        raise DataError("Expected at least one image. Received: none.")
    return stacked


def _allocate(count, shape, dtype):
    size = np.dtype(dtype).itemsize * math.prod((count, *shape))
    require_memory(
        2 * size,  # the array, and the copy in random order that training data is made of
        f"{count:,} images of size {_size(shape)}, and a copy of them,",
        "Set a smaller `image_size` in the TOML file.",
    )
    return np.empty((count, *shape), dtype)


def _resize(name, image, size):
    """Resize bilinearly, averaging over all pixels that are reduced to one."""
    from PIL import Image, ImageOps

    if image.dtype != np.uint8:
        raise DataError(
            f"Expected uint8 pixels, to resize them. Received: {image.dtype} in {name}."
        )
    shape, bilinear = (size.side, size.side), Image.Resampling.BILINEAR
    # Pillow takes grey images without their channel axis.
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    fit = ImageOps.fit if size.mode == "crop" else Image.Image.resize
    return np.asarray(fit(pixels, shape, bilinear)).reshape(*shape, image.shape[-1])


def _size(shape):
    return "x".join(str(extent) for extent in shape)
