"""Decoding and resizing of images in the graph of a served model, as training does it in Pillow.

In colour this follows `read_image` of `keras_mas.training.tasks.images`, and in grey TensorFlow
Datasets, from which alone grey inputs come. JPEG and PNG files of 8 bits per channel in RGB, grey
or a palette are decoded to the same pixels; those of 16 bits, and JPEG files in CMYK, to similar
ones. A resized pixel may differ by one of 255 levels: Pillow rounds after each of its two passes,
and the order of the passes depends on its version.
"""

from collections.abc import Callable

import tensorflow as tf

from .conventions import IMAGE_BEGINNINGS, MAX_PIXELS
from .orientation import EXIF_BYTES, EXIF_MARKERS, SHORT, TAG

_PNG, _JPEG = IMAGE_BEGINNINGS["PNG"], IMAGE_BEGINNINGS["JPEG"]


def decode(contents: tf.Tensor, shape: tuple[int, int, int], resize: str) -> tf.Tensor:
    """Decode files of images and bring them to one size.

    If three channels are asked for, grey images become RGB, transparent pixels are blended with
    white, and a file is turned as its EXIF orientation says, see `orientation`. If one is, colours
    become grey.

    Args:
        contents: String tensor `[N]`, the content of a JPEG or PNG file each, of `MAX_PIXELS` at
            most. Other content fails with `InvalidArgumentError` when the graph runs.
        shape: Height, width and channels, 1 or 3, of the result.
        resize: One of `conventions.RESIZE_MODES`.

    Returns:
        float32 `[N, height, width, channels]`, whole numbers from 0 to 255.
    """

    def decode_one(content: tf.Tensor) -> tf.Tensor:
        pixels = _pixels(content, shape[-1])
        if resize == "none":
            return tf.cast(_of_size(pixels, shape), tf.float32)
        return _resized(pixels, shape, keep_ratio=resize == "crop")

    return tf.map_fn(decode_one, contents, fn_output_signature=tf.TensorSpec(shape, tf.float32))


def _pixels(content: tf.Tensor, channels: int) -> tf.Tensor:
    """Return the pixels of a file, uint8 `[H, W, channels]`."""
    is_png = tf.strings.substr(content, 0, len(_PNG)) == _PNG
    is_jpeg = tf.strings.substr(content, 0, len(_JPEG)) == _JPEG
    message = (
        "Expected the content of a JPEG or PNG file; REST takes it in base64, as "
        '{"b64": "…"}. Received: something else, of this many bytes:'
    )
    with tf.control_dependencies(
        [tf.debugging.Assert(is_png | is_jpeg, [message, tf.strings.length(content)])]
    ):
        content = _of_decodable_size(tf.identity(content), is_png)
    return tf.cond(
        is_png,
        lambda: _png_pixels(content, channels),
        lambda: _jpeg_pixels(content, channels),
    )


def _of_decodable_size(content: tf.Tensor, is_png: tf.Tensor) -> tf.Tensor:
    """Refuse, by the header, a small file that would be decoded to gigabytes."""

    def png_size() -> tf.Tensor:  # columns and rows, which begin the first chunk
        size = tf.strings.substr(content + bytes(24), 16, 8)  # of a file that is cut off, 0
        return tf.reverse(tf.io.decode_raw(size, tf.int32, little_endian=False), [0])

    size = tf.cond(is_png, png_size, lambda: tf.image.extract_jpeg_shape(content)[:2])
    message = (
        f"Expected an image of at most {MAX_PIXELS:,} pixels. Received one of these rows and "
        "columns:"
    )
    # Either may be 2³¹ − 1.
    right = tf.reduce_prod(tf.cast(size, tf.float64)) <= MAX_PIXELS
    with tf.control_dependencies([tf.debugging.Assert(right, [message, size])]):
        return tf.identity(content)


def _jpeg_pixels(content: tf.Tensor, channels: int) -> tf.Tensor:
    if channels == 1:
        return tf.io.decode_jpeg(content, channels)
    # The accurate transform is Pillow's; the default one differs from it by up to ten levels.
    pixels = tf.io.decode_jpeg(content, channels, dct_method="INTEGER_ACCURATE")
    return _turned(pixels, _orientation(content, EXIF_MARKERS["JPEG"]))


