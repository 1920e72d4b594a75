"""Upscale photographs with a trained network.

    python upscale.py lapsrn-x4 photo.jpg -o upscaled
    python upscale.py lapsrn-x4 holiday/ "scans/*.tif" -o upscaled --format jpg --quality 90
    python upscale.py lapsrn-x4 clip.gif photo.png -o upscaled --size 1920x1080
    python upscale.py lapsrn-x2 film.mp4 -o upscaled
    python upscale.py srgan-x4 a.jpg --blend 0.3 --blend-with srresnet-x4 -o upscaled
    python upscale.py pixel_recursive-celeba face.jpg --crop face --samples 4 -o upscaled
    python upscale.py --list

MODEL is a shipped network, which --list names, a .keras file, or hf://user/name (or
hf://user/name@revision) on the Hugging Face hub. Every kind of picture that Pillow reads works, at
any size from 1 x 1 up: grey, palette, CMYK, 16 bits and floats, with alpha, rotated by EXIF, and
all frames of GIF, WebP, APNG and of TIFF's pages. The result is a PNG, grey where the picture was
grey, with its colour profile, EXIF and resolution; an animation stays one of its kind. Large
pictures are computed in tiles, which changes nothing but the memory needed.

Videos (with PyAV: `pip install av`) become H.264 in MP4 or Matroska, frame by frame, with their sound,
times, chapters and colours. A run that was stopped goes on where it was when started again.

A network with noise, such as SRMAP's, draws as many samples as are asked for, from the seeds
S, S + 1 and so on of `--seed S`; `--stochasticity` also draws where they differ.

A network of one size, such as a pixel recursive one, takes LR of that size; of a larger
picture, a square is cut out and shrunk to it.
"""

import csv
import errno
import functools
import glob
import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from superres.command_line import command
from superres.datasets.degradations import imresize_clipped
from superres.datasets.pictures import (
    Picture,
    animation_suffix,
    list_pictures,
    read_frames,
    to_float,
    to_uint8,
    write_frames,
    write_picture,
)
from superres.datasets.thumbnails import Crop
from superres.datasets.video import FORMATS, SUFFIXES, result_suffix, write_video
from superres.errors import InputError
from superres.models.engine import Engine, load
from superres.models.hub import WEIGHTS, network_file
from superres.models.images import TILE, ImageUpscaler
from superres.precision import chosen_precision

Format = Literal["png", "jpg", "webp", "tiff", "avif", "gif"]
Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]


def destinations(inputs: Iterable[str], folder: Path | str, suffix: str,
                 kind: str | None = None) -> list[tuple[Path, Path]]:
    """(source, destination) of every file, folder and glob, no destination twice.

    What lies in `folder` already is left out, with a line that says so, unless it is named itself:
    under the name of another input's result, and all of it where `folder` lies below an input.

    Args:
        suffix: What is added to a name, such as `"_x4"`.
        kind: The pictures' suffix, such as `"jpg"`; None: PNG, and of an animation its own.

    Raises:
        InputError: if an input stands for no file at all.
    """
    folder, found, seen = Path(folder), [], set()
    results = folder.resolve()
    for given in inputs:
        if Path(given).is_dir():
            paths = [(path, path.relative_to(given).parent, False) for path in list_pictures(given, SUFFIXES)]
        else:
            there = [given] if Path(given).exists() else sorted(glob.glob(given, recursive=True))
            paths = [(Path(path), Path(), path == given) for path in there if Path(path).is_file()]
        if not paths:
            hint = f"; for a name that begins with a dash, write ./{given}" if given.startswith("-") else ""
            raise InputError(f"{given}: no such file, folder or pattern{hint}")
        outside = [path for path in paths
                   if path[2] or results not in ((at := path[0].parent.resolve()), *at.parents)]
        # Where all lie there, results go beside them.
        apart = Path(given).resolve() in results.parents if Path(given).is_dir() else bool(outside)
        if apart and len(outside) < len(paths):
            print(f"left out: {len(paths) - len(outside)} pictures in {folder}, where results go")
            paths = outside
        for source, below, named in paths:
            if source.resolve() not in seen:
                seen.add(source.resolve())
                found.append((source, below, named))

    jobs, taken = [], set()
    names = {(source.resolve().parent, source.stem) for source, *_ in found}
    for source, below, named in found:
        # a_x4.png, of another scale or size too, and its kin a_x4_2.png, beside a.png and where results go
        result_of = re.fullmatch(rf"(.+)({re.escape(suffix)}|_x[\d.]+|_\d+x\d+)(_\d+|_std)?", source.stem)
        if (not named and result_of and (source.resolve().parent, result_of[1]) in names
                and source.resolve().parent == (folder / below).resolve()):
            print(f"left out: {source} looks like a result of {result_of[1]}; name it to upscale it")
            continue
        ending = result_suffix(source) or (f".{kind}" if kind else animation_suffix(source) or ".png")
        jobs.append((source, claimed(folder / below / f"{source.stem}{suffix}{ending}", taken)))
    return jobs


