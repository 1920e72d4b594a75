"""Using a trained network: from an LR image to an SR image, whatever kind of network it is.

    load("lapsrn-x4").upscale(image)

Three kinds of `Upscaler`, which differ in what is asked of them: networks of any size that
compute their SR, such as LapSRN and SRGAN; networks of any size that draw it, from noise,
such as SRMAP; and networks of one size, such as pixel recursive ones. All are functional
Keras models, and a `.keras` file keeps the kind.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar, overload

import keras
import numpy as np
from PIL import Image

from superres.datasets.color import grey_to_y, rgb_to_ycbcr, y_to_grey, ycbcr_to_rgb
from superres.datasets.degradations import imresize, imresize_clipped
from superres.datasets.pictures import Picture, as_image, decoded, fill_invisible, to_float, to_uint8
from superres.datasets.thumbnails import Crop, thumbnail
from superres.errors import InputError, check_range
from superres.layers import ConsistentPicture  # and registers all layers that saved networks hold
from superres.layers.base import Tensor
from superres.models import hub
from superres.models.sampler import Sampler, draws

# Smaller images are continued symmetrically, by so many pixels, before they enter a network.
SMALLEST = 8
WEIGHTS = Path(__file__).parents[1] / "weights"

# What is upscaled; SR is of the same kind.
AnyImage = TypeVar("AnyImage", np.ndarray, Image.Image, Picture)


@keras.saving.register_keras_serializable(package="superres")
class Upscaler(keras.Model):
    """A network that upscales images of any size: LR (B, H, W, C) in [0, 1] -> SR (B, sH, sW, C).

    The constructor is that of every functional Keras model: inputs, outputs, name. Of several
    outputs, the last is SR. A network of one channel is one of luminance (BT.601's Y, 16..235
    over 255); grey images and the luminance of coloured ones are brought to that range, and
    chrominance is upscaled by bicubic interpolation.

    Attributes:
        scale: How many times larger than LR SR is.
        lr_size: Height and width of LR, or None: any.
        channels: 1 or 3.
        draws_samples: Whether SR is drawn at random, and so differs from seed to seed.

    Example:
        >>> network = load("lapsrn-x4")
        >>> network.upscale(PIL.Image.open("photo.jpg")).save("photo_x4.png")
        >>> network.upscale(np.zeros((30, 40, 3), "uint8")).shape
        (120, 160, 3)
    """

    draws_samples = False
    _reach = None

    @functools.cached_property
    def scale(self) -> int:
        if self.lr_size:
            return self.outputs[-1].shape[1] // self.lr_size
        shapes = [(1, 16, 16, self.channels), *((1, *tensor.shape[1:]) for tensor in self.inputs[1:])]
        shape = self.compute_output_shape(shapes if len(shapes) > 1 else shapes[0])
        return (shape[-1] if isinstance(shape, list) else shape)[1] // 16

    @property
    def lr_size(self) -> int | None:
        return self.inputs[0].shape[1]

    @property
    def channels(self) -> Literal[1, 3]:
        return self.inputs[0].shape[-1]

    @overload
    def upscale(self, image: AnyImage, samples: None = None, **options) -> AnyImage: ...

    @overload
    def upscale(self, image: AnyImage, samples: int, **options) -> list[AnyImage]: ...

    def upscale(self, image, samples=None, **options):
        """Upscale one image.

        Args:
            image: (H, W), (H, W, 1) or (H, W, 3), uint8 or float in [0, 1], from 1 x 1 on; a
                `PIL.Image`; or a `datasets.pictures.Picture`. Alpha is upscaled by bicubic
                interpolation.
            samples: How many to draw, for networks that do; None: one.
            options: Those of `draw`.

        Returns:
            SR of the kind that LR has, uint8 or float32 in [0, 1]; of `samples`, a list.

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
                are, 1 for the model itself, more for sharper samples, infinity for the most
                probable values.
            seed: For the same: which noise, from 0 (the default) to 2^31 - 1. Networks with noise
                draw their samples from the seeds `seed`, `seed` + 1 and so on.
            tile: For networks of any size: compute squares of so many LR pixels at a time, which
                overlap by the network's `reach`: the same result in bounded memory. None: all
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

    def feed(self, lr: Tensor, temperature: Tensor, seed: Tensor, origin: Tensor) -> Tensor | list[Tensor]:
        """What the network is called with for a batch of LR (B, H, W, C), arrays or tensors.

        Args:
            temperature: (B,) float.
            seed: (B,) int32.
            origin: (B, 2) int32: where in a larger image, whose noise it shares, LR lies.
        """
        return lr

    def _drawn(self, picture, samples, temperature, seed, tile, ensemble, crop, progress):
        """`Picture`s, one for each sample."""
        picture, alpha = fill_invisible(picture), picture.alpha
        if alpha is not None:
            alpha = imresize_clipped(alpha, self.scale)
        for k in range(samples):
            pixels = self._tiled(picture.pixels, (temperature, seed + k), tile, ensemble, progress)
            yield Picture(pixels, alpha, picture.info)

    def _tiled(self, lr, noise, tile, ensemble, progress):
        # A window smaller than SMALLEST would be continued, where the whole image is not.
        scale, (height, width, colours) = self.scale, lr.shape
        tile = tile or max(height, width)
        overlap = max(SMALLEST, self.reach()) if tile < max(height, width) else 0
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
        temperature, seed, origin = noise
        batch = self.feed(lr[None], np.array([temperature], "float32"), np.array([seed], "int32"),
                          np.array([origin], "int32"))
        return keras.tree.flatten(self.predict_on_batch(batch))[-1][0]

    def _mean_of_turns(self, lr):
        """The mean of what the network makes of LR's eight turns and flips, each turned back."""
        total = 0
        for turns, flip in np.ndindex(4, 2):
            turned = np.rot90(lr, turns)
            sr = self._run(turned[:, ::-1] if flip else turned)
            total = total + np.rot90(sr[:, ::-1] if flip else sr, -turns)
        return total / 8

    def reach(self) -> int:
        """How many LR pixels away an LR pixel can still change SR.

        Found by trying, along the rows and along the columns of a strip: one pixel is changed
        by far more than an image's range, and the changed output pixels are looked at. Bicubic
        chrominance needs at least 3.

        Raises:
            InputError: if all of SR changes, however large LR.
        """
        if not self._reach:
            network = at_precision(self, "float32")
            for layer in network.layers:
                if isinstance(layer, ConsistentPicture):
                    layer.rounds = 0  # what further rounds carry further is less than a level
            self._reach = max(3, *(network._reach_along(axis) for axis in (0, 1)))
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


