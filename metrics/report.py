"""Measuring networks of any size: on pictures, beside bicubic interpolation, as a table and a figure."""

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure

from superres.datasets.degradations import Triple, imresize
from superres.datasets.pictures import to_uint8
from superres.files import printable
from superres.metrics.image import quality
from superres.metrics.perceptual import diversity_score
from superres.models.images import ImageUpscaler

SHOWN = 8  # in a figure
# Heading and format of every measure, as far as it is measured.
COLUMNS = {"psnr_y": ("PSNR-Y", ".2f"), "ssim_y": ("SSIM-Y", ".4f"), "psnr_rgb": ("PSNR-RGB", ".2f"),
           "lr_psnr": ("LR-PSNR", ".2f"), "lr_psnr_worst": ("worst LR-PSNR", ".2f"),
           "lr_psnr_pooled": ("pooled LR-PSNR", ".2f"), "colour_error": ("colour error", ".2f"),
           "lpips": ("LPIPS", ".4f"), "squeezenet_distance": ("SqueezeNet*", ".4f"),
           "diversity_score": ("diversity", ".2f")}


def evaluate(network: ImageUpscaler, pairs: Iterable[Triple],
             distances: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] | None = None,
             samples: int | None = None, **options) -> dict:
    """Measure an `Upscaler` of images of any size on (name, lr, hr) triples, uint8.

    Args:
        distances: Dict of name -> function of (HR, SR), measured too, such as
            `metrics.perceptual.LPIPS`; the first also with a `with_map` where there are samples.
        samples: How many images a network with noise draws of each LR; None: one. Measures
            are means over them.
        options: `temperature`, `seed`, `ensemble`: see `models.images.ImageUpscaler.draw`.

    Returns:
        A dict of `mean` and `bicubic`, each holding what `metrics.quality` gives, the
        distances and `seconds` a picture, `mpixel_per_second` (of HR), and
        `pictures`: a list of the same with `name`, and the same under `bicubic`. Networks
        with noise have also `lr_psnr_worst`, `lr_psnr_pooled` (the PSNR of the mean squared
        error) and, where there are several samples and a distance, `diversity_score`, by the
        first distance.
    """
    scale, drawn = network.scale, network.draws_samples
    distances = distances or {}
    mapped = next(iter(distances), None) if drawn and (samples or 1) > 1 else None  # for the diversity score
    methods = {
        "network": lambda lr, tile: [*network.draw(lr, samples, tile=tile, **options)],
        "bicubic": lambda lr, tile: [imresize(lr, scale)],
    }
    pictures = []
    for name, lr, hr in pairs:
        row = {"name": name, "megapixels": hr.shape[0] * hr.shape[1] / 1e6}
        tile = network.tile_for(lr)
        for method, upscale in methods.items():
            if not pictures:  # compile, for one size and then for any
                upscale(lr, tile)
                upscale(lr[:8, :256], None)
            start = time.perf_counter()
            drawings = upscale(lr, tile)
            seconds = (time.perf_counter() - start) / len(drawings)
            scores, maps = [], []
            for sr in map(to_uint8, drawings):
                scores.append(quality(hr, sr, scale))
                for key, distance in distances.items():
                    if key == mapped:
                        scores[-1][key], differences = distance.with_map(hr, sr)
                        maps.append(differences)
                    else:
                        scores[-1][key] = distance(hr, sr)
            row[method] = {**average(scores, drawn), "seconds": seconds}
            if maps:
                row[method]["diversity_score"] = diversity_score(maps)
        pictures.append({**row.pop("network"), **row})
    megapixels = sum(p["megapixels"] for p in pictures)

    def mean(rows):
        rows = [{key: row[key] for key in pictures[0]["bicubic"]} for row in rows]
        speed = megapixels / sum(row["seconds"] for row in rows)
        return {**average(rows, drawn), "mpixel_per_second": speed}

    return {"mean": mean(pictures), "bicubic": mean([p["bicubic"] for p in pictures]),
            "pictures": pictures}


def average(rows: list[dict[str, float]], drawn: bool = False) -> dict[str, float]:
    """Means of dicts of finite measures; of drawn ones also the worst LR-PSNR and that of the mean error."""
    result = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if drawn:
        worst = [row.get("lr_psnr_worst", row["lr_psnr"]) for row in rows]
        pooled = [10 ** (-row.get("lr_psnr_pooled", row["lr_psnr"]) / 10) for row in rows]
        result["lr_psnr_worst"] = min(worst)
        result["lr_psnr_pooled"] = float(-10 * np.log10(np.mean(pooled)))
    return result


def table(result: dict) -> str:
    """The result as text, one line a picture and method."""
    columns = {key: column for key, column in COLUMNS.items() if key in result["bicubic"]}
    widths = {key: max(9, len(heading) + 2) for key, (heading, _) in columns.items()}
    headings = "".join(f"{heading:>{widths[key]}}" for key, (heading, _) in columns.items())
    lines = [f"{'picture':24} {'':8}{headings}{'MP/s':>9}"]
    for row in (*result["pictures"], {"name": "mean", **result["mean"], "bicubic": result["bicubic"]}):
        for label, values in (("network", row), ("bicubic", row["bicubic"])):
            speed = values.get("mpixel_per_second") or row["megapixels"] / values["seconds"]
            cells = "".join(f"{values[key]:>{widths[key]}{spec}}" for key, (_, spec) in columns.items())
            lines.append(f"{row['name'][:24] if label == 'network' else '':24} {label:8}{cells}{speed:9.2f}")
    if "squeezenet_distance" in columns:
        lines.append("* SqueezeNet distance, uncalibrated")
    return "\n".join(lines)


def figure(network: ImageUpscaler, pairs: list[Triple], size: int = 96, **options) -> Figure:
    """Crops of LR, bicubic, SR and HR side by side, of up to `SHOWN` pictures: a matplotlib figure."""
    import matplotlib.pyplot as plt

    scale = network.scale
    pairs = pairs[:SHOWN]
    sheet, axes = plt.subplots(len(pairs), 4, figsize=(10, 2.6 * len(pairs)), squeeze=False)
    for row, (name, lr, hr) in zip(axes, pairs, strict=True):
        sr = network.upscale(lr, tile=network.tile_for(lr), **options)
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
            axis.set_title(printable(title), fontsize=9, parse_math=False)
            axis.axis("off")
    sheet.tight_layout()
    return sheet


def busiest(lr: np.ndarray, crop: int) -> tuple[int, int]:
    """Top-left corner of the square of `crop` LR pixels with the strongest edges."""
    grey = np.pad(lr.mean(-1), 1, "edge")
    edges = np.hypot(grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2])
    rows = range(0, lr.shape[0] - crop + 1, max(1, crop // 4))
    columns = range(0, lr.shape[1] - crop + 1, max(1, crop // 4))
    return max(((y, x) for y in rows for x in columns),
               key=lambda at: edges[at[0] : at[0] + crop, at[1] : at[1] + crop].sum())