def claimed(path: PurePath, taken: set[PurePath]) -> PurePath:
    """The path, or where it is taken with _2, _3 and so on after its name; then that is taken, too."""
    free, number = path, 1
    while free in taken:
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    taken.add(free)
    return free


def sample_paths(destination: PurePath, samples: int | None) -> list[PurePath]:
    """Where the samples of a picture go: several are numbered from 1."""
    if (samples or 1) == 1:
        return [destination]
    return [destination.with_stem(f"{destination.stem}_{k}") for k in range(1, samples + 1)]


def drawing(network: ImageUpscaler, samples: int | None, temperature: float | None, seed: int | None,
            **options) -> list[Callable[..., Picture]]:
    """For each sample, the function of a `Picture` that makes it, of a network of any size.

    Args:
        options: `tile`, `ensemble` and `progress` of `network.draw`.
    """
    noise = [{"temperature": temperature, "seed": (seed or 0) + k} if network.draws_samples else {}
             for k in range(samples or 1)]
    return [functools.partial(network.upscale, **options, **sample) for sample in noise]


def results(network: ImageUpscaler, frames: Callable[[], Iterator[Picture]], samples: int | None = None,
            crop: Crop | None = None, tile: int | None = None, ensemble: bool = False,
            temperature: float | None = None, seed: int | None = None,
            progress: Callable[[int], object] | None = None) -> Iterator[Iterable[Picture]]:
    """For each sample, the frames of a picture file's result, computed as they are asked for.

    Args:
        frames: Function that begins to read the file; of networks of one size, the first frame counts.
        samples, crop, tile, ensemble, temperature, seed, progress: See `ImageUpscaler.draw`; `tile` is
            256 unless given.
    """
    if network.lr_size:  # which draws all samples at once
        for sr in network.draw(next(frames()), samples, crop=crop, temperature=temperature, seed=seed):
            yield [sr]
        return
    for upscale in drawing(network, samples, temperature, seed, tile=tile or TILE, ensemble=ensemble,
                           progress=progress):
        yield map(upscale, frames())


def reason_for(error: BaseException) -> str:
    """Why a picture failed, in one line."""
    if isinstance(error, MemoryError):
        return "not enough memory: try a smaller --tile"
    return " ".join(str(error).split()) or type(error).__name__


def check_free(path: Path, sources: set[Path], overwrite: bool) -> None:
    """Raise InputError for a file that no result may be written over: an input; without `overwrite` any."""
    if path.resolve() in sources:
        raise InputError(f"{path} is an input, which no result is written over; choose another --output")
    if not overwrite:
        raise InputError(f"{path} is there already; --overwrite writes over it, --skip-existing leaves it")


