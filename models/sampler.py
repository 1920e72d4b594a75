"""Drawing pictures from a pixel recursive model, each sub-pixel computed once.

The plain way (`NaiveSampler`) calls the whole network once for every sub-pixel. Nearly all
of what a call computes was computed before: the features of earlier rows and pixels do
not change, because nothing looks ahead. `Sampler` keeps those that are still needed. The
vertical stack then runs once a row, the horizontal stack once a pixel and colour, and the
conditioning network once a picture.

Source: Ramachandran et al., "Fast Generation for Convolutional Autoregressive Models",
2017, whose caching this is.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from keras import ops

from superres.datasets.pictures import to_float
from superres.errors import InputError
from superres.layers import GatedPixelCNNBlock
from superres.layers.base import Tensor
from superres.layers.masked_conv import colour_groups
from superres.precision import gpus

GREEDY = 1e6  # what an infinite temperature is taken for


def draw(logits: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
    """Draw levels from softmax(temperature * logits) by inverting its distribution function.

    Args:
        logits: (..., levels).
        noise: (...), uniform in [0, 1).
        temperature: What the logits are multiplied by, (...) or anything that
            broadcasts: 1 samples the model, above 1 draws vary less, from a million on the
            largest is taken, of equals the first.

    Returns:
        (...) int32 in 0..levels - 1.

    Source: Dahl et al. 2017, section 3.5, where it is called tau.
    """
    logits = ops.cast(logits, "float32")
    sharpness = ops.expand_dims(ops.minimum(temperature, GREEDY), -1)
    weights = ops.exp((logits - ops.max(logits, -1, keepdims=True)) * sharpness)
    below = ops.cumsum(weights, -1)
    # A level of probability zero is never drawn: noise stays far enough below one for the
    # product to stay below the total, and zero noise passes levels of weight zero.
    threshold = ops.expand_dims(ops.minimum(noise, 1 - 2**-22), -1) * below[..., -1:]
    drawn = ops.sum(ops.cast(below <= threshold, "int32"), -1)
    # Of levels nearly or just as probable, the noise would choose.
    return ops.where(ops.greater_equal(temperature, GREEDY), ops.cast(ops.argmax(logits, -1), "int32"), drawn)


def draws(network: keras.Model) -> bool:
    """Whether a network's pictures are drawn: its outputs are logits."""
    return len(network.outputs[0].shape) == 5


def networks_of(network: keras.Model) -> tuple[keras.Model, keras.Model | None]:
    """(conditioning network, prior network or None) of a `pixel_recursive` model, however they are called.

    Raises:
        InputError: if it puts out something else than the logits of two networks.
    """
    if len(network.inputs) == 1:
        return network, None
    parts = [tensor._keras_history.operation for tensor in network.outputs]
    if len(parts) == 2 and all(isinstance(part, keras.Model) for part in parts):
        # A model that was called as a whole is the one operation behind both outputs.
        return networks_of(parts[0]) if parts[0] is parts[1] else tuple(parts)
    raise InputError(f"{network.name}: not the two networks of a pixel recursive model")


