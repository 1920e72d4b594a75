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

from superres.datasets.pictures import list_pictures, read_picture, to_uint8, write_picture
from superres.datasets.thumbnails import Crop
from superres.errors import InputError
from superres.models.upscaler import load_blended
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
    tile: int | None = None,
    crop: Crop | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
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
        tile: Networks of any size: the square computed at a time, in LR pixels, 256 unless given; memory
            grows with it.
        crop: Networks of one size: the square that is cut out, the largest in the middle (unless
            given) or the face of an aligned CelebA picture.
        samples: Networks that draw samples: how many, NAME_xSCALE_1.png and so on; 1 unless given.
        temperature: Networks that draw samples: what the noise is multiplied by, 0 for none; or, of
            networks of one size, the logits: more than 1 is sharper, inf takes the most probable
            value. 1, the model itself, unless given.
        seed: Networks that draw samples: another seed draws others; 0 unless given.
        stochasticity: Networks with noise: also write NAME_xSCALE_std.png, the samples' standard
            deviation at each pixel, the brighter the more, the brightest 1 % white.
    """
    if not inputs:
        raise InputError("nothing to upscale: name picture files, folders or patterns")
    network = load_blended(model, chosen_precision(precision), blend, blend_with)
    network.check(samples, temperature, seed, tile, ensemble, crop)
    network.refuse("with noise", stochasticity=stochasticity)
    tile = tile or (None if network.lr_size else 256)
    if stochasticity and (samples or 1) < 2:
        raise InputError("--stochasticity: needs --samples 2 or more")
    jobs = destinations(inputs, output, network.scale)
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be made a folder ({error.strerror})") from None
    failed = 0
    for number, (source, destination) in enumerate(jobs, start=1):
        try:
            picture = read_picture(source)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        height, width = picture.pixels.shape[:2]
        results = []
        with tqdm(total=(samples or 1) * height * width, desc=f"[{number}/{len(jobs)}] {source.name}",
                  unit="px", unit_scale=True,
                  disable=bool(network.lr_size) or not sys.stderr.isatty()) as bar:
            start = time.perf_counter()
            drawn = network.draw(picture, samples, temperature=temperature, seed=seed, ensemble=ensemble,
                                 tile=tile, crop=crop, progress=bar.update)
            for k, result in enumerate(drawn, start=1):
                path = destination.with_stem(f"{destination.stem}_{k}") if (samples or 1) > 1 else destination
                write_picture(path, result)
                height, width = result.pixels.shape[:2]
                print(f"{source} -> {path}  {width} x {height}  {time.perf_counter() - start:.1f} s")
                start = time.perf_counter()
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
