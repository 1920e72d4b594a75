"""Reading and writing picture files of every kind that Pillow opens, single ones and animations."""

import contextlib
import itertools
import logging
import os
import struct
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Self

import numpy as np
import tifffile
from PIL import Image, TiffImagePlugin
from scipy import ndimage

from superres.datasets.decoding import (
    BITS,
    HEIGHT,
    PLANAR,
    SUBFILE,
    WIDTH,
    bytes_a_pixel,
    check_size,
    decode,
    decode_page,
    upright,
)
from superres.datasets.encoding import (
    ANIMATED,
    WRITABLE,
    declare_16_bits,
    save,
    save_animation,
    to_image,
    to_uint8,
)
from superres.datasets.metadata import ORIENTATION, Info, read_info
from superres.errors import InputError
from superres.files import whole

# Pillow's guard against decompression bombs stands at 89 megapixels, which a x8
# enlargement of an ordinary photograph passes. Twice this many pixels is an error.
Image.MAX_IMAGE_PIXELS = 2**29
for library in ("PIL", "tifffile"):  # what they log is an error here, or nothing
    logging.getLogger(library).setLevel(logging.CRITICAL)

Image.init()
# Without drawings, which another program draws, and formats that Pillow only knows the names of.
NOT_READABLE = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC")
READABLE = tuple(kind for kind in Image.ID if kind not in NOT_READABLE)
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in READABLE))
# Known by their first bytes, so that a text without a suffix is not taken for a picture.
KNOWN_BY_CONTENT = tuple(kind for kind in READABLE if Image.OPEN[kind][1])
LIBTIFF = threading.Lock()  # there is one standard error


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) RGB or (H, W, 1) grey, uint8 or float32 in [0, 1].
        alpha: (H, W, 1) likewise, not multiplied into the pixels, or None for an opaque picture.
        info: What else its file holds: colour profile, EXIF and the like.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    info: Info = Info()

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> Self:
        """The picture with a function of (H, W, C) applied to its pixels, and to alpha alike."""
        return self._replace(pixels=change(self.pixels),
                             alpha=None if self.alpha is None else change(self.alpha))


def read_picture(path: Path | str, depth: Literal[8, 16] = 8, white: float | None = None) -> Picture:
    """Read one file, upright.

    Grey stays grey (one channel); palettes, CMYK, LAB and the like become RGB, by their colour
    profile if they have one; other pixels stay as they are in the file, whatever their profile, which
    comes along in `info`; EXIF rotation is applied; alpha comes apart. Of an animation, the first frame.

    Args:
        depth: 8 for uint8 from every file; 16 for float32 where the file has more than 8 bits a channel, and
            Pillow or tifffile gives them: of PNM as text, AVIF and JPEG 2000 in colour, it has 8.
        white: The value that is white in a file of floats or of 32 bits that does not say so itself.
            Floats from 0 to 1 need none.

    Raises:
        InputError: if the file is missing, truncated, too large or no picture, or its white unknown.

    Example:
        picture = read_picture("scan.tif", depth=16)
        write_picture("copy.tif", picture, depth=16)
    """
    with contextlib.closing(read_frames(path, depth, white)) as frames:
        return next(frames)


def read_frames(path: Path | str, depth: Literal[8, 16] = 8,
                white: float | None = None) -> Generator[Picture, None, None]:
    """Yield the frames of an animation (GIF, WebP, APNG, AVIF) or the pages of a TIFF, one at a time.

    Each is a `Picture` as `read_picture` gives it, whole: what a frame leaves of the one before it
    is in it. Its `info` has the frame's duration, and how often the animation is played. Every other
    file has one frame.

    Raises:
        InputError: as `read_picture`, when the frame is reached.
    """
    with contextlib.ExitStack() as stack:
        with _only_input_errors(path):
            pages = _pages(path, stack)
        for number in itertools.count():
            with _only_input_errors(path):
                try:
                    picture = pages(number, white)
                except EOFError:
                    if number:
                        return
                    raise
                if picture is None:
                    continue
                if picture.pixels.size == 0:
                    raise InputError(f"an empty picture, {picture.pixels.shape[:2]}")
                if depth == 8:
                    picture = picture.each(to_uint8)
            yield picture