def _turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn an image as it was seen, given its EXIF orientation, 1 to 8."""

    def where(orientations: tuple[int, ...], change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        is_one = tf.reduce_any(orientation == orientations)
        return tf.cond(is_one, lambda: change(pixels), lambda: pixels)

    pixels = where((5, 6, 7, 8), lambda image: tf.transpose(image, [1, 0, 2]))
    pixels = where((3, 4, 7, 8), lambda image: tf.reverse(image, [0]))
    return where((2, 3, 6, 7), lambda image: tf.reverse(image, [1]))


def _orientation(content: tf.Tensor, marker: bytes) -> tf.Tensor:
    """Return the EXIF orientation of a file as `orientation.orientation_of` does."""
    data = tf.io.decode_raw(tf.strings.substr(content, 0, EXIF_BYTES), tf.uint8)
    count = tf.size(data)
    data = tf.cast(tf.pad(data, [[0, len(marker)]]), tf.int64)
    begins = tf.stack([data[k : count + k] == byte for k, byte in enumerate(marker)])
    begins = tf.reduce_all(begins, axis=0)
    tiff = tf.argmax(begins) + len(marker)
    is_little_endian = data[tf.minimum(tiff, tf.size(data, tf.int64) - 1)] == ord("I")

    def number(offset: tf.Tensor, size: int) -> tf.Tensor:
        """Read unsigned integers of `size` bytes; where the data have ended, there are zeros."""
        places = tiff + tf.expand_dims(offset, -1) + tf.range(size, dtype=tf.int64)
        digits = tf.gather(data, tf.clip_by_value(places, 0, tf.size(data, tf.int64) - 1))
        digits = tf.where(is_little_endian, digits, tf.reverse(digits, [-1]))
        return tf.reduce_sum(digits * 256 ** tf.range(size, dtype=tf.int64), axis=-1)

    directory = number(tf.constant(4, tf.int64), 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2))  # an entry has 12 bytes
    is_tag = (number(entries, 2) == TAG) & (number(entries + 2, 2) == SHORT)
    values = tf.boolean_mask(number(entries + 8, 2), is_tag)
    known = tf.reduce_any(begins) & tf.reduce_any(is_tag)
    return tf.cond(known, lambda: values[0], lambda: tf.constant(1, tf.int64))


def _png_pixels(content: tf.Tensor, channels: int) -> tf.Tensor:
    if channels == 1:
        return tf.io.decode_png(content, channels)
    pixels = tf.io.decode_png(content, channels=4)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    with tf.control_dependencies([pixels]):  # which fails if the header is incomplete
        bits = tf.io.decode_raw(tf.strings.substr(content, 24, 1), tf.uint8)[0]
    # Where a file has no transparency, TensorFlow fills in the largest number of `bits` bits.
    opaque = tf.cast(2 ** tf.minimum(tf.cast(bits, tf.int32), 8) - 1, tf.uint8)

    def on_white() -> tf.Tensor:  # at most 255² + 127, and no tie to round, for 255 is odd
        levels, share = tf.cast(colour, tf.uint16), tf.cast(alpha, tf.uint16)
        return tf.cast((levels * share + 255 * (255 - share) + 127) // 255, tf.uint8)

    pixels = tf.cond(tf.reduce_all(alpha == opaque), lambda: colour, on_white)
    return _turned(pixels, _orientation(content, EXIF_MARKERS["PNG"]))


def _of_size(pixels: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    found = tf.shape(pixels)
    message = (
        f"Expected an image of {shape[0]} rows and {shape[1]} columns of pixels, for the model "
        "resizes none. Received an image of these rows, columns and channels:"
    )
    right = tf.reduce_all(found == list(shape))
    with tf.control_dependencies([tf.debugging.Assert(right, [message, found])]):
        pixels = tf.identity(pixels)
    pixels.set_shape(shape)
    return pixels


def _resized(pixels: tf.Tensor, shape: tuple[int, int, int], keep_ratio: bool) -> tf.Tensor:
    """Resize bilinearly, averaging over all pixels that are reduced to one."""
    rows, columns = (tf.cast(tf.shape(pixels)[axis], tf.float64) for axis in (0, 1))
    height, width = rows, columns
    if keep_ratio:
        ratio = shape[1] / shape[0]
        height, width = tf.minimum(rows, columns / ratio), tf.minimum(columns, rows * ratio)
    # Pillow rounds to whole levels after each pass.
    across = _pass(pixels[tf.newaxis], 2, shape[1], width, (columns - width) / 2)
    down = _pass(across, 1, shape[0], height, (rows - height) / 2)
    return tf.ensure_shape(down[0], shape)


def _pass(
    images: tf.Tensor, axis: int, size: int, extent: tf.Tensor, start: tf.Tensor
) -> tf.Tensor:
    """Resize what lies between `start` and `start + extent` on one axis, and round."""
    scale = tf.cast(size / extent, tf.float32)
    offset = tf.cast(-start * size / extent, tf.float32)
    rows, columns = tf.shape(images)[1], tf.shape(images)[2]
    resized = tf.raw_ops.ScaleAndTranslate(
        images=images,
        size=[size, columns] if axis == 1 else [rows, size],
        scale=[scale, 1.0] if axis == 1 else [1.0, scale],
        translation=[offset, 0.0] if axis == 1 else [0.0, offset],
        kernel_type="triangle",
        antialias=True,
    )
    return tf.floor(tf.clip_by_value(resized, 0.0, 255.0) + 0.5)