def stochasticity_map(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Where samples (H, W, C) differ: their standard deviation, (H, W, 1) uint8.

    The largest hundredth is white. Source: the report "Explicit MAP Optimization for
    Photo-Realistic Super Resolution", figure 3.
    """
    # In bands of rows: floats of all samples of a large picture at once would not fit in memory.
    bands = zip(*(np.array_split(sample, -(-len(sample) // 64)) for sample in samples), strict=True)
    deviation = np.concatenate([np.stack(band).std(0, dtype="float32").mean(-1, keepdims=True)
                                for band in bands])
    return to_uint8(np.clip(deviation / max(np.quantile(deviation, 0.99), 1e-9), 0, 1))


@functools.cache  # the same for every video
def fingerprint(model: str) -> str:
    """Text that tells a network from every other."""
    return hashlib.sha256(Path(network_file(model)).read_bytes()).hexdigest()


def target_size(size: str) -> tuple[int, int]:
    """(width, height) that `--size` names."""
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    width, height = map(int, match.groups()) if match else (0, 0)
    if not width or not height:
        raise InputError(f"--size: must be WIDTHxHEIGHT, such as 1920x1080, not {size}")
    return width, height


def resized(picture: Picture, size: tuple[int, int] | None = None, scale: float | None = None,
            factor: float | None = None) -> Picture:
    """A super-resolved `Picture`, shrunk by MATLAB's bicubic to a size, or to a scale.

    Args:
        size: (width, height).
        scale: Of the result over LR.
        factor: Of the picture over LR.
    """
    height, width = picture.pixels.shape[:2]
    if scale:
        size = tuple(max(1, round(length * scale / factor)) for length in (width, height))
    if not size or size == (width, height):
        return picture
    if size[0] > width or size[1] > height:
        raise InputError(f"--size: {size[0]} x {size[1]} is larger than what the network makes, "
                         f"{width} x {height}")
    factors = (size[1] / height, size[0] / width)
    return picture.each(lambda planes: imresize_clipped(planes, factors))


def main(
    model: Model,
    inputs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="INPUT...")],
    /,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")],
    format: Format | None = None,
    quality: Annotated[int | None, tyro.conf.arg(metavar="1..100")] = None,
    depth: Literal[8, 16] = 8,
    size: Annotated[str, tyro.conf.arg(metavar="WIDTHxHEIGHT")] = "",
    scale: float | None = None,
    suffix: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    strip: bool = False,
    white: float | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Engine = "auto",
    blend: float = 0.0,
    blend_with: Annotated[str, tyro.conf.arg(metavar="MODEL")] = "",
    ensemble: bool = False,
    tile: int | None = None,
    crop: Crop | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    stochasticity: bool = False,
) -> None:
    """Upscale photographs with a trained network.

    Example: upscale.py lapsrn-x4 photo.jpg holiday/ -o upscaled

    Reads what Pillow reads (PNG, JPEG, TIFF, WebP, GIF, AVIF, JPEG 2000, TGA and others), writes PNG, JPEG,
    WebP, TIFF, AVIF and GIF; of videos (with PyAV: pip install av) MP4 and Matroska, with their sound. A
    video that was stopped goes on when the same command is given again. `upscale.py --list` shows the
    networks that are shipped.

    Args:
        model: A shipped network's name, a .keras file, or hf://user/name on the Hugging Face hub.
        inputs: Picture and video files, folders of them, and patterns such as "scans/*.tif".
        output: Folder for the results, NAME_xSCALE.png; a second NAME becomes NAME_xSCALE_2.png.
        format: What pictures are written as; png unless given, and of animations their own kind.
        quality: Of JPEG and AVIF, 95 unless given, and of WebP, which is without loss unless given. Of
            videos, 68 unless given, for x264's constant rate factor (100 - quality) / 2.
        depth: Bits a channel of the results; 16 for PNG and TIFF, computed without rounding to 8 before. Of
            videos, 16 gives 10, which not every player shows.
        size: Shrink what the network makes to exactly so many pixels, by MATLAB's bicubic.
        scale: Shrink it to so many times the picture's size, such as 3 with a x4 network.
        suffix: What is added to a name in place of _xSCALE.
        strip: Leave out EXIF, XMP, texts and resolution; the colour profile stays, and a video's chapters.
        white: The value that is white in files of floats or 32 bits that do not say so.
        overwrite: Write over results that are there already.
        skip_existing: Leave out pictures whose results are there already, to go on with a batch.
        precision: bfloat16 is faster on processors that have it, at a loss of some hundredths of a dB.
        engine: What computes the network. auto: OpenVINO where it is installed and faster (pip install
            openvino), TensorFlow elsewhere.
        blend: Interpolate the weights towards those of --blend-with: 0 is MODEL, 1 the other. Between
            srgan and srresnet, that is between sharpness and PSNR.
        blend_with: Another network of the same structure, such as srresnet for srgan.
        ensemble: Take the mean over the picture's eight turns and flips: about 0.1 dB better, in eight
            times the time.
        tile: Networks of any size: the square computed at a time, in LR pixels, 256 unless given; memory
            grows with it.
        crop: Networks of one size: the square that is cut out, the largest in the middle (unless
            given) or the face of an aligned CelebA picture.
        samples: Networks that draw samples: how many, NAME_xSCALE_1.png and so on; 1 unless given.
        temperature: Networks that draw samples: what the noise is multiplied by, 0 for none; or, of
            networks of one size, the logits: above 1 samples vary less, inf takes the most probable
            value. 1, the model itself, unless given.
        seed: Networks that draw samples: another seed draws others; 0 unless given. All frames of a video
            get the same noise, so that it does not flicker.
        stochasticity: Networks with noise: also write NAME_xSCALE_std.png, the samples' standard
            deviation at each pixel, the brighter the more, the brightest 1 % white.
    """
    if not inputs:
        raise InputError("nothing to upscale: name picture files, folders or patterns")
    network = load(model, chosen_precision(precision), engine, blend, blend_with)
    network.check(samples, temperature, seed, tile, ensemble, crop)
    network.refuse("with noise", stochasticity=stochasticity)
    if stochasticity and (samples or 1) < 2:
        raise InputError("--stochasticity: needs --samples 2 or more")
    if depth == 16 and format not in (None, "png", "tiff"):
        raise InputError(f"--depth: 16 bits go into png and tiff, not {format}")
    if size and scale:
        raise InputError("--size, --scale: give one of them")
    if scale is not None and not 0 < scale <= network.scale:
        raise InputError(f"--scale: must be above 0 and at most the network's, {network.scale}, not {scale}")
    if overwrite and skip_existing:
        raise InputError("--overwrite, --skip-existing: give one of them")
    if white is not None and not 0 < white < np.inf:
        raise InputError(f"--white: must be a finite number above 0, not {white}")
    pixels = target_size(size) if size else None
    if suffix is None:
        suffix = f"_{size}" if size else f"_x{scale or network.scale:g}"
    if "/" in suffix:
        raise InputError(f"--suffix: is added to a name and holds no /, not {suffix}")
    jobs = destinations(inputs, output, suffix, format)
    videos = [destination.suffix in FORMATS for _, destination in jobs]
    lossy = format in ("jpg", "webp", "avif") or any(videos)
    if quality is not None and not (lossy and 1 <= quality <= 100):
        raise InputError(f"--quality: from 1 to 100, for --format jpg, webp, avif and videos, not {quality}")
    if (format or white) and videos and all(videos):
        raise InputError("--format, --white: for pictures, and all inputs are videos")
    if pixels and any(videos) and (pixels[0] % 2 or pixels[1] % 2):
        raise InputError(f"--size: a video's width and height are even, not {size}")
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be made a folder ({error.strerror})") from None

    sources = {source.resolve() for source, _ in jobs}
    noise = {"samples": samples, "temperature": temperature, "seed": seed}
    options = {"tile": tile or TILE, "ensemble": ensemble}

    def fitted(picture):
        """A super-resolved picture, of the size that is asked for."""
        return resized(picture, pixels, scale, network.scale)

    def frames(source, bar):
        """The frames of a file."""
        bits = 8 if network.lr_size else depth
        for picture in read_frames(source, bits, white):
            if bits == 16:  # from floats, the network makes floats
                picture = picture.each(to_float)
            bar.total = (bar.total or 0) + picture.pixels.shape[0] * picture.pixels.shape[1]
            yield picture

    def upscale(source, destination, title):
        video = destination.suffix in FORMATS
        if video and (network.lr_size or stochasticity):
            raise InputError("a video is for networks of any size, and not for --stochasticity")
        paths = sample_paths(destination, samples)
        if stochasticity:
            paths.append(claimed(destination.with_stem(f"{destination.stem}_std").with_suffix(".png"), maps))
        if skip_existing and all(path.exists() for path in paths):
            return False
        for path in paths:
            if path.exists() and not skip_existing:
                check_free(path, sources, overwrite)
        destination.parent.mkdir(parents=True, exist_ok=True)
        drawn = []
        with tqdm(desc=title, unit="frame" if video else "px", unit_scale=not video, leave=False,
                  disable=bool(network.lr_size) or not sys.stderr.isatty()) as bar:

            def count(done, total):
                bar.total = total
                bar.update(done - bar.n)

            start = time.perf_counter()
            drawings = (drawing(network, **noise, **options) if video else results(
                network, lambda: frames(source, bar), crop=crop, progress=bar.update, **noise, **options))
            for path, result in zip(paths, drawings, strict=False):
                if not video:
                    result = map(fitted, result)
                if stochasticity:
                    first = next(result)
                    drawn.append(first.pixels)
                    result = [first, *result]
                if not path.exists() or not skip_existing:
                    if video:
                        networks = fingerprint(model), blend, blend_with and fingerprint(blend_with)
                        made_by = f"{networks} {precision} {pixels} {scale} {result.keywords}"
                        write_video(path, source, lambda frame, sr=result: fitted(sr(frame)), made_by,
                                    quality, depth, strip, count)
                    else:
                        write_frames(path, result, quality, depth, strip)
                    print(f"{source} -> {path}  {time.perf_counter() - start:.1f} s")
                start = time.perf_counter()
        if stochasticity and not (skip_existing and paths[-1].exists()):
            write_picture(paths[-1], stochasticity_map(drawn))
            print(f"{source} -> {paths[-1]}")
        return True

    done, skipped, failed, maps = 0, 0, 0, set()
    for number, (source, destination) in enumerate(jobs, start=1):
        try:
            if upscale(source, destination, f"[{number}/{len(jobs)}] {source.name}"):
                done += 1
            else:
                skipped += 1
        except BrokenPipeError:
            print(f"nobody reads the output: stopped after {number} of {len(jobs)}", file=sys.stderr)
            raise
        except (InputError, OSError, MemoryError) as error:
            failed += 1
            reason = reason_for(error)
            print(f"failed: {reason if str(source) in reason else f'{source}: {reason}'}", file=sys.stderr)
            if getattr(error, "errno", None) == errno.ENOSPC:
                print(f"the disk is full: stopped after {number} of {len(jobs)}", file=sys.stderr)
                break
    left = len(jobs) - done - skipped - failed
    print(f"{done} upscaled" + (f", {skipped} there already" if skip_existing else "") + f", {failed} failed"
          + (f", {left} not tried" if left else ""))
    if failed:
        sys.exit(1)


def shipped_networks() -> list[list[str]]:
    """Of the networks that are shipped, name, scale, what each is for and a figure; first the titles."""
    with open(WEIGHTS / "networks.csv", newline="") as file:
        return list(csv.reader(file))


def show_networks() -> None:
    """Print the networks that are shipped."""
    rows = shipped_networks()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def cli() -> None:
    if "--list" in sys.argv[1:]:
        del sys.argv[1:]
        command(show_networks)
        return
    for word in sys.argv[1:]:
        if word.startswith("-") and Path(word).is_file():  # which the parser would take for an option
            print(f"error: {word}: for a name that begins with a dash, write ./{word}", file=sys.stderr)
            sys.exit(2)
    command(main)


if __name__ == "__main__":
    cli()