@keras.saving.register_keras_serializable(package="superres")
class NoisyUpscaler(Upscaler):
    """An `Upscaler` that draws samples: its inputs are LR and those of `layers.NoiseInjection`.

    [lr (B, H, W, C), seed (B,) int32, temperature (B,), origin (B, 2) int32] -> SR.
    """

    draws_samples = True

    def check(self, samples: int | None = None, temperature: float | None = None, seed: int | None = None,
              tile: int | None = None, ensemble: bool = False, crop: Crop | None = None) -> None:
        super().check(samples, temperature, seed, tile, ensemble, crop)
        if temperature is not None and np.isinf(temperature):
            raise InputError("temperature: must be finite, noise is multiplied by it")

    def feed(self, lr: Tensor, temperature: Tensor, seed: Tensor, origin: Tensor) -> list[Tensor]:
        return [lr, seed, temperature, origin]


@keras.saving.register_keras_serializable(package="superres")
class ThumbnailUpscaler(Upscaler):
    """A network of one size: a square of the image is cut out and shrunk to its LR, and SR drawn.

    What `models.sampler.Sampler` takes: a `pixel_recursive` model, or a
    `conditioning_network` alone, whose Gaussian head draws nothing.
    """

    _sample = None

    @property
    def draws_samples(self) -> bool:
        return draws(self)

    def sample(self, lr: np.ndarray, temperature: float = 1.0, seed: int = 0, samples: int = 1) -> np.ndarray:
        """`Sampler.sample`, by a sampler that is compiled once: of LR (N, h, w, C), (samples, N, H, W, C)."""
        # Not the sampler itself: what is a layer and an attribute, Keras would save with the network.
        self._sample = self._sample or Sampler(self).sample
        return self._sample(lr, temperature, seed, samples)

    def _drawn(self, picture, samples, temperature, seed, tile, ensemble, crop, progress):
        lr = thumbnail(to_uint8(picture.pixels), self.lr_size, self.channels, crop)
        for (sr,) in self.sample(lr[None], temperature, seed, samples):
            yield Picture(sr if picture.pixels.dtype == np.uint8 else to_float(sr))


