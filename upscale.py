"""Upscale photographs with a trained network.

    python upscale.py weights/lapsrn-x2.keras photo.jpg -o upscaled
    python upscale.py weights/lapsrn-x4.keras holiday/ "scans/*.tif" -o upscaled
    python upscale.py weights/srgan-x4.keras a.jpg --blend 0.3 --blend-with weights/srresnet-x4.keras -o up
    python upscale.py weights/pixel_recursive-celeba.keras face.jpg --crop face --samples 4 -o upscaled

A picture of any kind and size works: grey, palette, CMYK, 16-bit, with alpha, rotated by
EXIF, from 1 x 1 up. The result is a PNG of 8 bits a channel, grey where the picture was
grey. Large pictures are computed in tiles, which changes nothing but the memory needed.

A network with noise, such as SRMAP's, draws as many samples as are asked for, from the seeds
S, S + 1 and so on of `--seed S`; `--stochasticity` also draws where they differ.

A network of one size, such as a pixel recursive one, takes LR of that size; of a larger
picture, a square is cut out and shrunk to it.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import glob
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from superres.datasets.degradations import imresize
from superres.datasets.pictures import Picture, list_pictures, read_picture, to_uint8, write_picture
from superres.datasets.thumbnails import Crop, thumbnail
from superres.errors import InputError
from superres.models import resolve
from superres.models.sampler import Sampler, check_sampling
from superres.precision import chosen_precision


def destinations(inputs, folder, scale):
    """(source, destination) of every file, folder and glob, no destination twice.

    Raises:
        InputError: if an input stands for no file at all.
    """
    folder, jobs, seen, taken = Path(folder), [], set(), set()
    for given in inputs:
        if Path(given).is_dir():
            found = [(path, path.relative_to(given).parent) for path in list_pictures(given)]
        else:
            paths = [given] if Path(given).exists() else sorted(glob.glob(given, recursive=True))
            found = [(Path(path), Path()) for path in paths if Path(path).is_file()]
        if not found:
            raise InputError(f"{given}: no such file, folder or pattern")
        for source, below in found:
            if source.resolve() in seen:
                continue
            seen.add(source.resolve())
            stem = name = f"{source.stem}_x{scale}"
            number = 1
            while folder / below / f"{name}.png" in taken:
                number += 1
                name = f"{stem}_{number}"
            taken.add(folder / below / f"{name}.png")
            jobs.append((source, folder / below / f"{name}.png"))
    return jobs


def upscale(network, picture, tile=256, progress=None, overlap=None, temperature=1.0, seed=0,
            ensemble=False):
    """Upscale a `Picture`; alpha goes through bicubic interpolation."""
    pixels = resolve.resolve_tiled(network, picture.pixels, tile, progress, overlap, temperature, seed,
                                   ensemble)
    alpha = picture.alpha
    return Picture(pixels, None if alpha is None else imresize(alpha, resolve.scale_of(network)))


def stochasticity_map(samples):
    """Where samples (H, W, C) uint8 differ: their standard deviation, (H, W, 1) uint8.

    The largest hundredth is white. Source: the report "Explicit MAP Optimization for
    Photo-Realistic Super Resolution", figure 3.
    """
    # In bands of rows: floats of all samples of a large picture at once would not fit in memory.
    bands = zip(*(np.array_split(sample, -(-len(sample) // 64)) for sample in samples), strict=True)
    deviation = np.concatenate([np.stack(band).std(0, dtype="float32").mean(-1, keepdims=True)
                                for band in bands])
    return to_uint8(np.clip(deviation / max(np.quantile(deviation, 0.99), 1e-9), 0, 1))


def main(
    model: str,
    inputs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="INPUT...")],
    /,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])],
    precision: Literal["float32", "bfloat16"] = "float32",
    blend: float = 0.0,
    blend_with: str = "",
    ensemble: bool = False,
    tile: int = 256,
    crop: Crop = "centre",
    samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    stochasticity: bool = False,
):
    """Upscale photographs with a trained network.

    Args:
        model: The network, a .keras file.
        inputs: Picture files, folders of pictures, and patterns such as "scans/*.tif".
        output: Folder for the results, NAME_xSCALE.png; a second NAME becomes NAME_xSCALE_2.png.
        precision: bfloat16 is faster on processors that have it, at a loss below 0.02 dB.
        blend: Interpolate the weights towards those of --blend-with: 0 is MODEL, 1 the other. Between
            srgan and srresnet, that is between sharpness and PSNR.
        blend_with: Another network of the same structure, such as srresnet for srgan.
        ensemble: Take the mean over the picture's eight turns and flips: about 0.1 dB better, in eight
            times the time.
        tile: Size in LR pixels of the square computed at a time; memory grows with it.
        crop: Networks of one size: the square that is cut out, the largest in the middle or the
            face of an aligned CelebA picture.
        samples: Networks that draw samples: how many, NAME_xSCALE_1.png and so on.
        temperature: Networks that draw samples: what the noise is multiplied by, 0 for none; or, of
            networks of one size, the logits: 1 samples the model, more is sharper, inf takes
            the most probable value.
        seed: Networks that draw samples: another seed draws others.
        stochasticity: Networks with noise: also write NAME_xSCALE_std.png, the samples' standard
            deviation at each pixel, the brighter the more, the brightest 1 % white.
    """
    if tile < 1:
        raise InputError(f"tile: must be at least 1, not {tile}")
    if not inputs:
        raise InputError("nothing to upscale: name picture files, folders or patterns")
    network = resolve.load_blended(model, chosen_precision(precision), blend, blend_with)
    size, noise = resolve.lr_size(network), resolve.stochastic(network)
    if ensemble:
        resolve.check_ensemble(network)
    check_sampling(samples, temperature, seed, noise)
    if stochasticity and (not noise or samples < 2):
        raise InputError("--stochasticity: needs a network with noise, and --samples 2 or more")
    if not noise and not size:
        samples = 1
    jobs = destinations(inputs, output, resolve.scale_of(network))
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be made a folder ({error.strerror})") from None
    sampler, overlap = (Sampler(network), None) if size else (None, resolve.reach(network))
    failed = 0
    for number, (source, destination) in enumerate(jobs, start=1):
        try:
            picture = read_picture(source)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        if size:
            lr = thumbnail(picture.pixels, size, network.inputs[0].shape[-1], crop)
            drawn = sampler.sample(lr[None], temperature, seed, samples)[:, 0]
            for k, result in enumerate(drawn, start=1):
                stem = f"{destination.stem}_{k}" if samples > 1 else destination.stem
                path = destination.with_stem(stem)
                write_picture(path, result)
                print(f"{source} -> {path}")
            continue
        height, width = picture.pixels.shape[:2]
        results = []
        with tqdm(total=samples * height * width, desc=f"[{number}/{len(jobs)}] {source.name}", unit="px",
                  unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            for k in range(samples):
                start = time.perf_counter()
                result = upscale(network, picture, tile, bar.update, overlap, temperature, seed + k,
                                 ensemble)
                path = destination.with_stem(f"{destination.stem}_{k + 1}") if samples > 1 else destination
                write_picture(path, result)
                height, width = result.pixels.shape[:2]
                print(f"{source} -> {path}  {width} x {height}  {time.perf_counter() - start:.1f} s")
                if stochasticity:
                    results.append(result.pixels)
        if stochasticity:
            path = destination.with_stem(f"{destination.stem}_std")
            write_picture(path, stochasticity_map(results))
            print(f"{source} -> {path}")
    print(f"{len(jobs) - failed} upscaled, {failed} skipped")
    if failed:
        sys.exit(1)


def cli():
    command(main)


if __name__ == "__main__":
    cli()
