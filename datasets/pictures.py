"""Reading and writing picture files of every kind that Pillow opens."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from superres.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")

# Pillow's guard against decompression bombs stands at 89 megapixels, which a x8
# enlargement of an ordinary photograph passes. Twice this many pixels is an error.
Image.MAX_IMAGE_PIXELS = 2**29


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) RGB or (H, W, 1) grey, uint8.
        alpha: (H, W, 1) uint8, or None for an opaque picture.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None


def read_picture(path):
    """Read one file, upright, as 8 bits a channel.

    Grey stays grey (one channel); palettes, CMYK, LAB and the like become RGB; 16-bit
    and floating-point grey is scaled to 8 bits; EXIF rotation is applied; alpha comes
    apart. Of an animation, the first frame.

    Raises:
        InputError: if the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as file:
            picture = decoded(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable picture ({reason})") from None
    if picture.pixels.size == 0:
        raise InputError(f"{path}: an empty picture, {picture.pixels.shape[:2]}")
    return picture


def decoded(image):
    """The `Picture` that a `PIL.Image` of any mode is, see `read_picture`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.clip(np.asarray(image, "float64"), 0, 65535) / 257
        return Picture(np.floor(grey + 0.5).astype("uint8")[..., None])
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image, "float64"))
        grey = grey if grey.max(initial=0) > 1 else grey * 255  # [0, 255] or [0, 1]
        return Picture(to_uint8(grey[..., None] / 255))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        # Premultiplied alpha converts only to its own plain form.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        image = image.convert(plain) if plain else image
        pixels = np.asarray(image.convert("LA" if grey else "RGBA"))
        return Picture(pixels[..., :-1], pixels[..., -1:])
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return Picture(pixels[..., None] if grey else pixels)


def write_picture(path, picture):
    """Write a `Picture` or an array (H, W, 1|3), uint8 or float in [0, 1].

    The file appears whole or not at all: it is written beside its place and moved
    there, so that a full disk or a killed process leaves no half picture.
    """
    image = as_image(picture if isinstance(picture, Picture) else Picture(picture))
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        image.save(part, format=Image.registered_extensions().get(path.suffix.lower(), "PNG"))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def as_image(picture):
    """A `Picture` as a `PIL.Image` of 8 bits a channel."""
    pixels = to_uint8(picture.pixels)
    if picture.alpha is not None:  # a large opaque picture is not copied
        pixels = np.concatenate([pixels, to_uint8(picture.alpha)], axis=-1)
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def to_uint8(picture):
    """Floats in [0, 1] -> uint8, clipped and rounded half up; uint8 passes through."""
    picture = np.asarray(picture)
    if picture.dtype == np.uint8:
        return picture
    return np.floor(np.clip(picture, 0, 1) * 255 + 0.5).astype("uint8")


def to_float(picture):
    """uint8 -> float32 in [0, 1]; floats pass through."""
    picture = np.asarray(picture)
    return picture.astype("float32") / np.float32(255) if picture.dtype == np.uint8 else picture


def contact_sheet(rows, zoom=1, gap=4):
    """Rows of pictures, (H, W, 1|3) uint8, as one RGB picture on white."""

    def framed(picture):
        rgb = np.repeat(picture, 3 // picture.shape[-1], -1).repeat(zoom, 0).repeat(zoom, 1)
        return np.pad(rgb, ((0, gap), (0, gap), (0, 0)), constant_values=255)

    def padded(picture, height, width):
        missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
        return np.pad(picture, missing, constant_values=255)

    strips = []
    for row in rows:
        panels = [framed(picture) for picture in row]
        tallest = max(panel.shape[0] for panel in panels)
        strips.append(np.concatenate([padded(panel, tallest, panel.shape[1]) for panel in panels], 1))
    widest = max(strip.shape[1] for strip in strips)
    return np.concatenate([padded(strip, strip.shape[0], widest) for strip in strips])


def list_pictures(folder):
    """Sorted paths of the picture files below a folder.

    Raises:
        InputError: if the folder is missing or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise InputError(f"{folder}: no pictures in this folder (looked for {', '.join(SUFFIXES)})")
    return paths
