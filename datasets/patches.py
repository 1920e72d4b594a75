"""Training batches: patches cut from LR and HR pictures at corresponding places."""

import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tensorflow as tf

from superres.datasets.batches import numbered_batches
from superres.datasets.catalogue import Example, as_needed
from superres.datasets.color import luma
from superres.datasets.degradations import (
    Degradation,
    blur_downsample,
    check_pair,
    imresize,
    margin,
    mirror,
    mod_crop,
    random_kernel,
    realworld,
)
from superres.datasets.likeness import warn_of_likenesses
from superres.datasets.pictures import to_float, to_uint8
from superres.datasets.shards import Cache, Stored
from superres.errors import InputError, check_choice, check_range

KERNEL_SIZE = 11
ALIGNMENT_SAMPLE = 32  # pictures: a shift is common to all


def split_pictures(sources: Collection[Path | str], val: int, test: int, seed: int,
                   train: int = 0) -> tuple[list[Example | Stored], list[Example], list[Example]]:
    """Read the pictures of all sources and part them at random: (train, val, test).

    Those of shards are left unread in train. Of a picture whose tiles are stored, those in val are not in
    test, and those in either not in train. A picture of val or test that looks like one of train is
    warned of.

    Args:
        sources: Folders, shards and names of the catalogue.
        val: How many to choose the best epoch by.
        test: How many for the table at the end.
        seed: Of the choice.
        train: How many to train on; 0: all that the others leave.

    Raises:
        InputError: if there are no sources or too few pictures, or a number of them is below what it can be.
    """
    check_range({"val_pictures": val}, least=1)
    check_range({"train_pictures": train, "test_pictures": test}, least=0)
    if not sources:
        raise InputError("data: name folders of pictures, shards, or names of the catalogue")
    examples = list(as_needed(sources))
    wanted = train or max(1, len(examples) - val - test)
    if wanted + val + test > len(examples):
        raise InputError(f"data: {len(examples)} pictures are too few for {wanted} to train, {val} to "
                         f"validate and {test} to test on")
    order = np.random.default_rng(seed).permutation(len(examples))
    first, held_out, more = np.split(order, [wanted, wanted + val])

    def others(places, used):
        """Those that show none of the used pictures."""
        names = {examples[i].picture for i in used if isinstance(examples[i], Stored)}
        return [i for i in places if i not in used
                and not (isinstance(examples[i], Stored) and examples[i].picture in names)]

    # Where tiles of a picture are not to be parted, there may be none left behind those before.
    tested = others([*more, *first[::-1]], {*held_out})[:test]
    trained = others([*first, *more], {*held_out, *tested})[:wanted]
    if len(tested) < test or len(trained) < (train or 1):
        raise InputError("data: the tiles of the pictures that are held out leave too few: "
                         f"{len(trained)} to train and {len(tested)} to test on")
    train, val, test = ([examples[i] for i in part] for part in (trained, held_out, tested))
    warn_of_likenesses(looks(val + test), looks(train))
    return train, *([example.read() for example in part] for part in (val, test))


def looks(examples: Iterable[Example | Stored]) -> Iterator[tuple[str, np.ndarray]]:
    """What `warn_of_likenesses` takes, (name, picture); of tiles each picture once."""
    seen = set()
    for example in examples:
        if not isinstance(example, Stored):
            yield example.name, example.hr
        elif example.picture not in seen:
            seen.add(example.picture)
            yield example.looks()


