"""What a picture file holds beside its pixels: colour profile, EXIF, XMP, resolution, texts, timing."""

import functools
import io
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

ORIENTATION = ExifTags.Base.Orientation
XMP = 700  # the tag of a TIFF that holds it
XMP_ORIENTATION = rb'(tiff:Orientation(?:\s*=\s*["\']|>))(\d)'
# What is kept of the first directory, which in a TIFF also says how the pixels lie in that file.
DESCRIPTIVE = {
    ExifTags.Base[name]
    for name in (
        "ImageDescription", "Make", "Model", "XResolution", "YResolution", "ResolutionUnit", "Software",
        "DateTime", "Artist", "HostComputer", "Copyright", "Rating", "RatingPercent", "XPTitle", "XPComment",
        "XPAuthor", "XPKeywords", "XPSubject",
    )
}
# Of the other directories: what is right for one size only, or is a place in the old file.
OUTDATED = {ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight, *ExifTags.IFD}
WITH_PROFILE = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")  # pictures of other kinds are taken for sRGB
WITHOUT_GREY_PROFILE = ("WEBP", "AVIF")  # which hold grey as colour
JPEG_SEGMENT = 65533 - 29  # bytes of EXIF or XMP that a JPEG holds


class Info(NamedTuple):
    """What is kept of a file beside its pixels.

    Attributes:
        icc: The colour profile of the pixels, or None for sRGB.
        exif: EXIF block, with orientation 1 and neither a thumbnail nor sizes in pixels.
        xmp: XMP packet, likewise.
        dpi: Pixels an inch, (horizontal, vertical).
        text: Texts of a PNG by keyword; the comment of another file as "Comment".
        duration: Of a frame of an animation, in milliseconds.
        plays: How often an animation is played, 0 for ever.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] | None = None
    duration: float | None = None
    plays: int | None = None


def read_info(image: Image.Image) -> tuple[Info, int]:
    """What an open Pillow image holds beside its pixels: (`Info`, orientation from 1 to 8).

    What is damaged is left out; of a colour profile that is, a warning says so.
    """
    found = image.info
    icc = found.get("icc_profile")
    if icc and not is_profile(icc, image.mode):
        warnings.warn("its colour profile is damaged or not for such pixels: ignored", stacklevel=2)
        icc = None
    orientation, exif = sound_exif(image.getexif)
    if orientation is None:
        orientation = _attempt(_orientation, found.get("exif"))
    xmp = found.get("xmp") or found.get("XML:com.adobe.xmp")
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    xmp = xmp if isinstance(xmp, bytes) else None
    if xmp and orientation is None and (match := re.search(XMP_ORIENTATION, xmp)):
        orientation = int(match[2])
    text = {}
    if image.format == "PNG":
        text = {key: str(value) for key, value in found.items() if isinstance(value, str)
                and key != "XML:com.adobe.xmp" and not key.startswith("Raw profile")}
    elif isinstance(found.get("comment"), bytes):
        text = {"Comment": found["comment"].rstrip(b"\0").decode("utf-8", "replace")}
    icc = None if image.mode in ("CMYK", "LAB") else icc  # by which the pixels become sRGB
    info = Info(icc, exif, xmp and _upright(xmp), _sound_dpi(found.get("dpi")), text or None)
    return info, orientation if orientation in range(1, 9) else 1


def sound_exif(load: Callable[[], Image.Exif]) -> tuple[int | None, bytes | None]:
    """(orientation or None, block or None) of those tags that can be read, and written again.

    Args:
        load: Function that returns a Pillow `Exif`, and may fail at first where the block is damaged.
    """
    exif = _attempt(load) or _attempt(load)  # the second time it returns what it read before it failed
    if exif is None:
        return None, None
    orientation = _attempt(exif.get, ORIENTATION)
    orientation = _attempt(lambda: int(orientation[0] if isinstance(orientation, tuple) else orientation))

    def block(tags):
        """An EXIF block of {(directory, tag): value}, where directory None is the first."""
        exif_of = Image.Exif()
        exif_of.endian = exif.endian
        for (directory, tag), value in tags.items():
            if directory is None:
                exif_of[tag] = value
            else:
                exif_of[directory] = exif_of.get(directory, {}) | {tag: value}
        return exif_of.tobytes()

    kept = {}
    for directory in (None, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        tags = (exif if directory is None else _attempt(exif.get_ifd, directory)) or {}
        for tag in set(tags) & DESCRIPTIVE if directory is None else set(tags) - OUTDATED:
            entry = {(directory, tag): _attempt(tags.__getitem__, tag)}
            if _attempt(block, entry):
                kept |= entry
    return orientation, _attempt(block, kept) if kept else None


def _orientation(block):
    """The orientation in an EXIF block's first directory, whatever else in it is damaged, or None."""
    block = block.removeprefix(b"Exif\0\0")
    order = "<" if block[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", block, entry)
        if tag == ORIENTATION:
            return value
    return None


def _attempt(function, *arguments):
    """The function's value, or None where it fails, as Pillow does on damaged tags in a dozen ways."""
    try:
        return function(*arguments)
    except Exception:
        return None


def _upright(xmp):
    """The packet with orientation 1 and no sizes in pixels."""
    xmp = re.sub(XMP_ORIENTATION, rb"\g<1>1", xmp)
    sizes = rb"(tiff:Image(?:Width|Length)|exif:Pixel[XY]Dimension)"
    return re.sub(rb"\s" + sizes + rb'\s*=\s*(["\'])\d*\2|<' + sizes + rb">\d*</\3>", b"", xmp)


def _sound_dpi(dpi):
    """Two floats that every format can hold, or None, also for the 1 of a TIFF that does not say."""
    dpi = _attempt(lambda: (float(dpi[0]), float(dpi[1])))
    return dpi if dpi and all(1 < value <= 65535 for value in dpi) else None


@functools.cache
def _srgb():
    return ImageCms.createProfile("sRGB")


def _to_srgb(icc, mode):
    """LittleCMS's transform from a profile, by its bytes, to sRGB."""
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(icc)), _srgb(), mode, "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def is_profile(icc: bytes, mode: str) -> bool:
    """Whether the bytes are a colour profile for pixels of a Pillow mode."""
    if mode not in ("CMYK", "LAB"):
        mode = "L" if mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16") else "RGB"
    return _attempt(lambda: _to_srgb(icc, mode)) is not None


