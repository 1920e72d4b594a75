"""The values of picture files without loss: 8, 16 and 32 bits, and floating point."""

import math
import sys

import numpy as np
import tifffile
from PIL import Image

from superres.datasets.metadata import as_rgb
from superres.errors import InputError

# Tags of TIFF.
SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 254, 256, 257, 258, 262, 284, 339


def decode(image: Image.Image, white: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """(pixels (H, W, 1|3), alpha (H, W, 1) or None) of the frame that an open Pillow image is at.

    Both are uint8, or float32 in [0, 1] where the file has more than 8 bits a channel. Grey stays
    grey; palettes, CMYK, LAB and the like become RGB. Pillow turns a TIFF upright, nothing else.

    Args:
        white: The value that is white in a file of floats or 32 bits.
    """
    values, most = _sixteen_bits(image)
    if values is not None:
        transparent = image.info.get("transparency")
        if transparent is not None:
            alpha = (values != np.asarray(transparent)).any(-1, keepdims=True).astype("float32")
            return values / np.float32(most), alpha
        return _apart(values / np.float32(most))
    tags = getattr(image, "tag_v2", {})
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)[..., None]
        bits, unsigned = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == 1
        if image.mode == "I" and tags:
            values = values.view("uint32") if unsigned and bits == 32 else values
            values = values.astype("int16") if bits == 16 else values
        elif image.mode == "I" and image.format == "PPM":
            values = values.astype("uint16")  # Pillow scales its values to 65535
        transparent = image.info.get("transparency")
        alpha = None if transparent is None else (values != transparent).astype("float32")
        values = scaled(values, 2**bits - 1 if values.dtype.kind == "u" else None, white)
        return 1 - values if tags.get(PHOTOMETRIC) == 0 else values, alpha
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        # Premultiplied alpha converts only to its own plain form.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        image = image.convert(plain) if plain else image
        return _apart(np.asarray(image.convert("LA" if grey else "RGBA")))
    pixels = np.asarray(image.convert("L") if grey else as_rgb(image))
    return (pixels[..., None] if grey else pixels), None


def check_size(width: int, height: int, size: int, depth: int = 1) -> None:
    """Raise an InputError if a frame cannot have so many pixels, in a file of that many bytes.

    So small a file of a large picture may only be a blank one: a scanned page has up to 60 million
    pixels of one byte.

    Args:
        depth: Bytes of a pixel.
    """
    if width * height > 2 * Image.MAX_IMAGE_PIXELS or width * height * depth > max(2**28, 10_000 * size):
        raise InputError(f"claims {width} x {height} pixels in {size} bytes: too large")


def bytes_a_pixel(image: Image.Image) -> int:
    """How many bytes a pixel of an open Pillow image has in its file, decompressed; at least 1."""
    deep = ";16" in f"{image.mode} {image.tile[:1]}"
    return len(image.getbands()) * (4 if image.mode in ("I", "F") else 2 if deep else 1)


def _apart(planes):
    """Channels (H, W, 1 to 4) as pixels and alpha."""
    return (planes[..., :-1], planes[..., -1:]) if planes.shape[-1] in (2, 4) else (planes, None)


def scaled(values: np.ndarray, natural: float | None = None, white: float | None = None) -> np.ndarray:
    """Values of a file, of any type, as float32 in [0, 1].

    Args:
        natural: What white is by the file's format, if that says so.
        white: What white is by the user.

    Raises:
        InputError: if nobody says what white is, and the values do not show it either.
    """
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if kind not in "iuf":
        raise InputError(f"values of type {values.dtype} are not supported")
    if kind == "u" and bits <= 16:
        levels = values / np.float32(natural or 2**bits - 1)
        return levels.clip(0, 1, out=levels)
    if kind == "f" and not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=0, posinf=np.inf, neginf=0)
    least, most = values.min(initial=0), values.max(initial=0)
    if white is None:
        # Floats of a picture run from 0 to 1, a little over after interpolation or rounding; integers
        # that need the highest bit run to the highest number. Everything else would be a guess.
        if kind == "f" and least >= -0.01 and most <= 1.01:
            white = 1
        elif kind == "u" and bits == 32 and most >= 2**31:
            white = 2**32 - 1
        else:
            raise InputError(f"values of type {values.dtype} from {least:g} to {most:g}: which of them is "
                             "white is not known; give it with --white VALUE")
    scaled = np.empty(values.shape, "float32")
    np.divide(values, np.float64(white), out=scaled, casting="same_kind")  # no array of 64 bits on the way
    return scaled.clip(0, 1, out=scaled)


