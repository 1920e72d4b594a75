"""Using a trained network: from an LR image to an SR image, whatever kind of network it is.

    load("lapsrn-x4").upscale(image)

Three kinds of `Upscaler`, which differ in what is asked of them: networks of any size that
compute their SR, such as LapSRN and SRGAN; networks of any size that draw it, from noise,
such as SRMAP; and networks of one size, such as pixel recursive ones. All are functional
Keras models, and a `.keras` file keeps the kind.
"""

import functools
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from superres.datasets.pictures import Picture, fill_invisible, to_float, to_uint8
from superres.datasets.thumbnails import Crop, thumbnail
from superres.errors import InputError, check_choice
from superres.layers import ConsistentPicture  # and registers all layers that saved networks hold
from superres.layers.base import Tensor
from superres.models.hub import network_file
from superres.models.images import ImageUpscaler
from superres.models.sampler import Sampler, draws


@keras.saving.register_keras_serializable(package="superres")
class Upscaler(ImageUpscaler, keras.Model):
    """A network that upscales images of any size: LR (B, H, W, C) in [0, 1] -> SR (B, sH, sW, C).

    The constructor is that of every functional Keras model: inputs, outputs, name. Of several
    outputs, the last is SR. What can be done with it: `models.images.ImageUpscaler`.

    Example:
        >>> network = load("lapsrn-x4")
        >>> network.upscale(PIL.Image.open("photo.jpg")).save("photo_x4.png")
        >>> network.upscale(np.zeros((30, 40, 3), "uint8")).shape
        (120, 160, 3)
    """

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

    def feed(self, lr: Tensor, temperature: Tensor, seed: Tensor, origin: Tensor) -> Tensor | list[Tensor]:
        """What the network is called with for a batch of LR (B, H, W, C), arrays or tensors.

        Args:
            temperature: (B,) float.
            seed: (B,) int32.
            origin: (B, 2) int32: where in a larger image, whose noise it shares, LR lies.
        """
        return lr

    def example(self, count: int, height: int, width: int) -> list[np.ndarray]:
        """Values for all inputs, to try it: LR of this size, random, each with noise of its own."""
        lr = np.random.default_rng(0).random((count, height, width, self.channels), "float32")
        return keras.tree.flatten(self.feed(lr, np.ones(count, "float32"), np.arange(count, dtype="int32"),
                                            np.zeros((count, 2), "int32")))

    def _run(self, lr, noise=(1.0, 0, (0, 0))):
        temperature, seed, origin = noise
        batch = self.feed(lr[None], np.array([temperature], "float32"), np.array([seed], "int32"),
                          np.array([origin], "int32"))
        try:
            return keras.tree.flatten(self.predict_on_batch(batch))[-1][0]
        except Exception as error:
            if type(error).__name__ == "ResourceExhaustedError":  # TensorFlow's
                raise MemoryError(f"{self.name}: {lr.shape[1]} x {lr.shape[0]} at once") from None
            raise

    def reach(self) -> int:
        if not self._reach:
            network = at_precision(self, "float32")
            for layer in network.layers:
                if isinstance(layer, ConsistentPicture):
                    layer.rounds = 0  # what further rounds carry further is less than a level
            self._reach = ImageUpscaler.reach(network)
        return self._reach


@keras.saving.register_keras_serializable(package="superres")
class NoisyUpscaler(Upscaler):
    """An `Upscaler` that draws samples: its inputs are LR and those of `layers.NoiseInjection`.

    [lr (B, H, W, C), seed (B,) int32, temperature (B,), origin (B, 2) int32] -> SR.
    """

    draws_samples = True

    def check(self, samples: int | None = None, temperature: float | None = None, seed: int | None = None,
              tile: int | None = None, ensemble: bool = False, crop: Crop | None = None) -> None:
        super().check(samples, temperature, seed, tile, ensemble, crop)
        if temperature is not None and temperature > float(np.finfo("float32").max):
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

    def sample(self, lr: np.ndarray, temperature: float = 1.0, seed: int = 0, samples: int = 1,
               rows: int | None = None) -> np.ndarray:
        """`Sampler.sample`, by a sampler that is compiled once: of LR (N, h, w, C), (samples, N, H, W, C)."""
        # Not the sampler itself: what is a layer and an attribute, Keras would save with the network.
        self._sample = self._sample or Sampler(self).sample
        return self._sample(lr, temperature, seed, samples, rows=rows)

    def _drawn(self, picture, samples, temperature, seed, tile, ensemble, crop, progress):
        pixels = fill_invisible(picture).pixels
        lr = thumbnail(to_uint8(pixels), self.lr_size, self.channels, crop)
        # A profile of other colours than the network's would not fit.
        info = picture.info if pixels.shape[-1] == self.channels else picture.info._replace(icc=None)
        for (sr,) in self.sample(lr[None], temperature, seed, samples):
            yield Picture(sr if pixels.dtype == np.uint8 else to_float(sr), None, info)


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
        InputError: for another precision, or if the file is missing, cannot be downloaded or is
            no saved network.
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
        InputError: also if the shapes of their weights differ. What else differs is not seen.

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
    that hand images on or make images of images, so that the 8 bits of the image survive
    bfloat16's 8 bits of mantissa.
    """
    check_choice("precision", precision, "float32", "bfloat16")
    policy = precision if precision == "float32" else "mixed_bfloat16"
    parts = [network, *(part for part in network.layers if isinstance(part, keras.Model))]
    last = {id(tensor._keras_history.operation) for part in parts for tensor in part.outputs}

    def are_images(tensors):
        return all(tensor.shape[-1] in (1, 3) for tensor in keras.tree.flatten(tensors))

    def clone(layer):
        config = layer.get_config()
        if "dtype" in config and not isinstance(layer, keras.layers.InputLayer):
            image = are_images(layer.output) and (are_images(layer.input) or not layer.weights)
            config["dtype"] = "float32" if image or id(layer) in last else policy
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=clone, recursive=True)
    copy.set_weights(network.get_weights())
    return copy
