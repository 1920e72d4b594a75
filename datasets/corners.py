"""The toy proof of pixel recursive super resolution: a digit in one of two corners.

HR is black with a digit in its top left or its bottom right corner; LR is the digit alone,
and either corner is as likely. A network that regresses or draws each pixel by itself can
only show half of the digit in both corners; one whose pixels depend on one another can
show one digit.

Source: Dahl, Norouzi and Shlens, "Pixel Recursive Super Resolution", arXiv 1702.00783, the
section on MNIST corners.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Corner = Literal["top_left", "bottom_right"]
CORNERS: tuple[Corner, ...] = ("top_left", "bottom_right")
TRAINING = 1500  # of scikit-learn's 1797 digits


def scanned_digits(split: Literal["train", "test"]) -> Iterator[tuple[int, np.ndarray]]:
    """The handwritten digits that scikit-learn installs: yields (number, (8, 8, 1) uint8).

    Source: "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    images = np.floor(load_digits().images[..., None] * 255 / 16 + 0.5).astype("uint8")
    order = np.random.default_rng(0).permutation(len(images))  # the file is not shuffled
    for number in order[:TRAINING] if split == "train" else order[TRAINING:]:
        yield number, images[number]


def in_corner(digit: np.ndarray, corner: Corner) -> np.ndarray:
    """The digit, (H, W, C), in a corner of a black picture, (2H, 2W, C)."""
    height, width, channels = digit.shape
    picture = np.zeros((2 * height, 2 * width, channels), digit.dtype)
    corner_of(picture, corner)[:] = digit
    return picture


def corner_of(pictures: np.ndarray, corner: Corner) -> np.ndarray:
    """View of a corner, (..., H, W, C), of pictures (..., 2H, 2W, C)."""
    height, width = (size // 2 for size in pictures.shape[-3:-1])
    return pictures[..., :height, :width, :] if corner == "top_left" else pictures[..., height:, width:, :]


def corner_count(pictures: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """How many of the two corners of each picture hold a digit: 0, 1 or 2.

    A corner holds a digit if its ink (the sum of its values) is more than a fifth of the ink
    of the digit asked for. The proof is the share of samples whose count is exactly 1.

    Half of the ink in both corners counts as 2, whether both digits are faint (regression)
    or lack every other pixel (each pixel drawn by itself). The latter leaves 0.50 +- 0.10 of
    the ink of an 8 x 8 digit: a fifth is three standard deviations below, and 0.2 % of such
    samples are taken for one digit (at a quarter, 1 %).

    The rule does not ask whether the digit is drawn well; nor does it look at the other two
    corners, black in all training pictures.

    Args:
        pictures: (N, 2H, 2W, 1), uint8 or float, black is 0.
        digits: (N, H, W, 1), their LR, of the same range.

    Returns:
        (N,) int.
    """
    enough = _ink(digits) / 5
    return sum((_ink(corner_of(pictures, corner)) > enough).astype(int) for corner in CORNERS)


def _ink(pictures):
    return np.sum(pictures, axis=(1, 2, 3), dtype="float64")