def _sixteen_bits(image):
    """((H, W, C) uint16, their white) of a colour file of 16 bits, of which Pillow gives 8; else None, None.

    Pillow takes the higher byte of each sample. Told that the samples' bytes stand in the other
    order, it takes the lower one.
    """
    animated = image.format == "PNG" and getattr(image, "is_animated", False)  # composed in 8 bits
    if not getattr(image, "tile", None) or animated:
        return None, None
    codec, args = image.tile[0].codec_name, image.tile[0].args
    rawmode = args if isinstance(args, str) else args[0]
    if codec == "ppm" and image.mode == "RGB" and args[1] > 255:
        high, low = (_unpacked(image, "raw", (f"RGB;16{order}", 0, 1)) for order in "BL")
        return _joined(high, low), args[1]
    if rawmode == "LA;16B":  # four bytes, as of RGBA
        return _unpacked(image, codec, "RGBA").view(">u2").astype("uint16"), 65535
    layout, _, order = str(rawmode).partition(";16")
    if image.mode not in ("RGB", "RGBA") or not order or order not in "BLN":
        return None, None
    other = "B" if order == "L" or (order == "N" and sys.byteorder == "little") else "L"
    straight = "RGBA" if layout == "RGBa" else layout
    rawmodes = [f"{straight};16{order}" for order in (order, other)]
    high, low = (_unpacked(image, codec, rawmode if isinstance(args, str) else (rawmode, *args[1:]))
                 for rawmode in rawmodes)
    values = _joined(high, low)
    return (_straight(values) if layout == "RGBa" else values), 65535


def _joined(high, low):
    return high.astype("uint16") << 8 | low


def _straight(values):
    """uint16 with premultiplied alpha without it."""
    alpha = values[..., -1:]
    colours = values[..., :-1] * np.float32(65535) / np.maximum(alpha, 1)
    return np.concatenate([(colours.clip(0, 65535) + 0.5).astype("uint16"), alpha], -1)


def _unpacked(image, codec, args):
    """The image read once more, from its file, with another reading of its bytes."""
    with Image.open(image.filename, formats=[image.format]) as again:
        again.seek(image.tell())
        again.getexif = image.getexif
        again.tile = [tile._replace(codec_name=codec, args=args) for tile in again.tile]
        return np.asarray(again)


def upright(planes: np.ndarray, orientation: int) -> np.ndarray:
    """Planes (H, W, C) as the camera meant them, by EXIF's orientation from 1 to 8."""
    planes = planes.swapaxes(0, 1) if orientation >= 5 else planes
    planes = planes[::-1] if orientation in (3, 4, 7, 8) else planes
    return np.ascontiguousarray(planes[:, ::-1] if orientation in (2, 3, 6, 7) else planes)


def decode_page(page: tifffile.TiffPage, white: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """The same of a page of `tifffile`, which knows floats and separate planes where Pillow does not."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    grey = page.photometric in (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.MINISBLACK)
    if not grey and page.photometric != tifffile.PHOTOMETRIC.RGB:
        raise InputError(f"a TIFF of {page.photometric.name} with {page.bitspersample} bits is not supported")
    colours = 1 if grey else 3
    if not colours <= samples <= 16 or page.imagedepth != 1:
        raise InputError(f"a TIFF of {samples} channels and depth {page.imagedepth} is not supported")
    check_size(width, height, page.parent.filehandle.size, samples * max(1, page.bitspersample // 8))
    if len(page.dataoffsets) < math.prod(page.chunked):
        raise InputError(f"truncated: {len(page.dataoffsets)} of {math.prod(page.chunked)} parts")
    values = page.asarray().reshape((samples, height, width) if page.planarconfig == 2
                                    else (height, width, samples))
    values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
    values = values.view("uint8") if values.dtype == bool else values
    natural = 2**page.bitspersample - 1 if values.dtype.kind == "u" and page.bitspersample <= 16 else None
    pixels, alpha = scaled(values[..., :colours], natural, white), None
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = 1 - pixels
    if page.extrasamples and page.extrasamples[0] in (1, 2):
        # Alpha runs to the end of its type, or to 1 or its own largest, wherever the colours' white is.
        alpha = values[..., colours : colours + 1]
        most = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else max(1, alpha.max(initial=0))
        alpha = scaled(alpha, natural, most)
        if page.extrasamples[0] == 1:
            pixels = (pixels / np.maximum(alpha, 1e-6)).clip(0, 1)
    return pixels, alpha
