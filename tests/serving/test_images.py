"""A served model decodes and resizes images as training does."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mas.serving.conventions import RESIZE_MODES
from keras_mas.serving.images import decode
from keras_mas.training.tasks import images as training
from keras_mas.training.tasks.errors import BrokenFileError
from keras_mas.training.tasks.images import ImageSize, read_image, resized


def test_the_modes_are_those_of_training():
    assert (*training.RESIZE_MODES, "none") == RESIZE_MODES


def picture(width, height, mode="RGB"):
    """A picture of smooth patches and noise, transparent in places if the mode can be."""
    random = np.random.default_rng(0)
    patches = Image.fromarray(random.integers(0, 256, (3, 4, 4), dtype=np.uint8))
    smooth = np.asarray(patches.resize((width, height)), int)
    noisy = np.clip(smooth + random.integers(-20, 21, smooth.shape), 0, 255)
    image = Image.fromarray(noisy.astype(np.uint8))
    return image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)


def content(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@functools.cache
def graph(shape, resize):
    return tf.function(lambda files: decode(files, shape, resize))


def served(file, shape, resize):
    """What the graph of a served model makes of a file, in graph mode as there."""
    return graph(shape, resize)(tf.constant([file]))[0].numpy()


def trained(file, tmp_path, size=None):
    (tmp_path / "image").write_bytes(file)
    return resized("image", read_image(tmp_path / "image"), size)


FILES = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"quality": 98, "subsampling": 0}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "L", {}),
    *(("PNG", mode, {}) for mode in ("RGB", "L", "RGBA", "LA", "P", "1")),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "L", {"transparency": 0}),
]


@pytest.mark.parametrize(("form", "mode", "options"), FILES)
def test_the_pixels_are_those_of_training(tmp_path, form, mode, options):
    file = content(picture(19, 14, mode), form, **options)
    np.testing.assert_array_equal(served(file, (14, 19, 3), "none"), trained(file, tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_photograph_is_turned_as_the_camera_was_held(tmp_path, orientation, order):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0131] = "a maker", orientation, "software"
    exif.endian = order
    file = content(picture(12, 9), "JPEG", exif=exif)
    expected = trained(file, tmp_path)
    assert expected.shape == ((9, 12, 3) if orientation < 5 else (12, 9, 3))
    np.testing.assert_array_equal(served(file, expected.shape, "none"), expected)


def exif(order="<", kind=3, value=6, directory=8, tag=0x0112):
    """EXIF data as a file has them, with one entry, of which `kind` is the type."""
    value = struct.pack(order + {1: "Bxxx", 3: "Hxx", 4: "I"}[kind], value)
    first = b"II*\0" if order == "<" else b"MM\0*"
    return first + struct.pack(order + "IHHHI", directory, 1, tag, kind, 1) + value + bytes(4)


def jpeg_with(*segments):
    """A photograph with segments APP1 in front."""
    whole = content(picture(12, 9), "JPEG")
    packed = (b"\xff\xe1" + struct.pack(">H", len(each) + 2) + each for each in segments)
    return whole[:2] + b"".join(packed) + whole[2:]


def png_with(*chunks, at=33):
    """An image with chunks of metadata, by default behind the first one, which is the header."""
    whole = content(picture(12, 9), "PNG")
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return whole[:at] + b"".join(packed) + whole[at:]


XMP = b"http://ns.adobe.com/xap/1.0/\0" + (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
HEAD, FAR = b"Exif\0\0", b"ICC_PROFILE\0" + bytes(2**15)
TURNED = {
    "PNG": png_with((b"eXIf", exif())),
    "PNG, big-endian": png_with((b"eXIf", exif(">", value=8))),
    "PNG, last": png_with((b"eXIf", exif()), at=-12),
    "JPEG behind XMP": jpeg_with(XMP, HEAD + exif(value=3)),
    "JPEG behind a profile": jpeg_with(FAR, HEAD + exif()),
}
UPRIGHT = {
    "XMP": jpeg_with(XMP),
    "EXIF of another tag, and XMP": jpeg_with(HEAD + exif(tag=0x0110), XMP),
    "a BYTE": jpeg_with(HEAD + exif(kind=1)),
    "a LONG": jpeg_with(HEAD + exif(kind=4)),
    "a big-endian LONG": jpeg_with(HEAD + exif(">", kind=4)),
    "PNG, a LONG": png_with((b"eXIf", exif(kind=4))),
    "no orientation": jpeg_with(HEAD + exif(value=9)),
    "too far behind": jpeg_with(FAR, FAR, HEAD + exif()),
    "PNG, too far behind": png_with((b"prVt", bytes(2**16)), (b"eXIf", exif())),
    "a second block": jpeg_with(HEAD + exif(value=1), HEAD + exif()),
    "cut": jpeg_with(HEAD + exif()[:18]),
    "a directory that the file does not have": jpeg_with(HEAD + exif(directory=2**32 - 1)),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # says Pillow, and goes on
@pytest.mark.parametrize("name", [*TURNED, *UPRIGHT])
def test_both_find_the_orientation_by_one_rule(tmp_path, name):
    # Pillow alone would follow XMP, any type of number, and blocks anywhere in the file.
    file = (TURNED | UPRIGHT)[name]
    expected = trained(file, tmp_path)
    plain = content(picture(12, 9), "PNG" if name.startswith("PNG") else "JPEG")
    assert np.array_equal(expected, trained(plain, tmp_path)) == (name in UPRIGHT)
    np.testing.assert_array_equal(served(file, expected.shape, "none"), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_file_of_many_pixels_is_refused_by_its_header(tmp_path, channels):
    png, jpeg = content(picture(12, 9), "PNG"), content(picture(12, 9), "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5  # the frame: marker, length, bits, rows, columns
    rows, columns = (8193).to_bytes(2, "big"), (8192).to_bytes(2, "big")
    header = b"IHDR" + bytes(2) + columns + bytes(2) + rows + png[24:29]
    files = (
        png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:],
        jpeg[:start] + rows + columns + jpeg[start + 4 :],
    )
    for file in files:
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"67,108,864 pixels.*8193 8192"):
            served(file, (9, 12, channels), "crop")
        with pytest.raises(BrokenFileError, match="8192 × 8193 pixels, more than 67,108,864"):
            trained(file, tmp_path)


def test_damaged_exif_data_are_no_orientation():
    whole = content(picture(12, 9), "JPEG")
    for tiff in (b"", b"II", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"):
        segment = b"Exif\0\0" + tiff
        length = (len(segment) + 2).to_bytes(2, "big")
        file = whole[:2] + b"\xff\xe1" + length + segment + whole[2:]
        np.testing.assert_array_equal(
            served(file, (9, 12, 3), "none"), served(whole, (9, 12, 3), "none")
        )


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grey_inputs_are_those_of_tensorflow_datasets(form):
    for mode in ("L", "RGB"):
        file = content(picture(12, 9, mode), form)
        expected = tf.image.decode_image(file, channels=1)
        np.testing.assert_array_equal(served(file, (9, 12, 1), "none"), expected)


@pytest.mark.parametrize("size", [(40, 25), (25, 40), (33, 7), (6, 5), (16, 16)])
@pytest.mark.parametrize("mode", ["crop", "stretch"])
def test_images_are_resized_as_in_training(tmp_path, size, mode):
    # Pillow rounds to whole levels after each pass. Resizing without regard to the pixels that are
    # reduced to one, or cropping a pixel further left, is off by tens of levels.
    file = content(picture(*size), "PNG")
    difference = served(file, (16, 16, 3), mode) - trained(file, tmp_path, ImageSize(16, mode))
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() < 0.3


def test_every_image_of_a_batch_has_its_own_size():
    files = [content(picture(*size), "PNG") for size in ((20, 10), (8, 8))]
    batch = decode(tf.constant(files), (8, 8, 3), "crop")
    for file, image in zip(files, batch, strict=True):
        np.testing.assert_array_equal(served(file, (8, 8, 3), "crop"), image)
    assert decode(tf.constant([], tf.string), (8, 8, 3), "crop").shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "a JPEG or PNG file.* bytes:] [0]"),
        (b"GIF89a", "a JPEG or PNG file.* bytes:] [6]"),
        (b"\xff\xd8\xffjunk", "Invalid JPEG data"),
        (b"\x89PNG\r\n\x1a\njunk", "Invalid PNG"),
        (content(picture(5, 4), "PNG"), "8 rows and 8 columns of pixels.* channels:] [4 5 3]"),
        (content(picture(8, 8), "JPEG")[:300], "JPEG"),
    ],
)
def test_what_is_no_image_or_has_another_size_is_refused(file, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        served(file, (8, 8, 3), "none")
    *parts, last = message.split(".*")
    assert all(part in caught.value.message for part in (*parts, last))
