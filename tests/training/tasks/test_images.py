import numpy as np
import pytest
from PIL import Image

from keras_mas.training.tasks import DataError
from keras_mas.training.tasks.errors import BrokenFileError
from keras_mas.training.tasks.images import ImageSize, read_image, resized


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


def colour(pixels):
    """The one colour of a one-coloured image."""
    (only,) = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    return only


# Reading.


def test_colours_stay(tmp_path):
    pixels = saved(tmp_path, Image.new("RGB", (6, 4), (10, 20, 30)))
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    assert colour(pixels) == (10, 20, 30)


@pytest.mark.parametrize(("mode", "value"), [("L", 7), ("1", 1)])
def test_grey_becomes_rgb(tmp_path, mode, value):
    grey = 255 if mode == "1" else value
    assert colour(saved(tmp_path, Image.new(mode, (2, 2), value))) == (grey, grey, grey)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = Image.fromarray(np.full((2, 2), 128 * 257, np.uint16))
    assert colour(saved(tmp_path, deep)) == (128, 128, 128)


def test_palette_becomes_its_colours(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert colour(saved(tmp_path, image, "a.gif")) == (200, 100, 50)


@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (255, 0)])
def test_transparent_becomes_white(tmp_path, alpha, expected):
    image = Image.new("RGBA", (2, 2), (0, 0, 0, alpha))
    assert colour(saved(tmp_path, image)) == (expected,) * 3


def test_transparent_palette_colour_becomes_white(tmp_path):
    image = Image.new("P", (2, 2), 0)
    image.putpalette([9, 9, 9])
    assert colour(saved(tmp_path, image, transparency=0)) == (255, 255, 255)


def test_photograph_is_turned_upright(tmp_path):
    # Orientation 6: the camera was held upright; a viewer turns the picture clockwise. What the
    # file has in its lower left corner is then seen in the upper left.
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 3), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = saved(tmp_path, image, exif=exif)
    assert pixels.shape == (6, 4, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb(tmp_path):
    pixels = saved(tmp_path, Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "a.jpg")
    assert colour(pixels) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((2, 2), 0.5, np.float32), "unknown range"),
        (np.full((2, 2), 70000, np.int32), "more than 16 bits"),
    ],
)
def test_values_of_unknown_range(tmp_path, values, reason):
    with pytest.raises(DataError, match=reason):
        saved(tmp_path, Image.fromarray(values), "a.tif")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_cannot_be_decoded_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match="can be decoded. Received: '.*broken.png'"):
        read_image(path)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(24, "Too many open files"), "Too many open files"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "not enough memory"),
    ],
)
@pytest.mark.parametrize("where", ["pathlib.Path.read_bytes", "PIL.Image.open"])
def test_what_the_machine_cannot_read_is_not_broken(tmp_path, monkeypatch, error, why, where):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(DataError, match=rf"can be read. Received: '.*a.png' \({why}\)") as found:
        read_image(tmp_path / "a.png")
    assert not isinstance(found.value, BrokenFileError)


def test_the_reason_of_a_broken_file_is_a_sentence(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(BrokenFileError) as found:
        read_image(tmp_path / "a.png")
    assert found.value.reason == f"'{tmp_path / 'a.png'}' (cannot identify image file)"


def test_truncated_photograph(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cut.jpg' \(.*truncated"):
        read_image(path)


# Resizing.


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shrinking_averages_all_pixels(channels):
    # Columns alternate between 0 and 200. Taking every fourth would give 0 or 200 everywhere.
    stripes = np.zeros((16, 16, channels), np.uint8)
    stripes[:, ::2] = 200
    if channels == 4:
        stripes[..., 3] = 255
    small = resized("a", stripes, ImageSize(4))
    assert small.shape == (4, 4, channels)
    assert np.abs(small[..., 0].astype(int) - 100).max() <= 15


@pytest.mark.parametrize("size", [None, ImageSize(8)])
def test_image_of_the_right_size_is_not_touched(size):
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    assert resized("a", noise, size) is noise


def test_only_eight_bit_pixels_are_resized():
    with pytest.raises(DataError, match="uint8 pixels.*Received: uint16 in example 3"):
        resized("example 3", np.zeros((4, 4, 1), np.uint16), ImageSize(8))


def centre_and_margins(height, width):
    """An image whose central square is black and whose margins are white."""
    image = np.full((height, width, 3), 255, np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = 0
    return image


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (100, 300)])
def test_cropping_keeps_the_central_square(shape):
    cropped = resized("a", centre_and_margins(*shape), ImageSize(8))
    assert cropped.shape == (8, 8, 3)
    # Bilinear resizing averages a little beyond the outermost pixels.
    assert cropped[1:-1, 1:-1].max() == 0
    assert cropped.mean() < 10


def test_stretching_keeps_the_whole_image():
    # A third of the width is black: columns 8-15 of 24, and 8/3 to 16/3 of 8.
    stretched = resized("a", centre_and_margins(8, 24), ImageSize(8, "stretch"))
    assert stretched[0, [0, 7], 0].tolist() == [255, 255]
    assert stretched[0, [3, 4], 0].max() < 40
