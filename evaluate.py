"""Measure a trained network on pictures, beside bicubic interpolation.

    python evaluate.py lapsrn-x2 --data photos
    python evaluate.py lapsrn-x4 --data FOLDER --json result.json --figure result.png
    python evaluate.py srgan-x4 --data FOLDER --blend 0.5 --blend-with srresnet-x4
    python evaluate.py pixel_recursive-celeba --data FOLDER --crop face --samples 4

Networks of any size: HR pictures are cropped to a multiple of the scale; LR is made from them, rounded to 8
bits; SR is rounded to 8 bits before it is measured. PSNR and SSIM leave out a border of
`scale` pixels; pictures that have nothing within it are left out. Y is BT.601's; grey pictures are
measured as they are, and as RGB where only one of a given LR and HR is grey.

Networks with noise draw samples: the measures are means over them, and two more say how
faithful they are to LR: the worst sample's LR-PSNR, and the PSNR of the mean squared error.

No PSNR is infinite: an exact picture counts as if one of its values were one level of 255 off.

Networks of one size (pixel recursive ones): a square is cut out of each picture and
shrunk to HR; nothing is left out of the border, PSNR and SSIM are in RGB. Where the
network draws samples, the measures are means over them.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import itertools
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

from superres.datasets.catalogue import as_needed, has_corners, load
from superres.datasets.degradations import degraded
from superres.datasets.likeness import cells, warn_of_likenesses
from superres.datasets.patches import looks
from superres.datasets.pictures import write_picture
from superres.datasets.thumbnails import Crop, Thumbnails
from superres.errors import InputError
from superres.files import whole, write_figure
from superres.metrics.perceptual import LPIPS, SqueezeNetDistance
from superres.metrics.report import SHOWN, evaluate, figure, table
from superres.metrics.thumbnails import evaluate_thumbnails, thumbnail_sheet, thumbnail_table
from superres.models.engine import Engine
from superres.models.engine import load as load_network
from superres.precision import chosen_precision


def main(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    data: str = "photos",
    against: str = "",
    degradation: Literal["bicubic", "realworld"] | None = None,
    limit: int | None = None,
    json_file: Annotated[str | None, tyro.conf.arg(name="json")] = None,
    figure_file: Annotated[str | None, tyro.conf.arg(name="figure")] = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Engine = "auto",
    blend: float = 0.0,
    blend_with: Annotated[str, tyro.conf.arg(metavar="MODEL")] = "",
    ensemble: bool = False,
    lpips: str = "",
    squeezenet: str = "",
    crop: Crop | None = None,
    held_out: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
) -> None:
    """Measure a trained network on pictures, beside bicubic interpolation.

    Example: evaluate.py lapsrn-x2 --data holiday/ --figure result.png

    Args:
        model: A shipped network's name, a .keras file, or hf://user/name on the Hugging Face hub.
        data: A folder of HR pictures or a name of the catalogue (its test split).
        against: What the network was trained on, a folder or a name (its training split): warn of
            every picture that looks like one of it, at another size or compression too.
        degradation: How LR is made: MATLAB's bicubic (unless given), or random blur kernels.
        limit: Measure only so many pictures.
        json_file: Write all figures to this file.
        figure_file: Draw crops of LR, bicubic, SR and HR to this file.
        precision: What the network computes in.
        engine: What computes it. auto: OpenVINO where it is installed and faster, TensorFlow elsewhere.
        blend: Interpolate the weights towards those of --blend-with: 0 is MODEL, 1 the other.
        blend_with: Another network of the same structure, such as srresnet for srgan.
        ensemble: Measure the mean over the picture's eight turns and flips, in eight times the time.
        lpips: Also measure LPIPS, with torchvision's ImageNet weights of AlexNet or VGG16 in this
            file (download.pytorch.org/models/alexnet-owt-7be5be79.pth or vgg16-397923af.pth); needs
            `pip install torch lpips`.
        squeezenet: Also measure the SqueezeNet distance, uncalibrated, with Keras's weights of
            SqueezeNet 1.1 without its top in this file (.h5).
        crop: Networks of one size: the square that is cut out of a picture, the largest in the middle
            unless given.
        held_out: Networks of one size: measure one picture of a folder in so many, as training
            holds them out; the others are the known ones of nearest neighbour.
        samples: Networks that draw samples: how many for each picture; 1 unless given.
        temperature: Networks that draw samples: what the noise is multiplied by, or the logits; 1
            unless given.
        seed: Networks that draw samples: of the samples; 0 unless given.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit: must be at least 1, not {limit}")
    for path in filter(None, (json_file, figure_file)):
        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    if figure_file and Path(figure_file).suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"--figure: {figure_file} must end in .png, .jpg, .pdf or .svg")
    distances = {}
    if lpips:  # first: the diversity score is by it, where there are both
        distances["lpips"] = LPIPS(lpips)
    if squeezenet:
        distances["squeezenet_distance"] = SqueezeNetDistance(squeezenet)
    network = load_network(model, chosen_precision(precision), engine, blend, blend_with)
    network.check(samples, temperature, seed, ensemble=ensemble, crop=crop)
    network.refuse("of one size", held_out=held_out)
    network.refuse("of any size", degradation=degradation, against=against, lpips=lpips,
                   squeezenet=squeezenet)
    drawing = {"samples": samples, "temperature": temperature, "seed": seed}
    if network.lr_size:
        if held_out is not None and (held_out < 2 or not Path(data).is_dir()):
            raise InputError("--held-out: takes a number from 2 on, and --data a folder")
        size, arguments = network.lr_size, {"channels": network.channels, "crop": crop or "centre",
                                            "corners": has_corners(data)}
        pictures = Thumbnails(load(data, "test", limit, held_out), size, network.scale, **arguments)
        known = (Thumbnails(load(data, "train", held_out=held_out), size, network.scale, **arguments)
                 if held_out else None)
        result, drawn = evaluate_thumbnails(network, pictures, known, **drawing)
        print(thumbnail_table(result))
        _write_json(json_file, result)
        if figure_file:
            _write_sheet(figure_file, thumbnail_sheet(pictures, drawn))
    else:
        drawn, measured = [], []  # of a large folder, only this is kept

        def pairs():
            for name, lr, hr in degraded(load(data, "test", limit), network.scale, degradation or "bicubic"):
                if figure_file and len(drawn) < SHOWN:
                    drawn.append((name, lr, hr))
                if against:
                    measured.append((name, cells(hr)))
                yield name, lr, hr

        known = looks(as_needed([against] if against else []))
        first = [*itertools.islice(known, 1)]  # before hours of work: it may not be there
        result = evaluate(network, pairs(), distances, ensemble=ensemble, **drawing)
        print(table(result))
        _write_json(json_file, result)
        if against:
            warn_of_likenesses(measured, itertools.chain(first, known))
        if figure_file:
            sheet = figure(network, drawn, temperature=temperature, seed=seed, ensemble=ensemble)
            write_figure(figure_file, sheet, dpi=110)


def _write_json(path, result):
    if path:
        with whole(path) as part:
            part.write_text(json.dumps(_finite(result), indent=1))


def _write_sheet(path, sheet):
    """A picture (H, W, 3), uint8, as a file of pixels or, for .pdf and .svg, as a drawing that holds it."""
    if Path(path).suffix.lower() in (".pdf", ".svg"):
        drawing = Figure(figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100), dpi=100)
        drawing.figimage(sheet)
        write_figure(path, drawing)
    else:
        write_picture(path, sheet)


def _finite(result):
    """The result with None for what is not finite, as a broken network's measures may be: JSON has none."""
    if isinstance(result, dict):
        return {key: _finite(value) for key, value in result.items()}
    if isinstance(result, list):
        return [_finite(value) for value in result]
    return None if isinstance(result, float) and not np.isfinite(result) else result


def cli() -> None:
    command(main)


if __name__ == "__main__":
    cli()
