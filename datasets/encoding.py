"""Pictures as files of every kind that is written, at 8 and 16 bits a channel, with what is beside them."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import tifffile
from PIL import Image

from superres.datasets.metadata import Info, as_srgb, keeps_profile, save_options
from superres.errors import InputError

if TYPE_CHECKING:
    from superres.datasets.pictures import Picture  # which imports this module

WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "TGA", "ICO", "GIF")  # the others are put on white
WITH_GREY_ALPHA = ("PNG", "TIFF", "JPEG2000", "TGA")
WRITABLE = (*WITH_ALPHA, "JPEG", "BMP", "PPM")
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")


def save(file: Path | BinaryIO, path: Path, kind: str, picture: "Picture", quality: int | None,
         depth: Literal[8, 16], strip: bool) -> None:
    """Write one picture, or page of a TIFF, at a place or into a writer."""
    plain = picture.pixels.shape[-1] == 1 and picture.alpha is None
    options = _options(path, kind, picture, plain, quality, strip)
    if depth == 16:
        planes = [to_uint16(part) for part in picture[:2] if part is not None]
        planes = np.concatenate(planes, -1)
        if kind == "PNG":
            _save_png_16(file, planes, options)
            return
        # Pillow writes no such TIFF: it gets the bytes, each pixel as two of 8 bits. The tags are set later.
        height, width, channels = planes.shape
        image = _image(planes.astype("<u2").view("uint8").reshape(height, 2 * width, channels))
    else:
        image = to_image(kind, picture)
    if kind == "TIFF" and image.width * image.height * len(image.getbands()) > 4e9:
        options["big_tiff"] = True
    image.save(file, format=kind, **options)


def save_animation(file: Path, path: Path, kind: str, frames: "Iterable[Picture]", quality: int | None,
                   strip: bool) -> None:
    frames = [frame.each(to_uint8) for frame in frames]
    # An animation has one profile, that of its first frame: otherwise, all become sRGB.
    if len({frame.info.icc for frame in frames}) > 1 or not all(
            keeps_profile(kind, frame.pixels.shape[-1] == 1) for frame in frames):
        frames = [_of_srgb(frame) for frame in frames]
    images = [to_image(kind, frame) for frame in frames]
    durations = [frame.info.duration or 0 for frame in frames]
    options = _options(path, kind, frames[0], all(image.mode == "L" for image in images), quality, strip)
    plays = frames[0].info.plays or 0
    if kind != "GIF":
        options["loop"] = plays
    elif plays != 1:
        options["loop"] = max(plays - 1, 0)
    if kind == "GIF" and any("transparency" in image.info for image in images):
        options["disposal"] = 2  # or the frame before would be seen through
    images[0].save(file, format=kind, save_all=True, append_images=images[1:], duration=durations, **options)


def _options(path, kind, picture, plain, quality, strip):
    """Keyword arguments of Pillow's `save`; plain: whether all frames are grey, without alpha."""
    info = Info(icc=picture.info.icc) if strip else picture.info
    options = save_options(path, info, kind, picture.pixels.shape[-1] == 1)
    if kind in ("JPEG", "AVIF"):
        options |= {"quality": 95 if quality is None else quality,
                    "subsampling": "4:0:0" if kind == "AVIF" and plain else "4:4:4"}
    if kind == "WEBP":
        # Exact: also the colours of invisible pixels.
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
    if kind == "TIFF":
        options["compression"] = "raw"  # compressed, Pillow cannot write EXIF's directories
    if kind == "TGA":
        options["compression"] = "tga_rle"
    if kind == "ICO":
        height, width = picture.pixels.shape[:2]
        if max(height, width) > 256:
            raise InputError(f"{path}: an ICO holds 256 x 256 pixels at most, not {width} x {height}")
        options["sizes"] = [(width, height)]
    return options


def _image(planes):
    return Image.fromarray(planes.squeeze(-1) if planes.shape[-1] == 1 else planes)


