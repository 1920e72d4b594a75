"""Measure a trained network on pictures, beside bicubic interpolation.

    python evaluate.py weights/lapsrn-x2.keras --data photos
    python evaluate.py weights/lapsrn-x4.keras --data FOLDER --json result.json --figure result.png
    python evaluate.py weights/srgan-x4.keras --data FOLDER --blend 0.5 --blend-with weights/srresnet-x4.keras
    python evaluate.py weights/pixel_recursive-celeba.keras --data FOLDER --crop face --samples 4

Networks of any size: HR pictures are cropped to a multiple of the scale; LR is made from them, rounded to 8
bits; SR is rounded to 8 bits before it is measured. PSNR and SSIM leave out a border of
`scale` pixels. Y is BT.601's; grey pictures are measured as they are.

Networks with noise draw samples: the measures are means over them, and two more say how
faithful they are to LR: the worst sample's LR-PSNR, and the PSNR of the mean squared error.

No PSNR is infinite: an exact picture counts as if one of its values were one level of 255 off.

Networks of one size (pixel recursive ones): a square is cut out of each picture and
shrunk to HR; nothing is left out of the border, PSNR and SSIM are in RGB. Where the
network draws samples, the measures are means over them.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import json
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from superres.datasets.catalogue import load
from superres.datasets.corners import are_corners, corner_count
from superres.datasets.degradations import degraded, imresize
from superres.datasets.errors import InputError
from superres.datasets.likeness import warn_of_likenesses
from superres.datasets.pictures import contact_sheet, to_float, to_uint8, write_picture
from superres.datasets.thumbnails import Crop, Thumbnails, parts
from superres.losses import bits_per_dimension
from superres.metrics import consistency, diversity, finite_psnr, ms_ssim, quality, ssim
from superres.metrics.perceptual import LPIPS, SqueezeNetDistance, diversity_score
from superres.models import resolve
from superres.models.pixel_recursive import is_conditioned
from superres.models.sampler import Sampler, check_sampling, draws
from superres.precision import chosen_precision

# Heading and format of every measure, as far as it is measured.
COLUMNS = {"psnr_y": ("PSNR-Y", ".2f"), "ssim_y": ("SSIM-Y", ".4f"), "psnr_rgb": ("PSNR-RGB", ".2f"),
           "lr_psnr": ("LR-PSNR", ".2f"), "lr_psnr_worst": ("worst", ".2f"),
           "lr_psnr_pooled": ("pooled", ".2f"), "colour_error": ("colour", ".2f"), "lpips": ("LPIPS", ".4f"),
           "squeezenet_distance": ("Squeeze*", ".4f"), "diversity_score": ("S", ".2f")}


def evaluate(network, pairs, distances=None, samples=1, temperature=1.0, seed=0, ensemble=False):
    """Measure a network on (name, lr, hr) triples, uint8.

    Args:
        distances: Dict of name -> function of (HR, SR), measured too, such as
            `metrics.perceptual.LPIPS`.
        samples: How many pictures a network with noise draws of each LR, from the seeds
            `seed`, `seed` + 1 and so on. Measures are means over them.
        temperature: What the noise is multiplied by.
        ensemble: Measure the mean over turns and flips, see `models.resolve.resolve`.

    Returns:
        A dict of `mean` and `bicubic`, each holding what `metrics.quality` gives, the
        distances and `seconds` a picture, `mpixel_per_second` (of HR), and
        `pictures`: a list of the same with `name`, and the same under `bicubic`. Networks
        with noise have also `lr_psnr_worst`, `lr_psnr_pooled` (the PSNR of the mean squared
        error) and, where there are several samples and a distance, `diversity_score`, by the
        first distance.
    """
    scale, drawn = resolve.scale_of(network), resolve.stochastic(network)
    methods = {
        "network": lambda lr: [resolve.resolve(network, lr, temperature, seed + k, ensemble=ensemble)
                               for k in range(samples if drawn else 1)],
        "bicubic": lambda lr: [imresize(lr, scale)],
    }
    pictures = []
    for name, lr, hr in pairs:
        row = {"name": name, "megapixels": hr.shape[0] * hr.shape[1] / 1e6}
        for method, upscale in methods.items():
            if not pictures:  # compile, for one size and then for any
                upscale(lr)
                upscale(lr[:8])
            start = time.perf_counter()
            drawings = upscale(lr)
            seconds = (time.perf_counter() - start) / len(drawings)
            drawings = [to_uint8(sr) for sr in drawings]
            scores = [{**quality(hr, sr, scale),
                       **{key: distance(hr, sr) for key, distance in (distances or {}).items()}}
                      for sr in drawings]
            row[method] = {**average(scores, drawn), "seconds": seconds}
            if drawn and samples > 1 and distances:
                distance = next(iter(distances.values()))
                maps = [distance.map(hr, sr) for sr in drawings]
                row[method]["diversity_score"] = diversity_score(maps)
        pictures.append({**row.pop("network"), **row})
    megapixels = sum(p["megapixels"] for p in pictures)

    def mean(rows):
        rows = [{key: row[key] for key in pictures[0]["bicubic"]} for row in rows]
        speed = megapixels / sum(row["seconds"] for row in rows)
        return {**average(rows, drawn), "mpixel_per_second": speed}

    return {"mean": mean(pictures), "bicubic": mean([p["bicubic"] for p in pictures]),
            "pictures": pictures}


def average(rows, drawn=False):
    """Means of dicts of finite measures; of drawn ones also the worst LR-PSNR and that of the mean error."""
    result = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if drawn:
        worst = [row.get("lr_psnr_worst", row["lr_psnr"]) for row in rows]
        pooled = [10 ** (-row.get("lr_psnr_pooled", row["lr_psnr"]) / 10) for row in rows]
        result["lr_psnr_worst"] = min(worst)
        result["lr_psnr_pooled"] = float(-10 * np.log10(np.mean(pooled)))
    return result


def table(result):
    """The result as text, one line a picture and method."""
    columns = {key: column for key, column in COLUMNS.items() if key in result["bicubic"]}
    headings = "".join(f"{heading:>9}" for heading, _ in columns.values())
    lines = [f"{'picture':24} {'':8}{headings}{'MP/s':>9}"]
    for row in (*result["pictures"], {"name": "mean", **result["mean"], "bicubic": result["bicubic"]}):
        for label, values in (("network", row), ("bicubic", row["bicubic"])):
            speed = values.get("mpixel_per_second") or row["megapixels"] / values["seconds"]
            cells = "".join(f"{values[key]:>9{spec}}" for key, (_, spec) in columns.items())
            lines.append(f"{row['name'][:24] if label == 'network' else '':24} {label:8}{cells}{speed:9.2f}")
    if "squeezenet_distance" in columns:
        lines.append("* SqueezeNet distance, uncalibrated")
    return "\n".join(lines)


def figure(network, pairs, temperature=1.0, seed=0, size=96, ensemble=False):
    """Crops of LR, bicubic, SR and HR side by side, up to eight pictures: a matplotlib figure."""
    import matplotlib.pyplot as plt

    scale = resolve.scale_of(network)
    pairs = pairs[:8]
    sheet, axes = plt.subplots(len(pairs), 4, figsize=(10, 2.6 * len(pairs)), squeeze=False)
    for row, (name, lr, hr) in zip(axes, pairs, strict=True):
        sr = to_uint8(resolve.resolve(network, lr, temperature, seed, ensemble=ensemble))
        bicubic = imresize(lr, scale)
        crop = min(size, *hr.shape[:2]) // scale
        top, left = busiest(lr, crop)
        panels = [("LR", lr, None)] + [
            (label, picture, quality(hr, picture, scale)["psnr_y"] if label != "HR" else None)
            for label, picture in (("bicubic", bicubic), ("SR", sr), ("HR", hr))
        ]
        for axis, (label, picture, decibels) in zip(row, panels, strict=True):
            f = 1 if label == "LR" else scale
            window = picture[top * f : (top + crop) * f, left * f : (left + crop) * f]
            axis.imshow(window.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            title = f"{name} {label}" if decibels is None else f"{label} {decibels:.2f} dB"
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    sheet.tight_layout()
    return sheet


def busiest(lr, crop):
    """Top-left corner of the square of `crop` LR pixels with the strongest edges."""
    grey = np.pad(lr.mean(-1), 1, "edge")
    edges = np.hypot(grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2])
    rows = range(0, lr.shape[0] - crop + 1, max(1, crop // 4))
    columns = range(0, lr.shape[1] - crop + 1, max(1, crop // 4))
    return max(((y, x) for y in rows for x in columns),
               key=lambda at: edges[at[0] : at[0] + crop, at[1] : at[1] + crop].sum())


def likelihood(network, pictures, batch=50):
    """How probable a network finds `Thumbnails`.

    Returns:
        A dict of `bits` per dimension of A + B, `bits_a` and `bits_b` (not where B's gates
        are conditioned: B alone is then no model of HR); of `bits` alone for a network
        without a prior; or of `mse`, the mean square error, for a regression.
    """
    sums = {}
    for start in range(0, len(pictures), batch):
        lr, hr = (to_float(x[start : start + batch]) for x in (pictures.lr, pictures.hr))
        outputs = network.predict_on_batch([lr, hr] if len(network.inputs) == 2 else lr)
        if len(network.inputs) == 2:
            a, b = outputs
            logits = {"bits": a + b, "bits_a": a}
            if not is_conditioned(network.get_layer("prior")):
                logits["bits_b"] = b
            scores = {key: bits_per_dimension(hr, value) for key, value in logits.items()}
        elif draws(network):
            scores = {"bits": bits_per_dimension(hr, outputs)}
        else:
            scores = {"mse": np.mean(np.square(hr - outputs))}
        for key, value in scores.items():
            sums[key] = sums.get(key, 0) + float(value) * len(lr)
    return {key: value / len(pictures) for key, value in sums.items()}


def sample_quality(pictures, drawn):
    """Means of the measures over samples (K, N, H, W, C) uint8 of N `Thumbnails`.

    Returns:
        A dict of `psnr`, `ssim`, `ms_ssim`, `consistency` (see `metrics`), for several
        samples `diversity`, and for corners `one_digit`: the share with exactly one digit.
    """
    measures = {
        "psnr": lambda lr, hr, sr: finite_psnr(hr, sr),
        "ssim": lambda lr, hr, sr: ssim(hr, sr),
        "ms_ssim": lambda lr, hr, sr: ms_ssim(hr, sr),
    }
    corners = are_corners(pictures.hr, pictures.lr)
    if not corners:  # LR is not made from the whole of HR there
        measures["consistency"] = lambda lr, hr, sr: consistency(lr, sr)
    result = {
        key: float(np.mean([measure(lr, hr, sr) for samples in drawn
                            for lr, hr, sr in zip(pictures.lr, pictures.hr, samples, strict=True)]))
        for key, measure in measures.items()
    }
    if len(drawn) > 1:
        result["diversity"] = float(np.mean([diversity(drawn[:, i]) for i in range(drawn.shape[1])]))
    if corners:
        result["one_digit"] = float(np.mean([corner_count(samples, pictures.lr) == 1 for samples in drawn]))
    return result


def nearest_neighbours(pictures, known):
    """For each of `pictures`, the HR of the known picture whose LR is most alike: the paper's baseline."""
    alike = [np.square(known.lr.astype("float32") - lr).sum((1, 2, 3)).argmin() for lr in pictures.lr]
    return known.hr[alike]


