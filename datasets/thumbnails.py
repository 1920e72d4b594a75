"""Pairs of whole small pictures, for networks that learn one kind of picture at one size."""

import warnings
from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np

from superres.datasets.catalogue import Example
from superres.datasets.degradations import imresize
from superres.datasets.pictures import to_float
from superres.datasets.shards import Cache, Stored
from superres.errors import InputError, check_choice

if TYPE_CHECKING:
    import tensorflow as tf

Crop = Literal["centre", "face"]


def square(picture: np.ndarray, crop: Crop = "centre") -> np.ndarray:
    """Cut a square out of (H, W, C).

    Args:
        crop: `"centre"`: the largest square in the middle. `"face"`: the face of a picture
            of CelebA's aligned set (178 x 218, or scaled): 128 / 178 of the width,
            centred at 114 / 218 of the height.
    """
    height, width = picture.shape[:2]
    side, middle = side_of((height, width), crop), height * (114 / 218 if crop == "face" else 1 / 2)
    top = min(max(0, round(middle - side / 2)), height - side)
    left = (width - side) // 2
    return picture[top : top + side, left : left + side]


def side_of(size: tuple[int, int], crop: Crop = "centre") -> int:
    """The side of the `square` of a picture of (H, W)."""
    check_choice("crop", crop, *get_args(Crop))
    height, width = size
    return min(height, round(width * 128 / 178)) if crop == "face" else min(height, width)


def thumbnail(picture: np.ndarray, size: int, channels: Literal[1, 3] = 3,
              crop: Crop = "centre") -> np.ndarray:
    """The square of (H, W, C) uint8, shrunk or enlarged: (size, size, channels) uint8."""
    picture = square(_as_channels(picture, channels), crop)
    return picture if len(picture) == size else imresize(picture, size / len(picture))


class Thumbnails:
    """Deterministic random batches of (LR, HR) pairs of one size, all kept in memory but those of shards.

    HR is a picture's square, shrunk by MATLAB's bicubic; LR is made from HR the same
    way, so that LR is a function of HR. Examples that bring their own LR keep both as
    they are. Batch number n is a function of (pictures, seed, n) alone.

    Args:
        examples: Iterable of `datasets.catalogue.Example`, and after them `datasets.shards.Stored`, which
            are read when a batch wants them.
        size: Height and width of LR.
        scale: HR's size over LR's.
        channels: 3 for RGB, 1 for grey.
        crop: See `square`.
        batch: Pairs a batch.
        flip: Mirror pairs left to right at random.
        seed: Of the choice of pairs.
        corners: Whether HR is LR in a corner (`catalogue.has_corners`), and is measured as such.
        cache: How many MiB of pairs of shards are kept; no batch depends on it.

    Attributes:
        names: List of str.
        lr: (N, size, size, channels) uint8, of the pairs that are in memory.
        hr: (N, scale * size, scale * size, channels) uint8, likewise.
        stored: List of the others, as they stand in shards.

    Raises:
        InputError: where a given pair has another size, or no picture is large enough.
    """

    def __init__(self, examples: Iterable[Example], size: int, scale: int, *, channels: Literal[1, 3] = 3,
                 crop: Crop = "centre", batch: int = 32, flip: bool = False, seed: int = 0,
                 corners: bool = False, cache: int = 2048) -> None:
        self.size, self.scale, self.channels, self.crop = size, scale, channels, crop
        self.batch, self.flip, self.seed, self.corners = batch, flip, seed, corners
        self.names, self.stored, self.cache = [], [], Cache(cache * 2**20)
        pairs, small = [], 0
        for example in examples:
            if not example.paired and side_of(example.size, crop) < size * scale:
                small += 1
                continue
            self.names.append(example.name)
            if isinstance(example, Stored):
                if example.paired and example.size != (size * scale, size * scale):
                    self._made(example.read())  # which refuses it now, and not in the middle of a run
                self.stored.append(example)
            else:
                pairs.append(self._made(example))
        if not self.names:
            raise InputError(f"no picture is large enough: HR needs {size * scale} x {size * scale} pixels "
                             f"({small} smaller pictures found)")
        if small:
            warnings.warn(f"{small} pictures are smaller than HR's {size * scale} pixels: left out",
                          stacklevel=2)
        self.lr, self.hr = map(np.stack, zip(*pairs, strict=True)) if pairs else ((), ())

    def _made(self, example):
        """(LR, HR) of an example."""
        side = self.size * self.scale
        if not example.paired:
            hr = thumbnail(example.hr, side, self.channels, self.crop)
            lr = imresize(hr, 1 / self.scale)
        else:
            hr, lr = (_as_channels(picture, self.channels) for picture in (example.hr, example.lr))
        if lr.shape[:2] != (self.size, self.size) or hr.shape[:2] != (side, side):
            raise InputError(
                f"{example.name}: expected LR of {self.size} x {self.size} and HR of {side} x "
                f"{side}, found {lr.shape[1]} x {lr.shape[0]} and {hr.shape[1]} x {hr.shape[0]}"
            )
        return lr, hr

    def _pair(self, index):
        if index < len(self.lr):
            return self.lr[index], self.hr[index]
        example = self.stored[index - len(self.lr)]
        return self.cache.get(index, lambda: self._made(example.read()))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, some: slice) -> Self:
        """The pairs of a slice, as `Thumbnails`, of which none stands in shards."""
        part = copy(self)
        part.names, part.lr, part.hr = self.names[some], self.lr[some], self.hr[some]
        return part

    def batch_number(self, number: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Batch `number`: (lr, hr), float32 in [0, 1].

        Args:
            rows: Of the batch; only these are made.
        """
        rng = np.random.default_rng((self.seed, number))
        chosen = rng.integers(len(self), size=self.batch)[rows]
        mirrored = (self.flip * rng.integers(2, size=self.batch))[rows]
        pairs = zip(*map(self._pair, chosen), strict=True)
        return tuple(
            to_float(np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)) for x in map(np.stack, pairs)
        )

    def dataset(self, start: int = 0, rows: slice = slice(None)) -> "tf.data.Dataset":
        """An endless `tf.data.Dataset` of batches, or of some rows of each, from batch number `start` on."""
        from superres.datasets.batches import numbered_batches  # here: the rest does without TensorFlow

        return numbered_batches(lambda number: self.batch_number(number, rows), start)


def _as_channels(picture, channels):
    if picture.shape[-1] == channels:
        return picture
    if channels == 3:
        return np.repeat(picture, 3, -1)
    # ITU-R 601-2, as Pillow's conversion to grey
    return np.floor(picture @ np.array([[0.299], [0.587], [0.114]]) + 0.5).astype("uint8")