def _of_srgb(picture):
    """A `Picture` as one without a colour profile, of 8 bits."""
    if not picture.info.icc:
        return picture
    return picture._replace(pixels=as_srgb(to_uint8(picture.pixels), picture.info.icc),
                            info=picture.info._replace(icc=None))


def to_image(kind: str, picture: "Picture") -> Image.Image:
    """A Pillow image of 8 bits, in a mode that the kind can hold."""
    if not keeps_profile(kind, picture.pixels.shape[-1] == 1):
        picture = _of_srgb(picture)
    pixels, alpha = to_uint8(picture.pixels), picture.alpha
    if alpha is not None:  # a large opaque picture is not copied
        alpha = to_uint8(alpha)
        if kind not in WITH_ALPHA:
            opaque = alpha.astype("uint16")
            pixels = ((pixels * opaque + 255 * (255 - opaque) + 127) // 255).astype("uint8")
        else:
            if pixels.shape[-1] == 1 and kind not in WITH_GREY_ALPHA:
                pixels = pixels.repeat(3, -1)
            pixels = np.concatenate([pixels, alpha], axis=-1)
    return _with_palette(pixels) if kind == "GIF" and pixels.shape[-1] > 1 else _image(pixels)


def _with_palette(planes):
    """(H, W, 3|4) as a Pillow image of at most 256 colours, dithered if it has more; alpha is on or off."""
    opaque = planes.shape[-1] == 3
    rgb = Image.fromarray(np.ascontiguousarray(planes[..., :3]))
    few = rgb.getcolors(256 if opaque else 255)  # of these, a median cut leaves each as it is
    method = Image.Quantize.MEDIANCUT if few else Image.Quantize.FASTOCTREE
    image = rgb.quantize(256 if opaque else 255, method)
    if not few:
        image = rgb.quantize(palette=image, dither=Image.Dither.FLOYDSTEINBERG)
    if not opaque:
        image.paste(255, mask=Image.fromarray(planes[..., 3] < 128))
        image.info["transparency"] = 255
    return image


def _save_png_16(file, planes, options):
    """Write (H, W, 1 to 4) uint16 as a PNG with what Pillow's `save` would make of the options."""
    import tensorflow as tf  # here: the rest of this module does without

    whole = tf.io.encode_png(planes).numpy()
    header, ancillary = 8 + 25, io.BytesIO()
    Image.new("L" if planes.shape[-1] < 3 else "RGB", (1, 1)).save(ancillary, "PNG", **options)
    ancillary = ancillary.getvalue()
    with open(file, "wb") as out:
        out.write(whole[:header])
        start = header
        while ancillary[start + 4 : start + 8] != b"IDAT":
            start += 12 + int.from_bytes(ancillary[start : start + 4], "big")
        # All but pixels and end stand before the pixels.
        out.write(ancillary[header:start])
        out.write(whole[header:])


def declare_16_bits(path: Path) -> None:
    """Set the tags of a TIFF in which each pixel of 16 bits stands as two of 8."""
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            channels = page.samplesperpixel
            page.tags["ImageWidth"].overwrite(page.imagewidth // 2)
            page.tags["BitsPerSample"].overwrite((16,) * channels if channels > 1 else 16)


def to_uint16(picture: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint16, clipped and rounded half up; uint8 is spread over the whole range."""
    picture = np.asarray(picture)
    if picture.dtype == np.uint8:
        return picture.astype("uint16") * 257
    return np.floor(np.clip(picture, 0, 1) * np.float64(65535) + 0.5).astype("uint16")


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8, clipped and rounded half up; uint8 passes through."""
    picture = np.asarray(picture)
    if picture.dtype == np.uint8:
        return picture
    levels = np.clip(picture, 0, 1)
    levels *= 255  # in place: of a large picture, every copy counts
    levels += 0.5
    return levels.astype("uint8")