@contextlib.contextmanager
def _only_input_errors(path):
    """Whatever goes wrong is an InputError that names the file; so does each warning, in one line.

    Pillow's decoders raise a dozen kinds of exceptions on damaged files, more than their
    documentation says.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except MemoryError:
        raise InputError(f"{path}: too large for the memory") from None
    except Exception as error:
        reason = " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
        raise InputError(f"{path}: not a readable picture ({reason})") from None
    for text in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
        warnings.warn(f"{path}: {text}", stacklevel=5)


@contextlib.contextmanager
def _libtiff_warns():
    """Makes warnings of the lines that libtiff writes to standard error, which do not name the file."""
    with LIBTIFF, tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        said.seek(0)
        for line in said.read().decode("utf-8", "replace").splitlines():
            warnings.warn(line, stacklevel=2)


def _pages(path, stack):
    """A function of (number, white) that reads that page of a file, which stays open until the stack ends.

    It returns a `Picture`, or None for a page that is none; after the last it raises EOFError.
    """
    if not Path(path).is_file():
        raise InputError("not a file") if Path(path).exists() else FileNotFoundError
    try:
        image = stack.enter_context(Image.open(path, formats=READABLE))
    except Image.UnidentifiedImageError:
        if not _is_tiff(path):
            raise
        return _tiff_pages(path, stack)
    if image.format == "TIFF" and image.tag_v2.get(PLANAR) == 2 and max(image.tag_v2.get(BITS, (8,))) > 8:
        return _tiff_pages(path, stack)

    def page(number, white):
        if number and image.format not in ANIMATED:
            raise EOFError
        if number:  # the first one is open, and not number 0 of every kind
            image.seek(number)
        vars(image).pop("getexif", None)
        check_size(*image.size, os.path.getsize(path), bytes_a_pixel(image))
        if image.format == "PNG" and number == 0 and image.info.get("default_image"):
            return None  # shown where animations are not known
        if image.format == "TIFF":
            if number and image.tag_v2.get(SUBFILE, 0) & 5:
                return None  # a thumbnail or a mask of another page
            there = [max(tile.extents[side] for tile in image.tile) for side in (2, 3)]
            claimed = [image.tag_v2[WIDTH], image.tag_v2[HEIGHT]]
            if there != claimed:  # Pillow would leave the rest black
                raise InputError(f"truncated: {there} of {claimed} columns and rows")
            info, orientation = read_info(image)

            def only_orientation():
                exif = Image.Exif()
                exif[ORIENTATION] = orientation
                return exif

            # Pillow turns a TIFF while it loads it, and would fail there on damaged tags.
            image.getexif = only_orientation
            with _libtiff_warns():
                picture = Picture(*decode(image, white))
        else:
            picture = Picture(*decode(image, white))
            info, orientation = read_info(image)  # now: a PNG may hold it behind the pixels
            picture = picture.each(lambda planes: upright(planes, orientation))
        grey = picture.pixels[..., :1]
        if image.format == "GIF" and (picture.pixels == grey).all():
            picture = picture._replace(pixels=grey)  # all its palettes are of RGB
        return picture._replace(info=_timed(info, image))

    return page


def _timed(info, image):
    """The `Info` with a frame's duration and the number of plays, which each kind counts differently."""
    plays = image.info.get("loop")
    if image.format == "GIF":  # counts repetitions
        plays = 1 if plays is None else plays and plays + 1
    animated = getattr(image, "is_animated", False) and image.format not in ("TIFF", "MPO")
    return info._replace(duration=image.info.get("duration", 0), plays=plays or 0) if animated else info


