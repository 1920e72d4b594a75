"""What judges a network after every epoch, and draws it."""

import math
from pathlib import Path

import numpy as np

from superres.datasets.degradations import Triple, imresize
from superres.datasets.pictures import contact_sheet
from superres.metrics.image import quality
from superres.models.images import ImageUpscaler

COLLAPSE_DB = 6  # sharp pictures may have 3 dB less than bicubic ones; ruined ones have far less


class Validation:
    """What judges the network after every epoch.

    Called with the network, it returns a dict of scores and a picture of samples. The
    best epoch is the one with the `better` (`max` or `min`) value of `key` in the log.
    """

    key, better = "epoch", staticmethod(max)  # the last one

    def failure(self, row: dict[str, float], before: list[dict[str, float]]) -> str | None:
        """What is wrong with a row of the log, given those before, and stops the training; None: nothing."""
        wrong = [key for key, value in row.items() if not math.isfinite(value)]
        return f"{wrong[0]} is {row[wrong[0]]} after epoch {row['epoch']}" if wrong else None

    def draw(self, folder: Path, rows: list[dict[str, float]]) -> None:
        """Draw into the run's folder, given all rows of the log, whatever shows its progress."""


class PictureValidation(Validation):
    """PSNR and SSIM of held-out pictures.

    What is not finite stops the run, and so does a collapse: PSNR 6 dB below bicubic interpolation's, or
    below the best before where that is worse; above 30 dB there is none.

    Args:
        pairs: List of (name, LR, HR), uint8.
    """

    key = "val_psnr_y"

    def __init__(self, pairs: list[Triple]) -> None:
        self.pairs = pairs
        scale = pairs[0][2].shape[0] // pairs[0][1].shape[0]
        self.bicubic = np.mean([quality(hr, imresize(lr, scale), scale)["psnr_y"] for _, lr, hr in pairs])

    def __call__(self, network: ImageUpscaler) -> tuple[dict[str, float], np.ndarray]:
        pictures = [network.upscale(lr, tile=network.tile_for(lr)) for _, lr, _ in self.pairs]
        scores = [quality(hr, sr, hr.shape[0] // lr.shape[0])
                  for (_, lr, hr), sr in zip(self.pairs, pictures, strict=True)]
        contrasts = [sr.std() / hr.std()
                     for (_, _, hr), sr in zip(self.pairs, pictures, strict=True) if hr.std() > 1]
        contrast = np.mean(contrasts or 1)
        if contrast < 0.1:
            print(f"ALARM: the output is almost constant ({contrast:.0%} of the contrast of HR): "
                  "check that LR and HR belong together")
        sheet = contact_sheet([panels(lr, sr, hr)
                               for (_, lr, hr), sr in zip(self.pairs[:4], pictures, strict=False)])
        return {f"val_{key}": float(np.mean([score[key] for score in scores]))
                for key in ("psnr_y", "ssim_y")}, sheet

    def failure(self, row: dict[str, float], before: list[dict[str, float]]) -> str | None:
        best = max((earlier["val_psnr_y"] for earlier in before), default=-np.inf)
        # Of flat pictures bicubic interpolation, and a network by chance, may be exact.
        least = min(self.bicubic - COLLAPSE_DB, best - COLLAPSE_DB, 30)
        if row["val_psnr_y"] < least:
            return (f"collapsed in epoch {row['epoch']}: PSNR {row['val_psnr_y']:.2f} dB after {best:.2f}, "
                    f"where bicubic interpolation has {self.bicubic:.2f}")
        return super().failure(row, before)


def panels(lr: np.ndarray, sr: np.ndarray, hr: np.ndarray, size: int = 192) -> list[np.ndarray]:
    """Central crops of LR (pixels enlarged), bicubic, SR and HR, uint8."""
    scale = hr.shape[0] // lr.shape[0]
    crop = min(size, *hr.shape[:2]) // scale * scale
    top, left = ((length - crop) // 2 // scale * scale for length in hr.shape[:2])
    nearest = lr.repeat(scale, 0).repeat(scale, 1)
    return [picture[top : top + crop, left : left + crop]
            for picture in (nearest, imresize(lr, scale), sr, hr)]
