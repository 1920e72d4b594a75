"""Measure a trained network on pictures, beside bicubic interpolation.

    python evaluate.py weights/lapsrn-x2.keras --data photos
    python evaluate.py weights/lapsrn-x4.keras --data FOLDER --json result.json --figure result.png

HR pictures are cropped to a multiple of the scale; LR is made from them, rounded to 8
bits; SR is rounded to 8 bits before it is measured. PSNR and SSIM leave out a border of
`scale` pixels. Y is BT.601's; grey pictures are measured as they are.
"""

from commands import command  # first: it quietens TensorFlow

# isort: split
import json
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from datasets.catalogue import load
from datasets.degradations import degraded, imresize
from datasets.errors import InputError
from datasets.pictures import to_uint8
from metrics import quality
from models import resolve

KEYS = ("psnr_y", "ssim_y", "psnr_rgb", "lr_psnr", "seconds")


def evaluate(network, pairs):
    """Measure a network on (name, lr, hr) triples, uint8.

    Returns:
        A dict of `mean` and `bicubic`, each holding `psnr_y`, `ssim_y`, `psnr_rgb`,
        `lr_psnr` (dB) and `seconds` a picture, `mpixel_per_second` (of HR), and
        `pictures`: a list of the same with `name`, and the same under `bicubic`.
    """
    scale = resolve.scale_of(network)
    methods = {
        "network": lambda lr: resolve.resolve(network, lr),
        "bicubic": lambda lr: imresize(lr, scale),
    }
    pictures = []
    for name, lr, hr in pairs:
        row = {"name": name, "megapixels": hr.shape[0] * hr.shape[1] / 1e6}
        for method, upscale in methods.items():
            if not pictures:  # compile, for one size and then for any
                upscale(lr)
                upscale(lr[:8])
            start = time.perf_counter()
            sr = upscale(lr)
            seconds = time.perf_counter() - start
            row[method] = {**quality(hr, to_uint8(sr), scale), "seconds": seconds}
        pictures.append({**row.pop("network"), **row})
    megapixels = sum(p["megapixels"] for p in pictures)

    def mean(rows):
        means = {key: float(np.mean([row[key] for row in rows])) for key in KEYS}
        return {**means, "mpixel_per_second": megapixels / sum(row["seconds"] for row in rows)}

    return {"mean": mean(pictures), "bicubic": mean([p["bicubic"] for p in pictures]),
            "pictures": pictures}


def table(result):
    """The result as text, one line a picture and method."""
    lines = [f"{'picture':24} {'':8} {'PSNR-Y':>7} {'SSIM-Y':>7} {'PSNR-RGB':>8} {'LR-PSNR':>7} {'MP/s':>7}"]
    for row in (*result["pictures"], {"name": "mean", **result["mean"], "bicubic": result["bicubic"]}):
        for label, values in (("network", row), ("bicubic", row["bicubic"])):
            speed = values.get("mpixel_per_second") or row["megapixels"] / values["seconds"]
            lines.append(
                f"{row['name'][:24] if label == 'network' else '':24} {label:8} {values['psnr_y']:7.2f} "
                f"{values['ssim_y']:7.4f} {values['psnr_rgb']:8.2f} {values['lr_psnr']:7.2f} {speed:7.2f}"
            )
    return "\n".join(lines)


def figure(network, pairs, size=96):
    """Crops of LR, bicubic, SR and HR side by side, up to eight pictures: a matplotlib figure."""
    import matplotlib.pyplot as plt

    scale = resolve.scale_of(network)
    pairs = pairs[:8]
    sheet, axes = plt.subplots(len(pairs), 4, figsize=(10, 2.6 * len(pairs)), squeeze=False)
    for row, (name, lr, hr) in zip(axes, pairs, strict=True):
        sr = to_uint8(resolve.resolve(network, lr))
        bicubic = imresize(lr, scale)
        crop = min(size, *hr.shape[:2]) // scale
        top, left = busiest(lr, crop)
        panels = [("LR", lr, None)] + [
            (label, picture, quality(hr, picture, scale)["psnr_y"] if label != "HR" else None)
            for label, picture in (("bicubic", bicubic), ("SR", sr), ("HR", hr))
        ]
        for axis, (label, picture, psnr) in zip(row, panels, strict=True):
            f = 1 if label == "LR" else scale
            window = picture[top * f : (top + crop) * f, left * f : (left + crop) * f]
            axis.imshow(window.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(f"{name} {label}" if psnr is None else f"{label} {psnr:.2f} dB", fontsize=9)
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


def main(
    model: str,
    /,
    data: str = "photos",
    degradation: Literal["bicubic", "realworld"] = "bicubic",
    limit: int | None = None,
    json_file: Annotated[str | None, tyro.conf.arg(name="json")] = None,
    figure_file: Annotated[str | None, tyro.conf.arg(name="figure")] = None,
    precision: Literal["float32", "bfloat16"] = "float32",
):
    """Measure a trained network on pictures, beside bicubic interpolation.

    Args:
        model: The network, a .keras file.
        data: A folder of HR pictures or a name of the catalogue (its test split).
        degradation: How LR is made: MATLAB's bicubic, or random blur kernels.
        limit: Measure only so many pictures.
        json_file: Write all figures to this file.
        figure_file: Draw crops of LR, bicubic, SR and HR to this file.
        precision: What the network computes in.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit: must be at least 1, not {limit}")
    for path in filter(None, (json_file, figure_file)):
        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    if figure_file and Path(figure_file).suffix not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"--figure: {figure_file} must end in .png, .jpg, .pdf or .svg")
    network = resolve.load(model, precision)
    scale = resolve.scale_of(network)
    pairs = list(degraded(load(data, "test", limit), scale, degradation))
    result = evaluate(network, pairs)
    print(table(result))
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=1))
    if figure_file:
        figure(network, pairs).savefig(figure_file, dpi=110)


if __name__ == "__main__":
    command(main)