class NaiveSampler(keras.Model):
    """Draws with one call of the whole network for every sub-pixel: the definition.

    [lr, noise, temperature] -> (B, H, W, C) int32 levels, as `Sampler`.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__(dtype="float32")
        self.network = network

    def call(self, inputs: list[Tensor]) -> Tensor:
        lr, noise, temperature = inputs
        _, height, width, channels = noise.shape
        top = self.network.output_shape[0][-1] - 1
        order = np.arange(height * width * channels).reshape(1, height, width, channels)

        def step(i, hr):
            a, b = self.network([lr, hr], training=False)
            levels = draw(a + b, noise, temperature[:, None, None, None])
            return ops.where(ops.equal(order, i), ops.cast(levels, "float32") / top, hr)

        hr = ops.fori_loop(0, order.size, step, ops.zeros_like(noise))
        return ops.cast(ops.round(hr * top), "int32")


class Sampler(keras.Model):
    """Draws pictures: [lr, noise, temperature] -> (B, H, W, C) int32 levels.

    The inputs are LR (B, h, w, C) in [0, 1], uniform noise in [0, 1) for each sub-pixel
    (B, H, W, C), and the temperature of each picture (B,); see `draw`. The same noise gives
    the same picture, whatever else is in the batch. A fourth input, (1,) int32, is how many rows of
    a recursive network's pictures are drawn, all unless given; those below are grey.

    Args:
        network: A `pixel_recursive` model; a `conditioning_network` with a softmax head,
            whose sub-pixels are independent and drawn all at once; or one with a Gaussian
            head, of which the mean is taken.
        jit_compile: Let XLA compile the loops, which takes seconds for every new batch
            size and makes them up to three times as fast.

    Example:
        >>> Sampler(network).sample(lr, temperature=1.1, samples=4).shape  # lr (10, 8, 8, 3)
        (4, 10, 32, 32, 3)
    """

    def __init__(self, network: keras.Model, jit_compile: bool = True) -> None:
        super().__init__(dtype="float32")  # noise would lose its bits in mixed precision
        self.network = network
        self.conditioning, self.prior = networks_of(network)
        self.blocks = [layer for layer in (self.prior.layers if self.prior else ())
                       if isinstance(layer, GatedPixelCNNBlock)]
        self.levels = network.outputs[0].shape[-1] if draws(network) else 256
        self.compile(jit_compile=jit_compile)

    def sample(self, lr: np.ndarray, temperature: float = 1.0, seed: int = 0, samples: int = 1,
               batch: int = 32, rows: int | None = None) -> np.ndarray:
        """Draw `samples` pictures for each LR picture.

        Args:
            lr: (N, h, w, C), uint8 or float in [0, 1].
            temperature: See `draw`.
            seed: Together with the sample's number and the picture's, it decides the noise.
            samples: How many to draw.
            batch: How many are drawn at a time, shared between the processor's cores. It
                changes nothing but speed and memory.
            rows: Draw so many of a recursive network's rows, from the top, and leave the others grey;
                None: all.

        Returns:
            (samples, N, H, W, C) uint8.
        """
        lr = to_float(lr)
        size = self.network.outputs[0].shape[1:4]
        jobs = [(k, i) for k in range(samples) for i in range(len(lr))]
        # XLA keeps little more than one core busy: as many parts at a time, of 8 pictures or more.
        count = min(batch, len(jobs))
        cores = 1 if gpus() else max(1, min(os.cpu_count() or 1, count // 8))
        part = -(-count // cores)

        def draw_part(start):
            # The last part is filled up: another size would be compiled anew.
            some = (jobs[start : start + part] + jobs[-1:] * part)[:part]
            noise = np.stack([np.random.default_rng((seed, *job)).random(size, "float32") for job in some])
            return self.predict_on_batch([lr[[i for _, i in some]], noise,
                                          np.full(part, temperature, "float32"),
                                          np.array([size[0] if rows is None else rows], "int32")])

        self.make_predict_function()  # once, and not in every thread
        with ThreadPoolExecutor(cores) as pool:
            drawn = list(itertools.chain(*pool.map(draw_part, range(0, len(jobs), part))))
        pictures = np.stack(drawn[: len(jobs)]) * (255 / (self.levels - 1))
        return np.round(pictures).astype("uint8").reshape(samples, len(lr), *size)

    def call(self, inputs: list[Tensor]) -> Tensor:
        lr, noise, temperature, *rows = inputs
        _, height, width, channels = noise.shape
        batch = ops.shape(noise)[0]
        if not draws(self.network):
            return ops.cast(ops.round(ops.clip(self.conditioning(lr, training=False), 0, 1) * 255), "int32")
        if self.prior is None:
            return draw(self.conditioning(lr, training=False), noise, temperature[:, None, None, None])
        # (rows, columns, batch, ...): the loops take one after the other.
        logits, *condition = keras.tree.flatten(self.conditioning(lr, training=False))
        logits = ops.transpose(logits, (1, 2, 0, 3, 4))
        condition = [ops.transpose(features, (1, 0, 2, 3)) for features in condition]  # (rows, batch, ...)
        noise = ops.transpose(noise, (1, 2, 0, 3))
        orders, left_kernels, steps = zip(*(block.by_colours() for block in self.blocks), strict=True)
        pick = self._colours(steps, temperature)
        # All blocks but the first are alike: what lies to the left reaches them in one product.
        first, *rest = self.blocks
        others = rest[:1]  # what stands for them, where there are any
        left_kernels = [left_kernels[0], *(ops.stack(left_kernels[1:]) for _ in others)]

        def row(y, state):
            picture, *above = state
            contexts, windows, v = [], [], None
            told = [features[y][:, None] for features in condition]
            for block, order, past in zip(self.blocks, orders, above, strict=True):
                windows.append(past if v is None else ops.concatenate([past, v], 1))
                v, context = block.vertical(windows[-1], *told)
                contexts.append(ops.transpose(ops.take(context[:, 0], order, axis=-1), (1, 0, 2)))
            stacked = [ops.stack(contexts[1:], 1) for _ in others]  # (columns, blocks, batch, ...)

            def pixel(x, state):
                drawn, left, *lefts = state
                seen = [contexts[0][x] + ops.tensordot(left, left_kernels[0], 2)]
                for context, pixels, kernel in zip(stacked, lefts, left_kernels[1:], strict=True):
                    seen += ops.unstack(context[x] + ops.einsum("kbpi,kpio->kbo", pixels, kernel))
                new, *news = pick(seen, logits[y, x], noise[y, x])
                left = ops.concatenate([left[:, 1:], new[:, None]], 1)
                lefts = [ops.concatenate([pixels[:, :, 1:], ops.stack(news)[:, :, None]], 2)
                         for pixels in lefts]
                return written(drawn, x, new), left, *lefts

            drawn, *_ = ops.fori_loop(0, width, pixel, (
                ops.zeros_like(noise[0]), ops.zeros((batch, first.past, channels)),
                *[ops.zeros((len(rest), batch, block.past, block.filters)) for block in others]))
            # The vertical stack of the first block sees the rows above: now also this one.
            windows[0] = ops.concatenate([windows[0], ops.transpose(drawn, (1, 0, 2))[:, None]], 1)
            return written(picture, y, drawn), *[window[:, 1:] for window in windows]

        picture, *_ = ops.fori_loop(0, rows[0][0] if rows else height, row, (
            ops.zeros_like(noise), ops.zeros((batch, first.past, width, channels)),
            *[ops.zeros((batch, block.past, width, block.filters)) for block in rest]))
        return ops.transpose(ops.cast(ops.round((picture + 0.5) * (self.levels - 1)), "int32"), (2, 0, 1, 3))

    def _colours(self, steps, temperature):
        """Function that draws one pixel and returns what enters each block: first the pixel itself."""
        head, last, levels = self.prior.get_layer("head"), self.prior.get_layer("last"), self.levels
        head_kernel, last_kernel = head.masked_kernel()[0, 0], last.masked_kernel()[0, 0]
        # Of the head, the colour's own units; of the last layer, the colour's own logits.
        heads, sizes = [], np.bincount(colour_groups(head.filters, len(steps[0])))
        for colour, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
            own, logits = slice(end - size, end), slice(colour * levels, (colour + 1) * levels)
            count = steps[-1][colour].output.shape[0]  # of the features that the colour sees
            heads.append((head_kernel[:count, own], head.bias[own],
                          last_kernel[:end, logits], last.bias[logits]))

        def pick(seen, logits, noise):
            # Of every block and of the last one's result, the features of the colours so far.
            features, hidden = [[] for _ in range(len(seen) + 1)], []
            gated = [[] for _ in seen]
            cuts = 2 * np.cumsum([0, *(step.bias.shape[0] for step in steps[0])])
            for colour, (kernel, bias, last_kernel, last_bias) in enumerate(heads):
                for i, step in enumerate(of_block[colour] for of_block in steps):
                    left = seen[i][:, cuts[colour] : cuts[colour + 1]]
                    features[i + 1].append(step(left, features[i], gated[i]))
                h = ops.concatenate(features[-1], -1)
                hidden.append(ops.relu(ops.matmul(h, kernel) + bias))
                prior = ops.matmul(ops.concatenate(hidden, -1), last_kernel) + last_bias
                level = draw(logits[:, colour] + prior, noise[:, colour], temperature)
                features[0].append((ops.cast(level, "float32") / (levels - 1) - 0.5)[:, None])
            return [ops.concatenate(of_block, -1) for of_block in features[:-1]]

        return pick


def written(array: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """A copy of the array with `array[index] = values`."""
    here = ops.equal(np.arange(array.shape[0]).reshape(-1, *[1] * (len(array.shape) - 1)), index)
    return ops.where(here, values[None], array)
