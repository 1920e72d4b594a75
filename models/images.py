"""From an LR image to an SR image, whatever computes the network: colours, alpha, small images, tiles.

`models.upscaler` has networks in Keras, `models.engine` those that another library computes. This
module needs neither.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, overload

import numpy as np
from PIL import Image

from superres.datasets.color import grey_to_y, rgb_to_ycbcr, y_to_grey, ycbcr_to_rgb
from superres.datasets.degradations import imresize, imresize_clipped
from superres.datasets.pictures import Picture, as_image, decoded, fill_invisible, to_float, to_uint8
from superres.datasets.thumbnails import Crop
from superres.errors import InputError, check_range

# Smaller images are continued symmetrically, by so many pixels, before they enter a network.
SMALLEST = 8
# Height and width of the squares, in LR pixels, that larger images are computed in, unless told.
TILE = 256

# What is upscaled; SR is of the same kind.
AnyImage = TypeVar("AnyImage", np.ndarray, Image.Image, Picture)


class ImageUpscaler:
    """What upscales images by a network from LR to SR, which `_run` calls.

    A network of one channel is one of luminance (BT.601's Y, 16..235 over 255); grey images and
    the luminance of coloured ones are brought to that range, and chrominance is upscaled by
    bicubic interpolation.

    Attributes:
        name: The network's.
        scale: How many times larger than LR SR is.
        lr_size: Height and width of LR, or None: any.
        channels: 1 or 3.
        draws_samples: Whether SR is drawn at random, and so differs from seed to seed.
    """

    name: str
    scale: int
    channels: Literal[1, 3]
    lr_size: int | None = None
    draws_samples: bool = False
    _reach = None

    @overload
    def upscale(self, image: AnyImage, samples: None = None, **options) -> AnyImage: ...

    @overload
    def upscale(self, image: AnyImage, samples: int, **options) -> list[AnyImage]: ...

    def upscale(self, image, samples=None, **options):
        """Upscale one image.

        Args:
            image: (H, W), (H, W, 1) or (H, W, 3), uint8 or float in [0, 1], from 1 x 1 on; a
                `PIL.Image`; or a `datasets.pictures.Picture`. Alpha is upscaled by bicubic
                interpolation; networks of one size leave it out. Floats a little beyond [0, 1],
                as interpolation makes them, are taken.
            samples: How many to draw, for networks that do; None: one.
            options: Those of `draw`.

        Returns:
            SR of the kind that LR has, uint8 or float32 in [0, 1], but from networks of one size in
            their own colours, except of (H, W); of `samples`, a list.

        Raises:
            InputError: for anything else, and for options that the network does not take.
        """
        drawn = self.draw(image, samples, **options)
        return next(drawn) if samples is None else list(drawn)

    def draw(self, image: AnyImage, samples: int | None = None, *, temperature: float | None = None,
             seed: int | None = None, tile: int | None = None, ensemble: bool = False,
             crop: Crop | None = None, progress: Callable[[int], object] | None = None) -> Iterator[AnyImage]:
        """`upscale` as an iterator over the samples, so that no two need be kept.

        Args:
            temperature: For networks that draw samples: what the noise is multiplied by, 1 (the
                default) as in training, 0 for none; of networks of one size, what the logits
                are, 1 for the model itself, more for samples that vary less, infinity for the
                most probable values.
            seed: For the same: which noise, from 0 (the default) to 2^31 - 1. Networks with noise
                draw their samples from the seeds `seed`, `seed` + 1 and so on.
            tile: For networks of any size: compute squares of so many LR pixels at a time, which
                overlap as far as the network sees: the same result in bounded memory. None: all
                at once.
            ensemble: For networks of any size without noise: the mean over the eight turns and
                flips of the image, each turned back: a little better, in eight times the time.
                Source: Timofte et al., "Seven ways to improve example-based single image super
                resolution", CVPR 2016.
            crop: For networks of one size: the square that is cut out and shrunk to LR, `"centre"`
                (the default) or `"face"`, see `datasets.thumbnails.square`.
            progress: Called with the number of LR pixels after each tile.
        """
        self.check(samples, temperature, seed, tile, ensemble, crop)
        picture, back = _opened(image)
        return map(back, self._drawn(
            picture, 1 if samples is None else samples, 1.0 if temperature is None else temperature,
            seed or 0, tile, ensemble, crop or "centre", progress or (lambda pixels: None)))

    def check(self, samples: int | None = None, temperature: float | None = None, seed: int | None = None,
              tile: int | None = None, ensemble: bool = False, crop: Crop | None = None) -> None:
        """Raise InputError for options of `draw` that the network does not take, or that nothing can be."""
        self.refuse("that draw samples", samples=samples, temperature=temperature, seed=seed)
        self.refuse("of any size", tile=tile)
        self.refuse("of any size without noise", ensemble=ensemble)
        self.refuse("of one size", crop=crop)
        check_range({"samples": samples, "tile": tile}, least=1)
        if temperature is not None and not temperature >= 0:
            raise InputError(f"temperature: must be 0 or more, not {temperature}")
        if seed is not None and (seed < 0 or seed + (samples or 1) > 2**31):
            raise InputError(f"seed: must be 0 or more and below 2^31, not {seed}")

    def refuse(self, kind: str, **options) -> None:
        """Raise InputError where an option is given that only networks of another kind take.

        Args:
            kind: `"of any size"`, `"of one size"`, `"that draw samples"`, `"with noise"` or
                `"of any size without noise"`.
            options: Name -> value; None, False and "" are not given.
        """
        kinds = {"of any size": not self.lr_size, "of one size": self.lr_size,
                 "that draw samples": self.draws_samples,
                 "with noise": self.draws_samples and not self.lr_size,
                 "of any size without noise": not self.draws_samples and not self.lr_size}
        for name, value in options.items():
            if value is not None and value is not False and value != "" and not kinds[kind]:
                name = name.replace("_", "-")
                raise InputError(f"{name}: only for networks {kind}, and {self.name} is none")

    def _drawn(self, picture, samples, temperature, seed, tile, ensemble, crop, progress):
        """`Picture`s, one for each sample."""
        picture, alpha = fill_invisible(picture), picture.alpha
        if alpha is not None:
            alpha = imresize_clipped(alpha, self.scale)
        for k in range(samples):
            pixels = self._tiled(picture.pixels, (temperature, seed + k), tile, ensemble, progress)
            yield Picture(pixels, alpha, picture.info)

    def _tiled(self, lr, noise, tile, ensemble, progress):
        scale, (height, width, colours) = self.scale, lr.shape
        tile = tile or max(height, width)
        overlap = self.overlap() if tile < max(height, width) else 0
        dtype = "uint8" if lr.dtype == np.uint8 else "float32"
        sr = np.empty((height * scale, width * scale, colours), dtype)
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                bottom, right = min(top + tile, height), min(left + tile, width)
                # Where the image ends, the window ends: there the network pads, as it
                # does with the whole image.
                y, x = max(0, top - overlap), max(0, left - overlap)
                window = lr[y : bottom + overlap, x : right + overlap]
                window = self._whole(window, (*noise, (y, x)), ensemble)
                window = window[(top - y) * scale : (bottom - y) * scale,
                                (left - x) * scale : (right - x) * scale]
                sr[top * scale : bottom * scale, left * scale : right * scale] = (
                    to_uint8(window) if dtype == "uint8" else window)
                progress((bottom - top) * (right - left))
        return sr

    def _whole(self, lr, noise, ensemble):
        """SR (sH, sW, C), float32 in [0, 1], of LR (H, W, C) of any colours."""
        lr, scale = to_float(lr), self.scale
        height, width, colours = lr.shape
        below, right = (SMALLEST if size < SMALLEST else 0 for size in (height, width))
        padded = np.pad(lr, ((0, below), (0, right), (0, 0)), "symmetric")
        run = self._mean_of_turns if ensemble else functools.partial(self._run, noise=noise)
        if self.channels == colours == 1:
            sr = y_to_grey(run(grey_to_y(padded)))
        elif self.channels == colours:
            sr = run(padded)
        elif self.channels == 1:
            ycbcr = rgb_to_ycbcr(padded)
            y = run(ycbcr[..., :1])
            sr = ycbcr_to_rgb(np.concatenate([y, imresize(ycbcr[..., 1:], scale)], -1))
        else:
            sr = run(np.repeat(padded, 3, -1)).mean(-1, keepdims=True)
        return np.clip(sr[: height * scale, : width * scale], 0, 1)

    def _run(self, lr, noise=(1.0, 0, (0, 0))):
        """SR (sH, sW, C) of LR (H, W, C), float32, of the network's channels, SMALLEST or more each way.

        Args:
            noise: (temperature, seed, origin) for networks that draw samples.
        """
        raise NotImplementedError

    def _mean_of_turns(self, lr):
        """The mean of what the network makes of LR's eight turns and flips, each turned back."""
        total = 0
        for turns, flip in np.ndindex(4, 2):
            turned = np.rot90(lr, turns)
            sr = self._run(turned[:, ::-1] if flip else turned)
            total = total + np.rot90(sr[:, ::-1] if flip else sr, -turns)
        return total / 8

    def overlap(self) -> int:
        """By how many LR pixels the windows overlap that an image is computed in: see `reach`."""
        # A window smaller than SMALLEST would be continued, where the whole image is not.
        return max(SMALLEST, self.reach())

    def tile_for(self, lr: np.ndarray) -> int | None:
        """`tile` for LR (H, W, C) so that memory stays bounded, if it can: None where LR is small, or
        the network cannot be tiled."""
        try:
            return TILE if max(lr.shape[:2]) > TILE and self.overlap() else None
        except InputError:
            return None

    def reach(self) -> int:
        """How many LR pixels away an LR pixel can still change SR.

        Found by trying, along the rows and along the columns of a strip: one pixel is changed
        by far more than an image's range, and the changed output pixels are looked at. Bicubic
        chrominance needs at least 3.

        Raises:
            InputError: if all of SR changes, however large LR.
        """
        if not self._reach:
            self._reach = max(3, *(self._reach_along(axis) for axis in (0, 1)))
        return self._reach

    def _reach_along(self, axis, width=16):
        for size in (64, 128, 256, 512):
            shape = (size, width) if axis == 0 else (width, size)
            lr = np.random.default_rng(0).random((*shape, self.channels), "float32")
            changed = lr.copy()
            changed[shape[0] // 2, shape[1] // 2] += 1e6
            at = np.nonzero((self._run(lr) != self._run(changed)).any(-1))[axis] // self.scale
            if not at.size:  # a constant
                return 0
            if at.min() > 0 and at.max() < size - 1:
                return int(np.abs(at - size // 2).max())
        raise InputError(f"tile: {self.name} cannot be tiled, one pixel changes its whole output; "
                         "a tile as large as the image does without")


def _opened(image):
    """An image as a `Picture`, and the function that gives a `Picture` back as what the image was."""
    if isinstance(image, Picture):
        return image, lambda picture: picture
    if isinstance(image, Image.Image):
        return decoded(image), as_image
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)) or not pixels.size:
        raise InputError(f"image: must be (H, W), (H, W, 1) or (H, W, 3), not {pixels.shape}")
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise InputError(f"image: must be uint8, or float in [0, 1], not {pixels.dtype}")
    if pixels.dtype != np.uint8 and not (pixels.min() > -0.5 and pixels.max() < 1.5):  # 0..255, or NaN
        raise InputError(f"image: floats must lie in [0, 1], not go from {pixels.min():.3g} to "
                         f"{pixels.max():.3g}")
    if pixels.ndim == 2:
        return Picture(pixels[..., None]), lambda picture: _grey(picture.pixels)
    return Picture(pixels), lambda picture: picture.pixels


def _grey(pixels):
    """(H, W) of (H, W, 1|3), uint8 or float."""
    grey = to_float(pixels).mean(-1)
    return to_uint8(grey) if pixels.dtype == np.uint8 else grey