def _tiff_pages(path, stack):
    """As `_pages`, of a TIFF whose kind of values Pillow does not know."""
    file = stack.enter_context(tifffile.TiffFile(path))

    def page(number, white):
        try:
            page = file.pages[number]
        except IndexError:
            raise EOFError from None
        if number and page.subfiletype & 5:
            return None
        picture = Picture(*decode_page(page, white))
        # Its tags are read by Pillow nevertheless.
        stub = Image.new("L" if picture.pixels.shape[-1] == 1 else "RGB", (1, 1))
        stub.info = {"icc_profile": page.tags.valueof(34675), "xmp": page.tags.valueof(700)}
        if 296 in page.tags:
            stub.info["dpi"] = page.get_resolution("INCH")

        def exif():
            block = Image.Exif()
            with open(path, "rb") as tags:
                block.load_from_fp(tags)
                for directory in (34665, 34853):
                    block.get_ifd(directory)
                return block

        stub.getexif = exif
        info, orientation = read_info(stub)
        return picture.each(lambda planes: upright(planes, orientation))._replace(info=info)

    return page


def size_of(path: Path | str) -> tuple[int, int]:
    """(width, height) of a picture as its file has it, not turned, before a pixel is decoded.

    Raises:
        InputError: if the file is missing or no picture.
    """
    with contextlib.ExitStack() as stack, _only_input_errors(path):
        try:
            return stack.enter_context(Image.open(path, formats=READABLE)).size
        except Image.UnidentifiedImageError:
            if not _is_tiff(path):
                raise
            page = stack.enter_context(tifffile.TiffFile(path)).pages[0]
            return page.imagewidth, page.imagelength


def _is_tiff(path):
    with open(path, "rb") as file:
        return file.read(4)[:2] in (b"II", b"MM")


def animation_suffix(path: Path | str | BinaryIO) -> str:
    """The suffix of the kind of animation, or of pages, that a file is, such as `".gif"`; "": one picture.

    Args:
        path: Of the file, or the file, open.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=READABLE) as image:
            animated = image.format in ANIMATED and getattr(image, "is_animated", False)
            return {"TIFF": ".tif"}.get(image.format, f".{image.format.lower()}") if animated else ""
    except Exception:
        return ""  # whoever reads it says what is wrong


def decoded(image: Image.Image) -> Picture:
    """The `Picture` that a `PIL.Image` of any mode is, as `read_picture` reads its file.

    Raises:
        InputError: if its file is damaged.
    """
    with _only_input_errors(getattr(image, "filename", "") or "image"):
        image.load()  # which turns a TIFF upright
        picture = Picture(*decode(image))
        info, orientation = read_info(image)
        return picture.each(lambda planes: upright(planes, orientation))._replace(info=info)


def as_image(picture: Picture) -> Image.Image:
    """A `Picture` as a `PIL.Image` of 8 bits a channel, with its colour profile."""
    image = to_image("PNG", picture)
    if picture.info.icc:
        image.info["icc_profile"] = picture.info.icc
    return image


def write_picture(path: Path | str, picture: Picture | np.ndarray, quality: int | None = None,
                  depth: Literal[8, 16] = 8, strip: bool = False) -> None:
    """Write a `Picture` or an array (H, W, 1|3), uint8 or float in [0, 1], as the kind that the suffix says.

    PNG, TIFF, WebP, AVIF, JPEG 2000, TGA, ICO and GIF keep alpha; JPEG, BMP and PPM are put on white.
    PNG, JPEG, TIFF, WebP and AVIF keep the colour profile, the last two of colour only; where it is not
    kept, the pixels become sRGB.
    Without a suffix, a PNG is written. The file appears whole or not at all: it is written beside its
    place and moved there, so that a full disk or a killed process leaves no half picture.

    Args:
        quality: Of JPEG and AVIF, 95 by default, in full colour resolution; of WebP, without loss by default.
        depth: 8, or 16 bits a channel for PNG and TIFF.
        strip: Leave EXIF, XMP, texts and resolution out, but the colour profile, without which the
            pixels would look different.

    Raises:
        InputError: if the suffix is of no such kind, or the kind cannot hold such a picture.
        OSError: if the file cannot be written, with its name.
    """
    write_frames(path, [picture], quality, depth, strip)


def write_frames(path: Path | str, frames: Iterable[Picture | np.ndarray], quality: int | None = None,
                 depth: Literal[8, 16] = 8, strip: bool = False) -> None:
    """Write an animation (GIF, WebP, PNG, AVIF) or the pages of a TIFF, from any iterable of pictures.

    One frame is written as `write_picture` does. A GIF's frames get a palette each, dithered where
    they have more colours; its alpha is on or off. Durations and the number of plays come from the
    frames' `info`. Pages of a TIFF are written as they come; of the other kinds Pillow has to hold
    all frames, at 8 bits a channel.

    Raises:
        InputError: as `write_picture`, and for several frames of a kind that holds one.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower()) if path.suffix else "PNG"
    if kind not in WRITABLE:
        raise InputError(f"{path}: pictures are written as {', '.join(sorted(WRITABLE))}, by the suffix")
    if depth == 16 and kind not in ("PNG", "TIFF"):
        raise InputError(f"{path}: 16 bits a channel go into PNG and TIFF only")
    frames = (frame if isinstance(frame, Picture) else Picture(frame) for frame in frames)
    first, second = next(frames, None), next(frames, None)
    if first is None:
        raise InputError(f"{path}: no frames to write")
    if second is not None:
        if kind not in ANIMATED:
            raise InputError(f"{path}: several frames go into {', '.join(ANIMATED)} only")
        if depth == 16 and kind == "PNG":
            raise InputError(f"{path}: 16 bits a channel go into a PNG of one frame only")
        frames = itertools.chain([first, second], frames)
    with whole(path) as part:
        try:
            if second is None:
                save(part, path, kind, first, quality, depth, strip)
            elif kind == "TIFF":
                with TiffImagePlugin.AppendingTiffWriter(part, new=True) as pages:
                    for number, frame in enumerate(frames):
                        if number:  # Pillow moves no EXIF directories of later pages
                            frame = frame._replace(info=frame.info._replace(exif=None))
                        save(pages, path, kind, frame, quality, depth, strip)
                        pages.newFrame()
            else:
                save_animation(part, path, kind, frames, quality, strip)
            if depth == 16 and kind == "TIFF":
                declare_16_bits(part)
        except (OSError, ValueError, OverflowError, RuntimeError, struct.error) as error:
            # Pillow's own, for a picture that the kind has no way to hold; those of the disk have a number.
            if isinstance(error, InputError) or getattr(error, "errno", None) is not None:
                raise
            size = "{1} x {0}".format(*first.pixels.shape)
            raise InputError(f"{path}: {size} pixels cannot be written as {kind} ({error})") from None