def evaluate_thumbnails(network, pictures, known=None, samples=1, temperature=1.0, seed=0):
    """Measure a network of one size on `Thumbnails`.

    Args:
        known: The training pictures, for nearest neighbour.
        samples, temperature, seed: See `models.sampler.Sampler`.

    Returns:
        (result, drawn): a dict of `likelihood` and `methods`, each a dict of measures,
        and a dict of the pictures of each method, (K, N, H, W, C) uint8.
    """
    scale = resolve.scale_of(network)
    drawn = {"network": Sampler(network).sample(pictures.lr, temperature, seed, samples)}
    if not are_corners(pictures.hr, pictures.lr):  # nothing to interpolate there
        drawn["bicubic"] = np.stack([imresize(lr, scale) for lr in pictures.lr])[None]
    if known:
        drawn["nearest neighbour"] = nearest_neighbours(pictures, known)[None]
    methods = {name: sample_quality(pictures, pixels) for name, pixels in drawn.items()}
    return {"likelihood": likelihood(network, pictures), "methods": methods}, drawn


def thumbnail_table(result):
    """The result of `evaluate_thumbnails` as text."""
    names = {"bits": "A + B", "bits_a": "A", "bits_b": "B"}
    scores = result["likelihood"]
    first = ("bits per dimension: " + ", ".join(f"{names[key]} {value:.3f}" for key, value in scores.items())
             if "bits" in scores else f"mean square error: {scores['mse']:.5f}")
    keys = list(result["methods"]["network"])
    lines = [first, f"{'':18}" + "".join(f"{key:>12}" for key in keys)]
    for name, row in result["methods"].items():
        cells = [f"{row[key]:12.2e}" if key == "consistency" else f"{row[key]:12.3f}" if key in row
                 else " " * 12 for key in keys]
        lines.append(f"{name:18}" + "".join(cells))
    return "\n".join(lines)