class Patches:
    """Deterministic random batches of corresponding patches.

    Batch number n is a function of (pictures, seed, n) alone, so a stopped training
    goes on with exactly the batches it has not seen. Patches are either new in every
    batch, or a fixed set (`fixed`) that is walked through epoch by epoch, each time in
    another order: `len(pictures) * fixed / batch` batches take every patch once.

    Every picture is decoded and degraded once and kept in memory as uint8, together
    with its smaller versions where a pyramid network needs them. Those of shards are
    decoded and degraded when a batch wants them, and the last ones kept.

    Args:
        examples: Iterable of `datasets.catalogue.Example` and `datasets.shards.Stored`.
        scale: 2, 4 or 8.
        patch: Height and width of the LR patch.
        batch: Patches a batch.
        channels: 1 gives luminance (BT.601, 16..235 over 255), 3 RGB.
        degradation: `"bicubic"`, `"realworld"` (one random kernel a picture, as in
            DIV2KRK) or `"realworld-fresh"` (a new random kernel for every patch).
            Examples that bring their own LR picture keep it, and take `"bicubic"` alone.
        pyramid: Also give the HR picture at every power of two below `scale`.
        augment: Flip and turn patches at random, LR and HR alike.
        fixed: Patches drawn once of each picture, flipped, turned and degraded once;
            0: new ones in every batch.
        seed: Of everything random.
        cache: How many MiB of pictures of shards are kept; no batch depends on it.

    Raises:
        InputError: when no picture is large enough for a patch, when an example's LR is
            not the picture of its HR, or lies shifted against it, or when fixed patches
            do not make whole batches.
    """

    def __init__(self, examples: Iterable[Example], scale: int, patch: int, batch: int, *,
                 channels: Literal[1, 3] = 3,
                 degradation: Degradation = "bicubic",
                 pyramid: bool = False, augment: bool = True, fixed: int = 0, seed: int = 0,
                 cache: int = 2048) -> None:
        check_choice("degradation", degradation, *get_args(Degradation))
        self.scale, self.patch, self.batch, self.channels = scale, patch, batch, channels
        self.augment, self.fixed, self.seed = augment, fixed, seed
        self.degradation, self.fresh = degradation, degradation == "realworld-fresh"
        steps = int(np.log2(scale))
        self.factors = [2**i for i in range(1, steps + 1)] if pyramid else [scale]
        self.margin = margin(KERNEL_SIZE, steps) if self.fresh else 0
        self.pictures, self.cache = [], Cache(cache * 2**20)
        given, small = [], 0
        for index, example in enumerate(examples):
            if min(example.size) // scale < patch:
                small += 1
                continue
            if isinstance(example, Stored):
                self.pictures.append((index, example))
                if len(self.pictures) > ALIGNMENT_SAMPLE:
                    continue
                example = example.read()
                picture = self._prepared(index, example)
            else:
                picture = self._prepared(index, example)
                self.pictures.append(picture)
            if example.paired and min(picture[0].shape[:2]) >= 32:
                given.append((picture[0], picture[-1]))
        if given:
            check_alignment(given[:ALIGNMENT_SAMPLE], scale)
        if small and self.pictures:
            warnings.warn(f"{small} pictures are smaller than a patch of {patch * scale} pixels: left out",
                          stacklevel=2)
        if not self.pictures:
            raise InputError(
                f"no picture is large enough: patches need {patch * scale} x {patch * scale} pixels "
                f"({small} smaller pictures found)"
            )
        if self.total % batch:
            raise InputError(f"patches: {self.total} do not make whole batches of {batch}")

    def _prepared(self, index, example):
        """(lr, *targets) of picture number `index`, (H, W, 3) uint8; an LR of None is made for each patch."""
        hr = mod_crop(_as_channels(example.hr, 3), self.scale)
        if example.paired:
            if self.degradation != "bicubic":
                raise InputError(f"degradation: {example.name} comes with an LR of its own")
            lr = _as_channels(example.lr, 3)
            check_pair(lr, hr, self.scale, example.name)
        elif self.fresh:
            lr = None
        elif self.degradation == "realworld":
            # Not a kernel that pictures are measured with, whatever the seed
            lr = realworld(hr, self.scale, np.random.default_rng((self.seed, index, 4)))
        else:
            lr = imresize(hr, 1 / self.scale)
        return lr, *(hr if f == self.scale else imresize(hr, f / self.scale) for f in self.factors)

    def _picture(self, number):
        picture = self.pictures[number]
        if isinstance(picture[1], Stored):
            index, example = picture
            return self.cache.get(number, lambda: self._prepared(index, example.read()))
        return picture

    @property
    def total(self) -> int:
        """How many fixed patches there are."""
        return len(self.pictures) * self.fixed

    def batch_number(self, number: int,
                     rows: slice = slice(None)) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Batch `number`: (lr, [target, ...]), float32 in [0, 1], one target a factor.

        Args:
            rows: Of the batch; only these are made.
        """
        if self.fixed:
            # A patch is a function of the seed and its own number: no place need be kept.
            patches = [self._cut(np.random.default_rng((self.seed, k, 1)), k // self.fixed)
                       for k in self._numbers(number)[rows]]
        else:
            # A generator for each: SeedSequence takes (a, b) for (a, b, 0, 0), so the last number is our own.
            rngs = [np.random.default_rng((self.seed, number, i, 3)) for i in range(self.batch)[rows]]
            patches = [self._cut(rng, rng.integers(len(self.pictures))) for rng in rngs]
        lr, *targets = (np.stack(arrays) for arrays in zip(*patches, strict=True))
        return lr, tuple(targets)

    def _numbers(self, number):
        """Which of the fixed patches batch `number` holds."""
        epoch, step = divmod(number, self.total // self.batch)
        order = np.random.default_rng((self.seed, epoch, 2)).permutation(self.total)
        return order[step * self.batch : (step + 1) * self.batch]

    def _cut(self, rng, index):
        lr, *targets = self._picture(index)
        height, width = (size // self.scale for size in targets[-1].shape[:2])
        y = rng.integers(height - self.patch + 1)
        x = rng.integers(width - self.patch + 1)
        cuts = [_window(target, y, x, self.patch, f)
                for f, target in zip(self.factors, targets, strict=True)]
        if lr is None:
            cuts.insert(0, self._degrade(rng, targets[-1], y, x))
        else:
            cuts.insert(0, _window(lr, y, x, self.patch, 1))
        if self.augment:
            turns, flip = rng.integers(4), rng.integers(2)
            cuts = [np.rot90(cut[:, ::-1] if flip else cut, turns) for cut in cuts]
        cuts = [to_float(cut) for cut in cuts]
        return [luma(cut) for cut in cuts] if self.channels == 1 else cuts

    def _degrade(self, rng, hr, y, x):
        """The LR patch at (y, x) under a kernel of its own, rounded to 8 bits."""
        top, left, size = y * self.scale, x * self.scale, self.patch * self.scale
        rows, columns = (
            mirror(np.arange(start - self.margin, start + size + self.margin), length)
            for start, length in zip((top, left), hr.shape, strict=False)
        )
        window = to_float(hr[rows[:, None], columns])
        steps = int(np.log2(self.scale))
        return to_uint8(blur_downsample(window, random_kernel(rng, KERNEL_SIZE), steps, pad=False))

    def dataset(self, start: int = 0, rows: slice = slice(None)) -> tf.data.Dataset:
        """An endless `tf.data.Dataset` of batches, or of some rows of each, from batch number `start` on."""
        return numbered_batches(lambda number: self.batch_number(number, rows), start)


class NoisyPatches(Patches):
    """`Patches` with seeds for the noise: batches ((lr, seeds (B, 2) int32), (hr,))."""

    def batch_number(
        self, number: int, rows: slice = slice(None),
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]:
        lr, targets = super().batch_number(number, rows)
        seeds = np.random.default_rng((self.seed, number, 1)).integers(2**31, size=(self.batch, 2))
        return (lr, seeds[rows].astype("int32")), targets


def check_alignment(pairs: Iterable[tuple[np.ndarray, np.ndarray]], scale: int,
                    tolerance: float = 0.05) -> None:
    """Raise InputError if the LRs lie more than `tolerance` LR pixels off their HRs.

    A single small picture lets one measure little better than this; the usual mistakes
    are half an HR pixel and more.
    """
    dy, dx = shift_between(pairs, scale)
    if max(abs(dy), abs(dx)) > tolerance * scale:
        raise InputError(
            f"LR pictures are shifted against HR by ({dy:+.2f}, {dx:+.2f}) HR pixels; "
            f"at most {tolerance * scale:.2f} is accepted"
        )


def shift_between(pairs: Iterable[tuple[np.ndarray, np.ndarray]], scale: int) -> tuple[float, float]:
    """The common shift (rows, columns) in HR pixels of LR pictures against their HRs.

    By phase correlation: the phase of the cross spectrum falls linearly with
    frequency, with the shift as its slope. The slope is fitted over the lower
    frequencies of all pictures, weighted by their power, which resolves hundredths of
    a pixel and is blind to blur. A shift of more than a few pixels is out of its
    reach: `check_pair` finds those.

    Args:
        pairs: List of (lr, hr), uint8.
        scale: HR's size over LR's.
    """
    normal, right = np.zeros((2, 2)), np.zeros(2)
    for lr, hr in pairs:
        low, high = (luma(to_float(x)).squeeze(-1) for x in (lr, imresize(hr, 1 / scale)))
        window = np.outer(*(np.hanning(size + 2)[1:-1] for size in low.shape))
        low, high = ((x - (x * window).sum() / window.sum()) * window for x in (low, high))
        cross = np.fft.fft2(low) * np.conj(np.fft.fft2(high))
        grid = np.meshgrid(*(np.fft.fftfreq(size) for size in low.shape), indexing="ij")
        power = np.abs(cross) * (np.maximum(*np.abs(grid)) < 0.1)
        slopes = 2 * np.pi * np.stack(grid, axis=-1)
        normal += np.einsum("yx,yxi,yxj->ij", power, slopes, slopes)
        right += np.einsum("yx,yxi->i", power * np.angle(cross), slopes)
    if np.linalg.cond(normal) > 1e8:  # flat, or striped: no shift to be seen
        return 0.0, 0.0
    return tuple(float(shift) for shift in -scale * np.linalg.solve(normal, right))


def _window(picture, y, x, patch, factor):
    return picture[y * factor : (y + patch) * factor, x * factor : (x + patch) * factor]


def _as_channels(picture, channels):
    return np.repeat(picture, channels, axis=-1) if picture.shape[-1] == 1 else picture