def as_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode without alpha as RGB: CMYK by its profile, if it has a sound one."""
    icc = image.info.get("icc_profile")
    if image.mode == "CMYK" and icc and is_profile(icc, "CMYK"):
        return ImageCms.applyTransform(image, _to_srgb(icc, "CMYK"))
    return image.convert("RGB")


def keeps_profile(kind: str, grey: bool) -> bool:
    """Whether a file of a kind such as "PNG" can hold the profile of such pixels."""
    return kind in WITH_PROFILE and not (grey and kind in WITHOUT_GREY_PROFILE)


def as_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Pixels (H, W, 1|3) uint8 of a profile as those of sRGB; grey stays grey."""
    grey = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    return np.asarray(ImageCms.applyTransform(image, _to_srgb(icc, image.mode)))[..., : pixels.shape[-1]]


def save_options(path: Path, info: Info, kind: str, grey: bool) -> dict[str, Any]:
    """Keyword arguments of Pillow's `save` that write the `Info` into a file of a kind, such as "PNG".

    What the kind has no place for is left out.
    """
    def fits(name, block):
        if kind == "JPEG" and block and len(block) > JPEG_SEGMENT:
            warnings.warn(f"{path}: {name} of {len(block)} bytes is too long for a JPEG: left out",
                          stacklevel=4)
            return None
        return block

    exif, xmp = fits("EXIF", info.exif), fits("XMP", info.xmp)
    options, text = {}, info.text or {}
    if kind in WITH_PROFILE:
        options = {"icc_profile": info.icc if keeps_profile(kind, grey) else None, "exif": exif}
    if kind in ("JPEG", "WEBP", "AVIF"):
        options["xmp"] = xmp
    if kind == "TIFF" and xmp:
        options["exif"] = Image.Exif()
        options["exif"].load(exif or b"")
        options["exif"][XMP] = xmp
    if kind in ("PNG", "JPEG", "TIFF", "BMP"):
        options["dpi"] = info.dpi
    if kind in ("JPEG", "GIF", "JPEG2000"):
        options["comment"] = text.get("Comment", "").encode()[:JPEG_SEGMENT]
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in text.items():
            options["pnginfo"].add_itxt(key, value)
        if xmp:
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    return {key: value for key, value in options.items() if value}