def fill_invisible(picture: Picture) -> Picture:
    """The `Picture` with the colour of the nearest visible pixel where alpha is 0.

    Interpolation and networks mix neighbours: a white disc on transparent black would get a grey rim.
    """
    if picture.alpha is None:
        return picture
    visible = picture.alpha[..., 0] > 0
    if visible.all() or not visible.any():
        return picture
    nearest = ndimage.distance_transform_edt(~visible, return_distances=False, return_indices=True)
    return picture._replace(pixels=picture.pixels[tuple(nearest)])


def to_float(picture: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [0, 1]; floats pass through."""
    picture = np.asarray(picture)
    return picture.astype("float32") / np.float32(255) if picture.dtype == np.uint8 else picture


def contact_sheet(rows: Iterable[Iterable[np.ndarray]], zoom: int = 1, gap: int = 4) -> np.ndarray:
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


def list_pictures(folder: Path | str, more: tuple[str, ...] = ()) -> list[Path]:
    """Sorted paths of the picture files below a folder, by their suffix or, without one, by content.

    Links are followed, to each folder once. Hidden files and folders are left out.

    Args:
        more: Suffixes of other files that are wanted too, such as `datasets.video.SUFFIXES`.

    Raises:
        InputError: if the folder is missing or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths, seen = [], set()
    for below, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(below)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = (Path(below, name) for name in names if not name.startswith("."))
        paths += (path for path in found if _is_picture(path, (*SUFFIXES, *more)))
    if not paths:
        raise InputError(f"{folder}: no pictures in this folder (looked for {', '.join((*SUFFIXES, *more))})")
    return sorted(paths)


def _is_picture(path, suffixes):
    if path.suffix or not path.is_file():
        return path.suffix.lower() in suffixes and path.is_file()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=KNOWN_BY_CONTENT):
            return True
    except Exception:
        return False