def thumbnail_sheet(pictures, drawn, count=12, zoom=3):
    """A row for each picture: LR, every method's pictures, HR. (H, W, 3) uint8."""
    rows = []
    for i in range(min(count, len(pictures))):
        lr, hr = pictures.lr[i], pictures.hr[i]
        factor = len(hr) // len(lr)
        shown = [sample[i] for samples in drawn.values() for sample in samples[:6]]
        rows.append([lr.repeat(factor, 0).repeat(factor, 1), *shown, hr])
    return contact_sheet(rows, zoom)


def main(
    model: str,
    /,
    data: str = "photos",
    against: str = "",
    degradation: Literal["bicubic", "realworld"] = "bicubic",
    limit: int | None = None,
    json_file: Annotated[str | None, tyro.conf.arg(name="json")] = None,
    figure_file: Annotated[str | None, tyro.conf.arg(name="figure")] = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    blend: float = 0.0,
    blend_with: str = "",
    ensemble: bool = False,
    lpips: str = "",
    squeezenet: str = "",
    crop: Crop = "centre",
    held_out: int | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
):
    """Measure a trained network on pictures, beside bicubic interpolation.

    Args:
        model: The network, a .keras file.
        data: A folder of HR pictures or a name of the catalogue (its test split).
        against: What the network was trained on, a folder or a name (its training split): warn of
            every picture that looks like one of it, at another size or compression too.
        degradation: How LR is made: MATLAB's bicubic, or random blur kernels.
        limit: Measure only so many pictures.
        json_file: Write all figures to this file.
        figure_file: Draw crops of LR, bicubic, SR and HR to this file.
        precision: What the network computes in.
        blend: Interpolate the weights towards those of --blend-with: 0 is MODEL, 1 the other.
        blend_with: Another network of the same structure, such as srresnet for srgan.
        ensemble: Measure the mean over the picture's eight turns and flips, in eight times the time.
        lpips: Also measure LPIPS, with torchvision's ImageNet weights of AlexNet or VGG16 in this
            file (.pth); needs `pip install lpips`.
        squeezenet: Also measure the SqueezeNet distance, uncalibrated, with Keras's weights of
            SqueezeNet 1.1 without its top in this file (.h5).
        crop: Networks of one size: the square that is cut out of a picture.
        held_out: Networks of one size: measure one picture of a folder in so many, as training
            holds them out; the others are the known ones of nearest neighbour.
        samples: Networks that draw samples: how many for each picture.
        temperature: Networks that draw samples: what the noise is multiplied by, or the logits.
        seed: Networks that draw samples: of the samples.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit: must be at least 1, not {limit}")
    for path in filter(None, (json_file, figure_file)):
        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    if figure_file and Path(figure_file).suffix not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"--figure: {figure_file} must end in .png, .jpg, .pdf or .svg")
    distances = {}
    if lpips:  # first: the diversity score is by it, where there are both
        distances["lpips"] = LPIPS(lpips)
    if squeezenet:
        distances["squeezenet_distance"] = SqueezeNetDistance(squeezenet)
    network = resolve.load_blended(model, chosen_precision(precision), blend, blend_with)
    scale, size = resolve.scale_of(network), resolve.lr_size(network)
    if ensemble:
        resolve.check_ensemble(network)
    if size:
        check_sampling(samples, temperature, seed)
        if degradation != "bicubic":
            raise InputError(f"--degradation: {degradation} is not what networks of one size are for")
        if distances:
            raise InputError("--lpips, --squeezenet: pictures of networks of one size are too small")
        if against:
            raise InputError("--against: not for networks of one size")
        if held_out is not None and (held_out < 2 or not Path(data).is_dir()):
            raise InputError("--held-out: takes a number from 2 on, and --data a folder")
        known, examples = parts(data, held_out)
        arguments = {"channels": network.inputs[0].shape[-1], "crop": crop}
        pictures = Thumbnails(islice(examples, limit), size, scale, **arguments)
        known = Thumbnails(known, size, scale, **arguments) if held_out else None
        result, drawn = evaluate_thumbnails(network, pictures, known, samples, temperature, seed)
        print(thumbnail_table(result))
        if figure_file:
            write_picture(figure_file, thumbnail_sheet(pictures, drawn))
    else:
        if resolve.stochastic(network):
            check_sampling(samples, temperature, seed, noise=True)
        pairs = list(degraded(load(data, "test", limit), scale, degradation))
        if against:
            warn_of_likenesses([(name, hr) for name, _, hr in pairs],
                               ((example.name, example.hr) for example in load(against)))
        result = evaluate(network, pairs, distances, samples, temperature, seed, ensemble)
        print(table(result))
        if figure_file:
            figure(network, pairs, temperature, seed, ensemble=ensemble).savefig(figure_file, dpi=110)
    if json_file:
        Path(json_file).write_text(json.dumps(_finite(result), indent=1))


def _finite(result):
    """The result with None for what is not finite, as a broken network's measures may be: JSON has none."""
    if isinstance(result, dict):
        return {key: _finite(value) for key, value in result.items()}
    if isinstance(result, list):
        return [_finite(value) for value in result]
    return None if isinstance(result, float) and not np.isfinite(result) else result


def cli():
    command(main)


if __name__ == "__main__":
    cli()
