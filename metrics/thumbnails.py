"""Measuring networks of one size: how probable they find pictures, and how good their samples are."""

import numpy as np

from superres.datasets.corners import corner_count
from superres.datasets.degradations import imresize
from superres.datasets.pictures import contact_sheet, to_float
from superres.datasets.thumbnails import Thumbnails
from superres.losses import bits_per_dimension
from superres.metrics.image import consistency, diversity, finite_psnr, ms_ssim, ssim
from superres.models.pixel_recursive import is_conditioned
from superres.models.sampler import networks_of
from superres.models.upscaler import ThumbnailUpscaler


def likelihood(network: ThumbnailUpscaler, pictures: Thumbnails, batch: int = 50) -> dict[str, float]:
    """How probable a network finds `Thumbnails`.

    Returns:
        A dict of `bits` per dimension of A + B, `bits_a` and `bits_b` (not where B's gates
        are conditioned: B alone is then no model of HR); of `bits` alone for a network
        without a prior; or of `mse`, the mean square error, for a regression.
    """
    sums, (_, prior) = {}, networks_of(network)
    for start in range(0, len(pictures), batch):
        lr, hr = (to_float(x[start : start + batch]) for x in (pictures.lr, pictures.hr))
        outputs = network.predict_on_batch([lr, hr] if prior else lr)
        if prior:
            a, b = outputs
            logits = {"bits": a + b, "bits_a": a}
            if not is_conditioned(prior):
                logits["bits_b"] = b
            scores = {key: bits_per_dimension(hr, value) for key, value in logits.items()}
        elif network.draws_samples:
            scores = {"bits": bits_per_dimension(hr, outputs)}
        else:
            scores = {"mse": np.mean(np.square(hr - outputs))}
        for key, value in scores.items():
            sums[key] = sums.get(key, 0) + float(value) * len(lr)
    return {key: value / len(pictures) for key, value in sums.items()}


def sample_quality(pictures: Thumbnails, drawn: np.ndarray) -> dict[str, float]:
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
    if not pictures.corners:  # LR is not made from the whole of HR there
        measures["consistency"] = lambda lr, hr, sr: consistency(lr, sr)
    result = {
        key: float(np.mean([measure(lr, hr, sr) for samples in drawn
                            for lr, hr, sr in zip(pictures.lr, pictures.hr, samples, strict=True)]))
        for key, measure in measures.items()
    }
    if len(drawn) > 1:
        result["diversity"] = float(np.mean([diversity(drawn[:, i]) for i in range(drawn.shape[1])]))
    if pictures.corners:
        result["one_digit"] = float(np.mean([corner_count(samples, pictures.lr) == 1 for samples in drawn]))
    return result


def nearest_neighbours(pictures: Thumbnails, known: Thumbnails) -> np.ndarray:
    """For each of `pictures`, the HR of the known picture whose LR is most alike: the paper's baseline."""
    alike = [np.square(known.lr.astype("float32") - lr).sum((1, 2, 3)).argmin() for lr in pictures.lr]
    return known.hr[alike]


def evaluate_thumbnails(network: ThumbnailUpscaler, pictures: Thumbnails, known: Thumbnails | None = None,
                        samples: int | None = None, temperature: float | None = None,
                        seed: int | None = None) -> tuple[dict, dict[str, np.ndarray]]:
    """Measure a `ThumbnailUpscaler` on `Thumbnails`.

    Args:
        known: The training pictures, for nearest neighbour.
        samples, temperature, seed: See `models.images.ImageUpscaler.draw`.

    Returns:
        (result, drawn): a dict of `likelihood` and `methods`, each a dict of measures,
        and a dict of the pictures of each method, (K, N, H, W, C) uint8.
    """
    network.check(samples, temperature, seed)
    temperature = 1.0 if temperature is None else temperature
    drawn = {"network": network.sample(pictures.lr, temperature, seed or 0, samples or 1)}
    if not pictures.corners:  # nothing to interpolate there
        drawn["bicubic"] = np.stack([imresize(lr, network.scale) for lr in pictures.lr])[None]
    if known:
        drawn["nearest neighbour"] = nearest_neighbours(pictures, known)[None]
    methods = {name: sample_quality(pictures, pixels) for name, pixels in drawn.items()}
    return {"likelihood": likelihood(network, pictures), "methods": methods}, drawn


def thumbnail_table(result: dict) -> str:
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


def thumbnail_sheet(pictures: Thumbnails, drawn: dict[str, np.ndarray], count: int = 12,
                    zoom: int = 3) -> np.ndarray:
    """A row for each picture: LR, every method's pictures, HR. (H, W, 3) uint8."""
    rows = []
    for i in range(min(count, len(pictures))):
        lr, hr = pictures.lr[i], pictures.hr[i]
        factor = len(hr) // len(lr)
        shown = [sample[i] for samples in drawn.values() for sample in samples[:6]]
        rows.append([lr.repeat(factor, 0).repeat(factor, 1), *shown, hr])
    return contact_sheet(rows, zoom)