def upscaler(network: keras.Model) -> Upscaler:
    """A functional Keras model from LR to SR as the `Upscaler` of its kind; the weights are shared.

    The kind is told by the inputs: those of `layers.NoiseInjection` beside LR, LR of one size,
    LR of any size.

    Raises:
        InputError: if it is not a network from images of 1 or 3 channels to images.
    """
    if isinstance(network, Upscaler):
        return network
    (lr, *more), sr = network.inputs, network.outputs[-1]
    kind, colours = None, sr.shape[3] if len(sr.shape) in (4, 5) else None  # of images, or of their logits
    if len(lr.shape) == 4 and lr.shape[-1] == colours in (1, 3):
        if [tensor.name for tensor in more] == ["seed", "temperature", "origin"]:
            kind = NoisyUpscaler
        elif lr.shape[1]:
            # What is drawn pixel by pixel sees, beside LR, what is drawn already.
            kind = ThumbnailUpscaler if not more or (len(more) == 1 and draws(network)) else None
        elif not more:
            kind = Upscaler
    if not kind:
        raise InputError(f"{network.name}: not a network from images of 1 or 3 channels to images")
    return kind(network.inputs, network.outputs, name=network.name)


def network_file(path: Path | str) -> Path:
    """The `.keras` file that `load` loads, downloaded first where it is on the Hugging Face hub.

    Raises:
        InputError: if there is none.
    """
    if hub.is_address(path):
        return hub.download(path)
    if not Path(path).is_file() and (WEIGHTS / f"{path}.keras").is_file():
        return WEIGHTS / f"{path}.keras"
    if not Path(path).is_file():
        shipped = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.keras")))
        raise InputError(f"{path}: no such model file; shipped are {shipped}")
    return path


def load(path: Path | str, precision: Literal["float32", "bfloat16"] = "float32") -> Upscaler:
    """Load a saved network (`.keras`) as an `Upscaler`.

    A stranger's file runs no code of its own: Keras's safe mode is on, which refuses Lambda layers,
    functions as bytecode and SavedModels, and makes no objects but Keras's, this package's and
    those that the program has registered with Keras. Older versions of Keras had holes in it, so
    pyproject.toml asks for 3.15.1. It is no sandbox: a file can still ask for more memory or time than
    there is, and `keras.config.enable_unsafe_deserialization()` ends it for the whole program.

    Args:
        path: A file, the name of a network that is shipped, such as `"lapsrn-x4"`, or an address
            on the Hugging Face hub, `"hf://user/name"` or `"hf://user/name@revision"`.
        precision: What it computes in, `"float32"` or `"bfloat16"`.

    Raises:
        InputError: if the file is missing, cannot be downloaded or is no saved network.
    """
    file = network_file(path)
    try:
        network = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the broken part raised
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not a saved Keras model ({reason})") from None
    try:
        network = upscaler(network)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    saved = {layer.dtype_policy.name for layer in network._flatten_layers(include_self=False)}
    return network if {precision} == saved else at_precision(network, precision)


def load_blended(path: Path | str, precision: Literal["float32", "bfloat16"] = "float32", blend: float = 0.0,
                 other: Path | str = "") -> Upscaler:
    """Load a network, its weights interpolated towards another's: (1 - blend) w + blend v.

    Networks trained one from the other can be blended, such as a pretrained and an
    adversarial generator: every blend is a network between the two.

    Args:
        blend: 0 is the network itself, 1 the other.
        other: The other network, a .keras file of the same structure.

    Raises:
        InputError: also if the two differ in structure.

    Source: Wang et al., "ESRGAN", 2018, section 3.4.
    """
    network = load(path, precision)
    if not 0 <= blend <= 1:
        raise InputError(f"--blend: must lie between 0 and 1, not {blend}")
    if not other and not blend:
        return network
    if not other:
        raise InputError("--blend: needs --blend-with, the network to blend with")
    pair = [network.get_weights(), load(other).get_weights()]
    if [w.shape for w in pair[0]] != [w.shape for w in pair[1]]:
        raise InputError(f"--blend-with: {other} has not the structure of {path}")
    network.set_weights([(1 - blend) * w + blend * v for w, v in zip(*pair, strict=True)])
    return network


def at_precision(network: Upscaler, precision: Literal["float32", "bfloat16"]) -> Upscaler:
    """A copy of a network and its weights that computes in `"float32"` or `"bfloat16"`.

    Weights stay float32. Layers that make an output stay float32 too, and so do those
    without weights that hand images on, so that the 8 bits of the image survive
    bfloat16's 8 bits of mantissa.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    parts = [network, *(part for part in network.layers if isinstance(part, keras.Model))]
    last = {id(tensor._keras_history.operation) for part in parts for tensor in part.outputs}

    def clone(layer):
        config = layer.get_config()
        if "dtype" in config and not isinstance(layer, keras.layers.InputLayer):
            image = not layer.weights and layer.output.shape[-1] in (1, 3)
            config["dtype"] = "float32" if image or id(layer) in last else policy
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=clone, recursive=True)
    copy.set_weights(network.get_weights())
    return copy


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
    if pixels.ndim == 2:
        return Picture(pixels[..., None]), lambda picture: picture.pixels[..., 0]
    return Picture(pixels), lambda picture: picture.pixels
