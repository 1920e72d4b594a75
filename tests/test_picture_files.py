"""Picture files of every kind: values, colour, metadata, animations, damage."""

import io
import itertools
import os
import random
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from superres.datasets import pictures
from superres.datasets.degradations import imresize
from superres.datasets.metadata import Info, as_srgb
from superres.datasets.pictures import (
    Picture,
    fill_invisible,
    list_pictures,
    read_frames,
    read_picture,
    size_of,
    write_frames,
    write_picture,
)
from superres.errors import InputError

RNG = np.random.default_rng(3)
DEEP = RNG.integers(0, 65536, (6, 9, 4), "uint16")
RGB = RNG.integers(0, 256, (6, 9, 3), "uint8")
SMOOTH = np.stack(np.meshgrid(np.arange(48) * 5, np.arange(40) * 6), -1).astype("uint8")
SMOOTH = np.concatenate([SMOOTH, 255 - SMOOTH[..., :1]], -1)


def png_of_16_bits(path, values, transparent=None):
    """Write (H, W, 1 to 4) uint16 with nothing but the format's definition."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = b"" if transparent is None else chunk(b"tRNS", np.asarray(transparent, ">u2").tobytes())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colour
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def tiff(path, values, **options):
    channels = values.shape[2] if values.ndim == 3 else 1
    options.setdefault("photometric", "rgb" if channels > 2 else "minisblack")
    if channels in (2, 4):
        options.setdefault("extrasamples", ["unassalpha"])
    if options.get("planarconfig") == "separate":
        values = np.moveaxis(values, -1, 0)
    tifffile.imwrite(path, values.squeeze(-1) if channels == 1 and values.ndim == 3 else values, **options)
    return path


def assert_deep(path, values):
    """The file has exactly these values of 16 bits, and their rounding at 8 bits."""
    picture = read_picture(path, depth=16)
    assert picture.pixels.dtype == "float32"
    planes = picture.pixels if picture.alpha is None else np.concatenate([picture.pixels, picture.alpha], -1)
    np.testing.assert_array_equal(np.round(planes * np.float64(65535)), values)
    picture = read_picture(path)
    planes = picture.pixels if picture.alpha is None else np.concatenate([picture.pixels, picture.alpha], -1)
    assert planes.dtype == "uint8"
    np.testing.assert_array_equal(planes, np.round(values / 257))


# Values.


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_read_exactly(tmp_path, channels):
    assert_deep(png_of_16_bits(tmp_path / "a.png", DEEP[..., :channels]), DEEP[..., :channels])


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_16_bits(tmp_path, channels):
    path = png_of_16_bits(tmp_path / "a.png", DEEP[..., :channels], DEEP[2, 3, :channels])
    alpha = read_picture(path).alpha[..., 0]
    assert alpha[2, 3] == 0
    assert (alpha == 255).sum() == alpha.size - 1


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True},
                                     {"planarconfig": "separate"}])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_of_16_bits_is_read_exactly(tmp_path, channels, options, byteorder):
    if channels == 1 and "planarconfig" in options:
        pytest.skip("one plane")
    assert_deep(tiff(tmp_path / "a.tif", DEEP[..., :channels], byteorder=byteorder, **options),
                DEEP[..., :channels])


def test_lzw_tiff_of_16_bits_needs_no_other_library(tmp_path):
    """Pillow decompresses it, as it does every compression of libtiff."""
    write_picture(tmp_path / "a.tif", DEEP[..., :3] / 65535, depth=16)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "RGB"
        twice = Image.fromarray(DEEP[..., :3].astype("<u2").view("uint8").reshape(6, 18, 3))
    twice.save(tmp_path / "b.tif", compression="tiff_lzw")
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(9)
        file.pages[0].tags["BitsPerSample"].overwrite((16, 16, 16))
    assert_deep(tmp_path / "b.tif", DEEP[..., :3])


def test_premultiplied_alpha_is_taken_out(tmp_path):
    values = np.array([[[10000, 20000, 5000, 40000], [0, 0, 0, 0]]], "uint16")
    for options in ({}, {"planarconfig": "separate"}):
        path = tiff(tmp_path / "a.tif", values, extrasamples=["assocalpha"], **options)
        picture = read_picture(path, depth=16)
        np.testing.assert_allclose(picture.pixels[0, 0], [0.25, 0.5, 0.125], atol=1e-4)
        np.testing.assert_allclose(picture.alpha[0, :, 0], [40000 / 65535, 0], atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_min_is_white(tmp_path, dtype):
    values = DEEP[..., 0] if dtype == "uint16" else (DEEP[..., 0] >> 8).astype("uint8")
    values = values / np.float32(255) if dtype == "float32" else values
    read = read_picture(tiff(tmp_path / "a.tif", values, photometric="miniswhite"), depth=16).pixels[..., 0]
    most = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    np.testing.assert_allclose(read / (255 if dtype == "uint8" else 1), 1 - values / most, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_from_0_to_1(tmp_path, dtype, channels):
    values = (DEEP[..., :channels] / 65535).astype(dtype)
    picture = read_picture(tiff(tmp_path / "a.tif", values, compression="zlib"), depth=16)
    planes = picture.pixels if picture.alpha is None else np.concatenate([picture.pixels, picture.alpha], -1)
    np.testing.assert_array_equal(planes, values.astype("float32"))


@pytest.mark.parametrize(("values", "white"), [
    (np.float32([[0, 300, 1200]]), 1200),
    (np.float32([[[0, 300, 1200], [1, 2, 3]]]), 1200),
    (np.float32([[-1, 0, 1]]), 1),
    (np.uint32([[0, 1000, 4000]]), 4000),
    (np.int32([[0, 1000, 4000]]), 4000),
    (np.int16([[0, 1000, 4000]]), 4000),
    (np.uint32([[[0, 1000, 4000]] * 2]), 4000),
    (np.float32([[0, 0.5, np.inf]]), 0.5),
])
def test_a_white_that_cannot_be_known_is_asked_for(tmp_path, values, white):
    path = tiff(tmp_path / "a.tif", values)
    with pytest.raises(InputError, match=r"a\.tif: values of type .* from .* to .*--white VALUE") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    expected = np.clip(values / white, 0, 1).reshape(*values.shape[:2], -1)
    np.testing.assert_allclose(read_picture(path, depth=16, white=white).pixels, expected, rtol=1e-6)


def test_32_bits_that_use_their_range(tmp_path):
    path = tiff(tmp_path / "a.tif", np.uint32([[0, 2**31, 2**32 - 1]]))
    np.testing.assert_allclose(read_picture(path, 16).pixels[0, :, 0], [0, 0.5, 1])


def test_pixmaps_of_more_than_8_bits(tmp_path):
    for white in (1023, 65535):
        values = DEEP[..., :3] & white
        header = f"P6\n9 6\n{white}\n".encode()
        (tmp_path / "a.ppm").write_bytes(header + values.astype(">u2").tobytes())
        np.testing.assert_array_equal(read_picture(tmp_path / "a.ppm", 16).pixels, values / np.float32(white))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_written_and_read_again(tmp_path, suffix, channels):
    planes = (DEEP[..., :channels] / 65535).astype("float32")
    picture = Picture(planes[..., : channels - 1 if channels in (2, 4) else channels],
                      planes[..., -1:] if channels in (2, 4) else None, Info(dpi=(300, 300)))
    write_picture(tmp_path / f"a{suffix}", picture, depth=16)
    assert_deep(tmp_path / f"a{suffix}", DEEP[..., :channels])
    assert read_picture(tmp_path / f"a{suffix}").info.dpi == pytest.approx((300, 300), rel=1e-3)
    if suffix == ".tif":  # another library reads the same
        read = tifffile.imread(tmp_path / "a.tif").reshape(6, 9, channels)
        np.testing.assert_array_equal(read, DEEP[..., :channels])
    else:
        import tensorflow as tf

        data = tf.io.read_file(str(tmp_path / "a.png"))
        np.testing.assert_array_equal(tf.io.decode_png(data, dtype=tf.uint16), DEEP[..., :channels])


# Colour.


def profile(space):
    """A colour profile: Adobe RGB, grey of gamma 1, LAB, or CMYK whose full cyan is grey of L* 50."""
    if space == "LAB":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()

    def tag(kind, data):
        return kind + bytes(4) + data

    def xyz(*values):
        return tag(b"XYZ ", struct.pack(">3i", *(round(v * 65536) for v in values)))

    gamma = tag(b"curv", struct.pack(">IH", 1, round((1 if space == "GRAY" else 2.2) * 256)) + bytes(2))
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == "GRAY":
        tags[b"kTRC"] = gamma
    elif space == "CMYK":  # a table of the 16 corners, of L* for cyan varying slowest; a* and b* are 0
        ramp = bytes(range(256))
        corners = [0 if k or m or y else 128 if c else 255
                   for c, m, y, k in itertools.product((0, 1), repeat=4)]
        table = b"".join(bytes([lightness, 128, 128]) for lightness in corners)
        one = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
        tags[b"A2B0"] = tag(b"mft1", bytes([4, 3, 2, 0]) + one + ramp * 4 + table + ramp * 3)
    else:  # Adobe RGB (1998), adapted to D50
        primaries = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
        for name, primary in zip(b"rgb", primaries, strict=True):
            tags |= {bytes([name]) + b"XYZ": xyz(*primary), bytes([name]) + b"TRC": gamma}
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content
    header = struct.pack(">I4sI4s4s4s12x4s", offset + len(data), b"lcms", 0x02100000,
                         b"prtr" if space == "CMYK" else b"mntr", space.encode().ljust(4),
                         b"Lab " if space == "CMYK" else b"XYZ ", b"acsp").ljust(68, b"\0")
    header = (header + xyz(0.9642, 1, 0.8249)[8:]).ljust(128, b"\0")
    return header + struct.pack(">I", len(tags)) + table + data


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("space", ["RGB", "GRAY"])
def test_the_colour_profile_is_kept_and_the_pixels_too(tmp_path, space, suffix):
    pixels = SMOOTH if space == "RGB" else SMOOTH[..., :1]
    write_picture(tmp_path / f"a{suffix}", Picture(pixels, None, Info(icc=profile(space))))
    if space == "GRAY" and suffix in (".webp", ".avif"):  # no place for one: half the light is 188 in sRGB
        picture = read_picture(tmp_path / f"a{suffix}")
        assert picture.info.icc is None
        assert abs(int(picture.pixels[pixels[..., 0] == 130].mean()) - 188) <= 3
        return
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.info.icc == profile(space)
    tolerance = 12 if suffix in (".jpg", ".avif") else 0
    assert np.abs(picture.pixels.astype(int) - pixels).max() <= tolerance
    write_picture(tmp_path / f"b{suffix}", picture, strip=True)
    assert read_picture(tmp_path / f"b{suffix}").info == Info(icc=profile(space))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_profile_in_16_bits(tmp_path, depth):
    for suffix in (".png", ".tif"):
        write_picture(tmp_path / f"a{suffix}", Picture(RGB, None, Info(icc=profile("RGB"))), depth=depth)
        assert read_picture(tmp_path / f"a{suffix}").info.icc == profile("RGB")


def test_an_animation_of_several_profiles_is_of_srgb(tmp_path):
    grey = np.full((32, 32, 1), 90, "uint8")
    colours = np.full((32, 32, 3), (200, 60, 60), "uint8")
    for name, first in (("plain", Info()), ("grey", Info(icc=profile("GRAY")))):
        path = tmp_path / f"{name}.webp"
        write_frames(path, [Picture(grey, None, first), Picture(colours, None, Info(icc=profile("RGB")))])
        frames = [*read_frames(path)]
        assert {frame.info.icc for frame in frames} == {None}
        np.testing.assert_array_equal(frames[1].pixels, as_srgb(colours, profile("RGB")))
    write_frames(tmp_path / "same.webp", [Picture(pixels, None, Info(icc=profile("RGB")))
                                          for pixels in (colours, colours // 2)])
    assert [frame.info.icc for frame in read_frames(tmp_path / "same.webp")] == [profile("RGB")] * 2


def test_kinds_without_a_profile_get_srgb(tmp_path):
    # Adobe RGB's (150, 200, 100) is (123, 201, 94) in sRGB, by the matrices of both.
    adobe = np.array([150, 200, 100])
    of_adobe = [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
    of_srgb = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]]
    linear = np.linalg.solve(of_srgb, np.dot(of_adobe, (adobe / 255) ** 2.2)).clip(0, 1)
    expected = 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels = np.full((4, 4, 3), adobe, "uint8")
    write_picture(tmp_path / "a.bmp", Picture(pixels, None, Info(icc=profile("RGB"))))
    read = read_picture(tmp_path / "a.bmp")
    assert read.info.icc is None
    np.testing.assert_allclose(read.pixels[0, 0], expected, atol=1.5)
    # Grey of gamma 1: half the light is 188 in sRGB.
    pixels = np.full((4, 4, 1), 128, "uint8")
    write_picture(tmp_path / "a.bmp", Picture(pixels, None, Info(icc=profile("GRAY"))))
    np.testing.assert_allclose(read_picture(tmp_path / "a.bmp").pixels, np.full((4, 4, 1), 188), atol=1)


def test_lab_becomes_srgb(tmp_path):
    lab = np.full((3, 4, 3), [128, 0, 0], "uint8")  # L* 50: grey 119 in sRGB
    lab[0] = 255, 0, 0
    Image.fromarray(lab, "LAB").save(tmp_path / "a.tif", icc_profile=profile("LAB"))
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_allclose(picture.pixels[1, 1], [119, 119, 119], atol=1)
    np.testing.assert_allclose(picture.pixels[0, 0], [255, 255, 255], atol=1)
    assert picture.info.icc is None


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_srgb_by_its_profile(tmp_path, suffix):
    image = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (0, 0, 16, 16))
    image.save(tmp_path / f"a{suffix}", icc_profile=profile("CMYK"))
    picture = read_picture(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(picture.pixels[8, 4], [119, 119, 119], atol=2)  # L* 50
    np.testing.assert_allclose(picture.pixels[8, 28], [255, 255, 255], atol=2)
    assert picture.info.icc is None
    image.save(tmp_path / f"a{suffix}")
    assert read_picture(tmp_path / f"a{suffix}").pixels[8, 4, 0] < 20  # without one, cyan


@pytest.mark.parametrize("icc", [b"nonsense", profile("RGB")[:300], profile("GRAY")])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_damaged_or_foreign_profile_is_ignored_and_said(tmp_path, icc, mode):
    path = tmp_path / "a.jpg"
    Image.new(mode, (16, 8), (0, 0, 0, 0)[: len(mode)]).save(path, icc_profile=icc)
    with pytest.warns(UserWarning, match=r"a\.jpg: its colour profile is damaged") as caught:
        picture = read_picture(path)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert picture.info.icc is None
    assert picture.pixels[0, 0].tolist() == ([0, 0, 0] if mode == "RGB" else [255, 255, 255])


# Metadata.


def camera(orientation=6):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model", orientation
    exif[0x0132] = "2024:01:02 03:04:05"
    exif[0x8769] = {0x829A: 0.01, 0xA002: 4000, 0xA003: 3000, 0x9003: "2024:01:02 03:04:05"}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 15.5)}
    return exif


SPACED = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation = '6'/></x:xmpmeta>"
XMP = (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
       b'exif:PixelXDimension="4000" dc:title="A"/></x:xmpmeta>')


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
def test_exif_and_xmp_are_kept_upright_and_without_sizes(tmp_path, source, suffix):
    options = {"exif": camera().tobytes(), "dpi": (240, 240), "xmp": XMP}
    if source == ".png":
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
        options["pnginfo"].add_text("Title", "A title")
    if source == ".tif":
        exif = Image.Exif()
        exif.load(options["exif"])
        exif[700] = XMP
        options["exif"] = exif
    Image.fromarray(SMOOTH).save(tmp_path / f"a{source}", **options)
    picture = read_picture(tmp_path / f"a{source}")
    assert picture.pixels.shape == (48, 40, 3)
    assert np.abs(picture.pixels.astype(int) - np.rot90(SMOOTH, -1)).mean() < 6
    write_picture(tmp_path / f"b{suffix}", picture)
    with Image.open(tmp_path / f"b{suffix}") as image:
        image.load()
        assert image.size == (40, 48)
        exif, inner, gps = image.getexif(), image.getexif().get_ifd(0x8769), image.getexif().get_ifd(0x8825)
        assert exif[0x010F] == "Maker"
        assert exif.get(0x0112, 1) == 1
        assert inner[0x829A] == 0.01
        assert not {0xA002, 0xA003} & set(inner)
        assert gps[2] == (52.0, 30.0, 15.5)
        packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
        assert b'dc:title="A"' in packet
        assert b'tiff:Orientation="1"' in packet
        assert b"PixelXDimension" not in packet
        if suffix in (".jpg", ".png", ".tif") and source != ".webp":
            np.testing.assert_allclose([float(v) for v in image.info["dpi"]], 240, rtol=1e-3)
        if source == suffix == ".png":
            assert image.text["Title"] == "A title"
    assert read_picture(tmp_path / f"b{suffix}").pixels.shape == (48, 40, 3)  # not turned twice
    write_picture(tmp_path / f"c{suffix}", picture, strip=True)
    assert read_picture(tmp_path / f"c{suffix}").info == Info()


def test_an_orientation_that_xmp_alone_names_is_taken_however_it_is_written(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.webp", xmp=SPACED, lossless=True)
    picture = read_picture(tmp_path / "a.webp")
    np.testing.assert_array_equal(picture.pixels, np.rot90(SMOOTH, -1))
    assert b"tiff:Orientation = '1'" in picture.info.xmp


def test_a_blank_picture_that_we_wrote_is_read_again(tmp_path):
    write_picture(tmp_path / "a.webp", np.full((6144, 8192, 1), 255, "uint8"))
    assert read_picture(tmp_path / "a.webp").pixels.shape[:2] == (6144, 8192)


@pytest.mark.parametrize("suffix", [".png", ".tif", "float.tif", "planar.tif", ".gif"])
def test_the_size_is_known_before_the_pixels(tmp_path, monkeypatch, suffix):
    path, pixels = tmp_path / f"a{suffix}", np.zeros((30, 40, 3), "float32" if "float" in suffix else "uint8")
    if ".tif" in suffix:
        tifffile.imwrite(path, pixels if "planar" not in suffix else np.zeros((3, 30, 40), "uint16"),
                         photometric="rgb", planarconfig="separate" if "planar" in suffix else "contig")
    else:
        Image.fromarray(pixels).save(path)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    monkeypatch.setattr(Image.Image, "load", None)
    assert size_of(path) == (40, 30)
    path.write_bytes(path.read_bytes()[:6] + b"nothing")
    with pytest.raises(InputError, match="not a readable picture"):
        size_of(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_orientation_is_pillows(tmp_path, orientation, suffix):
    from PIL import ImageOps

    for deep in (False, True):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(RGB).save(tmp_path / "plain.png", exif=camera(orientation).tobytes())
        expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "plain.png")))
        if not deep:
            Image.fromarray(RGB).save(path, exif=camera(orientation).tobytes())
        elif suffix == ".tif":
            tiff(path, RGB.astype("uint16") * 257, extratags=[(274, "H", 1, orientation)])
        else:
            picture = Picture(RGB, None, Info(exif=camera(orientation).tobytes()))
            write_picture(path, picture, depth=16)
        np.testing.assert_array_equal(read_picture(path).pixels, expected)


def test_thumbnail_is_dropped(tmp_path):
    """A second directory of EXIF holds it."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (16, 16)).save(thumbnail, "JPEG")
    main = struct.pack("<HHHI4s", 1, 0x0112, 3, 1, struct.pack("<HH", 6, 0))
    thumbnail, start = thumbnail.getvalue(), 8 + len(main) + 4
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, start + 30, 514, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + main + struct.pack("<I", start) + second + thumbnail
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=exif)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.pixels.shape == (48, 40, 3)
    assert b"\xff\xd8" not in (picture.info.exif or b"")


