"""datasets/pictures.py: every kind of picture file, and files that are none."""

import os

import numpy as np
import pytest
from PIL import Image

from superres.datasets.pictures import (
    Picture,
    list_pictures,
    read_picture,
    to_float,
    to_uint8,
    write_picture,
)
from superres.errors import InputError

RGB = np.random.default_rng(5).integers(0, 256, (6, 9, 3), "uint8")
GREY, ALPHA = RGB[..., :1], RGB[..., 1:2]


def saved(folder, image, name="picture.png", **options):
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize(
    ("mode", "pixels", "alpha"),
    [("L", GREY, None), ("LA", GREY, ALPHA), ("RGB", RGB, None), ("RGBA", RGB, ALPHA)],
)
def test_every_8_bit_mode_keeps_its_pixels(tmp_path, mode, pixels, alpha):
    planes = pixels if alpha is None else np.concatenate([pixels, alpha], -1)
    path = saved(tmp_path, Image.fromarray(planes.squeeze()))
    assert Image.open(path).mode == mode
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert (picture.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(picture.alpha, alpha)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_becomes_rgb(tmp_path, transparent):
    image = Image.new("P", (3, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path, image, **({"transparency": 1} if transparent else {}))
    picture = read_picture(path)
    assert picture.pixels.shape == (2, 3, 3)
    assert picture.pixels[0, 0].tolist() == [10, 20, 30]
    assert picture.pixels[0, 1].tolist() == [200, 100, 50]
    if transparent:
        assert picture.alpha[..., 0].tolist() == [[255, 0, 255], [255, 255, 255]]
    else:
        assert picture.alpha is None


def test_transparent_colour_of_rgb_becomes_alpha(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    picture = read_picture(saved(tmp_path, image, transparency=(9, 9, 9)))
    assert picture.alpha[..., 0].tolist() == [[0, 255]]


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 8), (0, 255, 255, 0)), "picture.jpg", quality=100)
    assert Image.open(path).mode == "CMYK"
    pixels = read_picture(path).pixels
    assert pixels.shape == (8, 16, 3)
    np.testing.assert_allclose(pixels[4, 8], [255, 0, 0], atol=3)


def test_one_bit_becomes_black_and_white(tmp_path):
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert read_picture(saved(tmp_path, image)).pixels[..., 0].tolist() == [[255, 0, 255]]


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], "uint16")  # 257 is one step of 8 bits
    path = saved(tmp_path, Image.fromarray(values))
    assert Image.open(path).mode == "I;16"
    assert read_picture(path).pixels[..., 0].tolist() == [[0, 0, 1, 1, 128, 255, 255]]


def test_float_tiff_is_read_from_0_to_1(tmp_path):
    values = np.array([[0, 0.25, 0.5, 1, np.nan]], "float32")
    path = saved(tmp_path, Image.fromarray(values), "picture.tif")
    assert read_picture(path).pixels[..., 0].tolist() == [[0, 64, 128, 255, 0]]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side: turn clockwise
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 16, 16))
    pixels = read_picture(saved(tmp_path, image, "picture.jpg", exif=exif, quality=95)).pixels
    assert pixels.shape == (32, 16, 3)
    assert pixels[4, 8].max() < 20
    assert pixels[28, 8].min() > 235


def test_one_pixel(tmp_path):
    assert read_picture(saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)))).pixels.tolist() == [[[1, 2, 3]]]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "picture.gif", save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 2
    assert read_picture(path).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["truncated.png", "empty.png", "text.png", "truncated.jpg", "none.png"])
def test_unreadable_files_are_named_in_one_line(tmp_path, kind):
    path = tmp_path / kind
    if kind.startswith("truncated"):
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind != "none.png":
        path.write_text("" if kind == "empty.png" else "no picture")
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("pixels", [RGB, GREY])
def test_written_and_read_again(tmp_path, pixels, alpha):
    write_picture(tmp_path / "picture.png", Picture(pixels, alpha))
    again = read_picture(tmp_path / "picture.png")
    np.testing.assert_array_equal(again.pixels, pixels)
    np.testing.assert_array_equal(again.alpha, alpha)
    assert os.listdir(tmp_path) == ["picture.png"]


def test_floats_are_written_rounded(tmp_path):
    write_picture(tmp_path / "picture.png", RGB / 255)
    np.testing.assert_array_equal(read_picture(tmp_path / "picture.png").pixels, RGB)


def test_failed_writing_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    def save(self, path, **options):
        path.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    write_picture(tmp_path / "old.png", RGB)
    monkeypatch.setattr(Image.Image, "save", save)
    for name in ("old.png", "new.png"):
        with pytest.raises(OSError, match="No space left"):
            write_picture(tmp_path / name, GREY)
    assert os.listdir(tmp_path) == ["old.png"]
    np.testing.assert_array_equal(read_picture(tmp_path / "old.png").pixels, RGB)


def test_to_uint8_clips_and_rounds_half_up():
    floats = np.array([-1, 0, 0.499 / 255, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.4 / 255, 1, 2])
    assert to_uint8(floats).tolist() == [0, 0, 0, 1, 2, 3, 254, 255, 255]
    assert to_uint8(RGB) is RGB


def test_to_float_and_back_is_exact():
    values = np.arange(256, dtype="uint8")
    assert to_float(values).dtype == "float32"
    assert to_float(values).max() == 1
    np.testing.assert_array_equal(to_uint8(to_float(values)), values)


def test_list_pictures_finds_pictures_below_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "sub/c.tif", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in list_pictures(tmp_path)] == [
        "a.jpg", "b.PNG", "sub/c.tif",
    ]


def test_folder_without_pictures_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=f"^{folder}: no "):
            list_pictures(folder)