def raw_exif(*entries, count=None, tail=b""):
    """An EXIF block of (tag, type, count, 4 bytes) as they are."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count or len(entries)) + body + tail


TURN = (0x0112, 3, 1, struct.pack("<I", 6))
DAMAGED = {
    "rational out of range": raw_exif((0x011A, 10, 1, struct.pack("<I", 38)), TURN,
                                      tail=struct.pack("<4xii", -5, 0)),
    "text for a number": raw_exif((0x010F, 2, 4, b"ab\0\0"), (0x0128, 2, 4, b"two\0"), TURN),
    "text for the orientation": raw_exif((0x0112, 2, 2, b"6\0\0\0")),
    "truncated": raw_exif(TURN, count=40),
    "offset out of the block": raw_exif((0x010E, 2, 500, struct.pack("<I", 2**31)), TURN),
    "unknown type": raw_exif((0x010E, 99, 1, b"abcd"), TURN),
    "directory out of the block": raw_exif(TURN, (0x8769, 4, 1, struct.pack("<I", 2**32 - 1))),
    "directory in itself": raw_exif(TURN, (0x8769, 4, 1, struct.pack("<I", 8))),
    "text for a directory": raw_exif(TURN, (0x8769, 2, 4, b"abc\0")),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_exif_does_not_fail_and_still_turns(tmp_path, damage, suffix):
    Image.fromarray(SMOOTH).save(tmp_path / f"a{suffix}", exif=DAMAGED[damage])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture = read_picture(tmp_path / f"a{suffix}", depth=16)
    assert picture.pixels.shape == (48, 40, 3)
    for warning in caught:
        assert str(warning.message).startswith(f"{tmp_path}/a{suffix}: ")
        assert "\n" not in str(warning.message)
    for kind in (".jpg", ".png", ".tif", ".webp", ".avif"):
        write_picture(tmp_path / f"b{kind}", picture)
        assert read_picture(tmp_path / f"b{kind}").pixels.shape == (48, 40, 3)


def test_damaged_tags_of_a_tiff(tmp_path):
    tags = [(0x010F, "s", 0, "ab"), (0x8769, "I", 1, 2**32 - 1), (274, "H", 1, 6), (0x8825, "s", 0, "x")]
    for values in (RGB, DEEP[..., :3], np.float32(RGB / 255)):
        tiff(tmp_path / "a.tif", values, extratags=tags)
        assert read_picture(tmp_path / "a.tif").pixels.shape == (9, 6, 3)


# Transparency.


def test_invisible_pixels_do_not_bleed_in():
    y, x = np.mgrid[:24, :24]
    alpha = (np.clip(9 - np.hypot(y - 11.5, x - 11.5), 0, 1) * 255).astype("uint8")[..., None]
    disc = Picture(np.where(alpha > 0, np.uint8(255), np.uint8(0)).repeat(3, -1), alpha)
    visible = imresize(alpha, 2)[..., 0] > 0
    assert imresize(disc.pixels, 2)[visible].min() < 200  # what is to be avoided
    filled = fill_invisible(disc)
    assert imresize(filled.pixels, 2)[visible].min() >= 254
    np.testing.assert_array_equal(filled.alpha, alpha)


def test_the_nearest_visible_colour_fills():
    pixels = np.arange(18, dtype="uint8").reshape(1, 6, 3)
    alpha = np.array([0, 255, 0, 0, 1, 0], "uint8").reshape(1, 6, 1)
    filled = fill_invisible(Picture(pixels, alpha)).pixels
    np.testing.assert_array_equal(filled, pixels[:, [1, 1, 1, 4, 4, 4]])
    for same in (Picture(pixels), Picture(pixels, alpha * 0), Picture(pixels, alpha * 0 + 9)):
        assert fill_invisible(same) is same


def test_kinds_without_alpha_are_put_on_white(tmp_path):
    picture = Picture(np.zeros((8, 8, 3), "uint8"), np.full((8, 8, 1), 51, "uint8"))
    for kind in ("jpg", "bmp", "ppm"):
        write_picture(tmp_path / f"a.{kind}", picture)
        read = read_picture(tmp_path / f"a.{kind}")
        assert read.alpha is None
        assert np.unique(read.pixels) == [204]


# Formats.


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jp2", ".tga", ".ico", ".avif", ".jpg", ".bmp",
                                    ".ppm"])
def test_every_kind_is_written_and_read_again(tmp_path, suffix, channels):
    pixels = SMOOTH[..., : 1 if channels < 3 else 3]
    alpha = SMOOTH[..., 1:2] | 1 if channels in (2, 4) else None
    write_picture(tmp_path / f"a{suffix}", Picture(pixels, alpha))
    read = read_picture(tmp_path / f"a{suffix}")
    tolerance = {".avif": 12, ".jpg": 12}.get(suffix, 0)
    if alpha is None:
        assert read.alpha is None
        assert np.abs(read.pixels.astype(int) - pixels).max() <= tolerance
    elif suffix not in (".jpg", ".bmp", ".ppm"):
        assert np.abs(read.pixels.astype(int) - pixels).max() <= tolerance
        assert np.abs(read.alpha.astype(int) - alpha).max() <= tolerance


def test_what_a_kind_cannot_hold_is_said(tmp_path):
    for name, width, message in (("a.ico", 300, "256 x 256"), ("a.xyz", 2, "are written as"),
                                 ("a.pdf", 2, "written as"), ("a.webp", 20000, "20000 x 2 pixels"),
                                 ("a.jpg", 66000, "66000 x 2"), ("a.gif", 66000, "66000 x 2")):
        with pytest.raises(InputError, match=message):
            write_picture(tmp_path / name, np.zeros((2, width, 3), "uint8"))
    with pytest.raises(InputError, match="16 bits"):
        write_picture(tmp_path / "a.jpg", RGB, depth=16)
    assert list(tmp_path.iterdir()) == []


def test_quality(tmp_path):
    noisy = RNG.integers(0, 256, (64, 64, 3), "uint8")
    for suffix in ("jpg", "webp", "avif"):
        sizes = []
        for quality in (20, 90, None):
            write_picture(tmp_path / f"a.{suffix}", noisy, quality=quality)
            sizes.append((tmp_path / f"a.{suffix}").stat().st_size)
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[1]
    with Image.open(tmp_path / "a.jpg") as image:
        assert {(h, v) for _, h, v, _ in image.layer} == {(1, 1)}  # full colour resolution


def test_pictures_without_suffix_and_links(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for kind in ("png", "jpg", "avif", "jp2", "tga", "ico", "webp", "gif", "bmp", "tif"):
        write_picture(folder / f"a.{kind}", RGB)
    (folder / "a.png").rename(folder / "plain")
    (folder / "notes").write_text("no picture")
    (folder / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (folder / "deeper" / "loop").symlink_to(folder)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    write_picture(tmp_path / "elsewhere.png", RGB)
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "other").mkdir()
    write_picture(tmp_path / "other" / "far.png", RGB)
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / ".hidden").mkdir()
    write_picture(folder / ".hidden" / "a.png", RGB)
    names = [str(path.relative_to(folder)) for path in list_pictures(folder)]
    assert names == ["a.avif", "a.bmp", "a.gif", "a.ico", "a.jp2", "a.jpg", "a.tga", "a.tif", "a.webp",
                     "link.png", "linked/far.png", "plain"]
    np.testing.assert_array_equal(read_picture(folder / "plain").pixels, RGB)
    for name in ("itself.png", "nowhere.png", "deeper"):
        with pytest.raises(InputError, match=name):
            read_picture(folder / name)


# Animations.


def frames_of(channels=3, count=4, alpha=False):
    for number in range(count):
        picture = np.roll(SMOOTH, 7 * number, 1)[..., :channels]
        mask = np.zeros((*picture.shape[:2], 1), "uint8")
        mask[number : number + 30, 5:40] = 255
        yield Picture(picture, mask if alpha else None, Info(duration=100 + 50 * number, plays=3))


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif", ".avif"])
def test_an_animation_is_written_and_read_again(tmp_path, suffix, alpha):
    write_frames(tmp_path / f"a{suffix}", frames_of(alpha=alpha))
    again = list(read_frames(tmp_path / f"a{suffix}"))
    assert len(again) == 4
    for read, written in zip(again, frames_of(alpha=alpha), strict=True):
        visible = written.alpha[..., 0] > 0 if alpha else np.full(written.pixels.shape[:2], True)
        error = np.abs(read.pixels.astype(int) - written.pixels)[visible]
        assert error.mean() <= {".gif": 6, ".avif": 3}.get(suffix, 0)
        if alpha:
            np.testing.assert_allclose(read.alpha, written.alpha, atol=8 if suffix == ".avif" else 0)
        if suffix != ".tif":
            assert read.info.duration == written.info.duration
            assert read.info.plays == (0 if suffix == ".avif" else 3)
    assert read_picture(tmp_path / f"a{suffix}").pixels.shape == SMOOTH.shape


@pytest.mark.parametrize("plays", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_plays(tmp_path, suffix, plays):
    frames = [frame._replace(info=Info(duration=40, plays=plays)) for frame in frames_of()]
    write_frames(tmp_path / f"a{suffix}", frames)
    assert [frame.info.plays for frame in read_frames(tmp_path / f"a{suffix}")] == [plays] * 4


def test_frames_of_few_colours_are_exact_in_a_gif(tmp_path):
    frames = [Picture(np.roll(RGB, n, 0)) for n in range(3)] + [Picture(RGB[..., :1])]
    write_frames(tmp_path / "a.gif", frames)
    for read, written in zip(read_frames(tmp_path / "a.gif"), frames, strict=True):
        np.testing.assert_array_equal(read.pixels, written.pixels)


def test_partial_frames_and_disposal_of_a_gif(tmp_path):
    """Written byte by byte: a red ground, a blue square that is cleared after, a green one that stays."""
    palette = bytes([255, 0, 0, 0, 0, 255, 0, 255, 0, 0, 0, 0])

    def frame(x, y, size, colour, disposal):
        # 2 bits a pixel: a clear code before every pixel keeps codes at 3 bits.
        codes = [code for _ in range(size * size) for code in (4, colour)] + [5]
        bits = sum(code << 3 * i for i, code in enumerate(codes))
        data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
        control = b"!\xf9\x04" + struct.pack("<BHBB", disposal << 2, 10, 3, 0)
        place = b"," + struct.pack("<HHHHB", x, y, size, size, 0)
        return control + place + b"\x02" + bytes([len(data)]) + data + b"\0"

    (tmp_path / "a.gif").write_bytes(
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x81, 0, 0) + palette + frame(0, 0, 8, 0, 1)
        + frame(2, 2, 3, 1, 3) + frame(5, 5, 2, 2, 1) + frame(0, 0, 1, 2, 1) + b";")
    red, blue, green = [255, 0, 0], [0, 0, 255], [0, 255, 0]
    expected = [np.full((8, 8, 3), red) for _ in range(4)]
    expected[1][2:5, 2:5] = blue  # disposal 3: taken back afterwards
    expected[2][5:7, 5:7] = expected[3][5:7, 5:7] = green
    expected[3][0, 0] = green
    read = list(read_frames(tmp_path / "a.gif"))
    assert len(read) == 4
    for picture, whole in zip(read, expected, strict=True):
        assert picture.info.duration == 100
        np.testing.assert_array_equal(picture.pixels, whole)


def test_pages_of_a_tiff(tmp_path):
    """Of 16 bits, each of its size; a thumbnail among them is no page."""
    pages = [Picture(DEEP[:n, : 9 - n, :3] / np.float32(65535)) for n in (2, 5)]
    write_frames(tmp_path / "a.tif", iter(pages), depth=16)
    for read, page in zip(read_frames(tmp_path / "a.tif", depth=16), pages, strict=True):
        np.testing.assert_array_equal(read.pixels, page.pixels)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for values in (RGB, RGB[::3, ::3], RGB[1:]):
            file.write(values, photometric="rgb", subfiletype=int(values.shape == (2, 3, 3)))
    assert [frame.pixels.shape for frame in read_frames(tmp_path / "b.tif")] == [(6, 9, 3), (5, 9, 3)]


def test_several_frames_need_a_kind_that_holds_them(tmp_path):
    with pytest.raises(InputError, match="several frames"):
        write_frames(tmp_path / "a.jpg", frames_of())
    assert list(tmp_path.iterdir()) == []


# Damage.


def originals(folder):
    """Small files of nine formats with as much metadata as they hold, and of TIFF and PNG deep ones."""
    info = Info(profile("RGB"), camera().tobytes(), XMP, (300, 300), {"Comment": "A comment"})
    for kind in ("png", "jpg", "webp", "tif", "avif", "bmp", "jp2", "tga", "gif"):
        write_picture(folder / f"a.{kind}", Picture(SMOOTH[:20, :24], None, info))
    write_frames(folder / "b.gif", frames_of())
    write_frames(folder / "b.png", frames_of(alpha=True))
    write_frames(folder / "b.webp", frames_of(count=2))
    write_picture(folder / "c.png", Picture(DEEP[..., :3] / 65535, None, info), depth=16)
    write_picture(folder / "c.tif", Picture(DEEP[..., :3] / 65535, None, info), depth=16)
    tiff(folder / "d.tif", DEEP[..., :3] / np.float32(65535), compression="zlib")
    tiff(folder / "e.tif", DEEP, planarconfig="separate", tile=(16, 16))
    (folder / "c.ppm").write_bytes(b"P6\n9 6\n65535\n" + DEEP[..., :3].astype(">u2").tobytes())
    Image.fromarray(SMOOTH).save(folder / "a.ico", sizes=[(16, 16), (32, 32)])
    return [(path.suffix, path.read_bytes()) for path in sorted(folder.iterdir())]


def mutated(data, rng):
    """The bytes with a few changed, mostly near the start, or a piece cut out, put in or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))
        match rng.randrange(7):
            case 0 | 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at] = rng.choice((0, 1, 127, 128, 255))
            case 3:
                data[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\x80\0\0\0"))
            case 4:
                del data[at : at + rng.randrange(1, 16)]
            case 5:
                data[at:at] = data[:at][-rng.randrange(1, 32) :]
            case _:
                del data[max(at, 8) :]
        data = data or bytearray(b"\0")
    return bytes(data)


def fuzz(folder, count, seed=0):
    """Read so many mutated files, all frames and depths; return the slowest's seconds and how many read."""
    (folder / "originals").mkdir()
    files, rng, slowest, fine = originals(folder / "originals"), random.Random(seed), (0, None), 0
    for number, (suffix, data) in zip(range(count), itertools.cycle(files), strict=False):
        path = folder / f"{number}{suffix}"
        path.write_bytes(mutated(data, rng))
        start, said = time.perf_counter(), []
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for frame in itertools.islice(read_frames(path, depth=16 if number % 2 else 8), 8):
                    assert frame.pixels.ndim == 3
                    assert frame.pixels.shape[-1] in (1, 3)
            fine += 1
        except InputError as error:
            said = [str(error)]
        for message in said + [str(warning.message) for warning in caught]:
            assert message.startswith(f"{path}: ")
            assert "\n" not in message
        slowest = max(slowest, (time.perf_counter() - start, str(path)))
        path.unlink()
    return slowest, fine


def test_nothing_but_input_errors_escapes(tmp_path, capfd):
    slowest, fine = fuzz(tmp_path, 400)
    assert slowest[0] < 5
    assert 40 < fine < 400
    assert capfd.readouterr().err == ""


def test_what_libtiff_says_names_the_file(tmp_path, capfd, monkeypatch):
    path = tiff(tmp_path / "a.tif", SMOOTH, compression="zlib")
    decode = pictures.decode

    def chatty(image, white):
        os.write(2, b"TIFFFetchNormalTag: odd\n")
        return decode(image, white)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decode", chatty)
        with pytest.warns(UserWarning, match=rf"^{path}: TIFFFetchNormalTag: odd$"):
            np.testing.assert_array_equal(read_picture(path).pixels, SMOOTH)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.filehandle.seek(file.pages[0].dataoffsets[0])
        file.filehandle.write(bytes(9))
    with pytest.raises(InputError, match=r"a\.tif: not a readable picture"):
        read_picture(path)
    assert capfd.readouterr().err == ""


def test_small_files_claim_no_more_than_a_scanned_page(tmp_path):
    """2**28 bytes of pixels of a frame; all channels and 16 bits count."""
    png_of_16_bits(tmp_path / "a.png", np.zeros((1, 2**25 + 1, 4), "uint16"))
    data = (tmp_path / "a.png").read_bytes()
    assert len(data) > 2**28 / 10_000
    (tmp_path / "a.png").write_bytes(data[:5000])
    with pytest.raises(InputError, match="claims 33554433 x 1 pixels in 5000 bytes: too large"):
        read_picture(tmp_path / "a.png")


def test_an_animation_of_small_changes_has_all_its_frames(tmp_path):
    """However large they are together: a recorded screen's take some 80 bytes each."""
    one = Image.new("P", (1600, 1200))
    one.putpalette([0, 0, 0, 255, 255, 255])
    frames = [one.copy() for _ in range(150)]
    for number, frame in enumerate(frames):
        frame.putpixel((number, 0), 1)
    one.save(tmp_path / "a.gif", save_all=True, append_images=frames)
    assert os.path.getsize(tmp_path / "a.gif") * 10_000 < 2**28 < 150 * 1600 * 1200
    assert sum(1 for _ in read_frames(tmp_path / "a.gif")) == 151


def test_an_avif_s_colours_do_not_hang_on_its_first_frame(tmp_path):
    frames = [np.zeros((32, 32, 1), "uint8"), np.full((32, 32, 3), (220, 20, 100), "uint8")]
    write_frames(tmp_path / "a.avif", iter(frames))
    second = [*read_frames(tmp_path / "a.avif")][1].pixels
    np.testing.assert_allclose(second.mean((0, 1)), (220, 20, 100), atol=4)


def test_a_photoshop_file_is_read(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (3, 5, 7), "uint8")
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 5, 7, 8, 3) + bytes(12) + bytes(2)
    (tmp_path / "a.psd").write_bytes(head + planes.tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.psd").pixels, planes.transpose(1, 2, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".gif", ".bmp", ".ppm", ".tga"])
def test_an_enormous_size_is_refused_before_it_is_allocated(tmp_path, suffix, monkeypatch):
    write_picture(tmp_path / f"a{suffix}", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    monkeypatch.setattr(Image.core, "new", None)
    with pytest.raises(InputError, match=r"decompression bomb|too large"):
        read_picture(tmp_path / f"a{suffix}")


def test_an_enormous_float_tiff_is_refused(tmp_path, monkeypatch):
    tiff(tmp_path / "a.tif", DEEP[..., :3] / np.float32(65535))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match=r"9 x 6 pixels in .* bytes: too large"):
        read_picture(tmp_path / "a.tif")


def test_no_memory_is_an_input_error(tmp_path, monkeypatch):
    def decode(image, white):
        raise MemoryError

    write_picture(tmp_path / "a.png", RGB)
    monkeypatch.setattr(pictures, "decode", decode)
    with pytest.raises(InputError, match=r"a\.png: too large for the memory"):
        read_picture(tmp_path / "a.png")


def test_a_grey_tiff_of_12_bits(tmp_path):
    values = RNG.integers(0, 4096, (3, 4))
    data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
                    for a, b in values.reshape(-1, 2).tolist())
    tags = [(256, 4, 4), (257, 4, 3), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1),
            (278, 4, 3), (279, 4, len(data))]  # the data stand at 122 = 8 + 2 + 9 * 12 + 4
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + struct.pack("<IH", 8, 9)
        + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags) + bytes(4) + data)
    np.testing.assert_allclose(read_picture(tmp_path / "a.tif", 16).pixels[..., 0], values / 4095, atol=1e-6)


def test_metadata_that_a_jpeg_cannot_hold_is_left_out_and_said(tmp_path):
    with pytest.warns(UserWarning, match=r"a\.jpg: XMP of 70007 bytes is too long for a JPEG: left out"):
        write_picture(tmp_path / "a.jpg", Picture(RGB, None, Info(xmp=b"<x>" + b" " * 70000 + b"</x>")))
    assert read_picture(tmp_path / "a.jpg").pixels.shape == RGB.shape
