"""Spatially adaptive denormalisation: normalisation undone as a picture tells."""

from typing import Literal

import keras
from keras import layers, ops

from superres.layers.base import Configured, Shape, Tensor
from superres.layers.batch_norm import batch_norm
from superres.layers.spectral_conv import SpectralConv2D


@keras.saving.register_keras_serializable(package="superres")
class SPADE(Configured, keras.layers.Layer):
    """norm(x) * (1 + gamma(s)) + beta(s): [x, s] -> the shape of x.

    s, a picture of any size, is resized to x (nearest neighbour); a 3x3 convolution with
    ReLU, then one 3x3 convolution each, make gamma and beta of it.

    Args:
        hidden: Channels between s and gamma, beta (`nhidden`, 128 in the paper).
        norm: `"batch"`: over the batch and, in training on several devices, over all of
            them; running averages at inference. `"instance"`: over each picture.
        kernel_initializer: Of the convolutions.

    Raises:
        ValueError: for another norm.

    Example:
        >>> x, s = keras.ops.ones((1, 32, 32, 64)), keras.ops.ones((1, 8, 8, 3))
        >>> SPADE(hidden=16)([x, s]).shape
        (1, 32, 32, 64)

    Source: Park et al., "Semantic Image Synthesis with Spatially-Adaptive
    Normalization", CVPR 2019, section 3.1.
    """

    def __init__(self, hidden: int = 128, norm: Literal["batch", "instance"] = "batch",
                 kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
                 **kwargs) -> None:
        super().__init__(**kwargs)
        if norm not in ("batch", "instance"):
            raise ValueError(f"norm must be 'batch' or 'instance', not {norm!r}")
        self.hidden = hidden
        self.norm = norm
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: list[Shape]) -> None:
        (*_, channels), (*batch, s_channels) = input_shape

        def conv(filters, name, **kwargs):
            return layers.Conv2D(filters, 3, padding="same", name=name, dtype=self.dtype_policy,
                                 kernel_initializer=self.kernel_initializer.clone(), **kwargs)

        self.normalize = (
            batch_norm(center=False, scale=False, dtype=self.dtype_policy)
            if self.norm == "batch"
            else layers.GroupNormalization(
                -1, epsilon=1e-5, center=False, scale=False, dtype=self.dtype_policy)
        )
        self.shared = conv(self.hidden, "shared", activation="relu")
        self.gamma = conv(channels, "gamma")
        self.beta = conv(channels, "beta")
        self.normalize.build(input_shape[0])
        self.shared.build((*batch, s_channels))
        self.gamma.build((*batch, self.hidden))
        self.beta.build((*batch, self.hidden))

    def call(self, inputs: list[Tensor]) -> Tensor:
        x, s = inputs
        s = ops.image.resize(s, ops.shape(x)[1:3], interpolation="nearest", data_format="channels_last")
        features = self.shared(s)
        return self.normalize(x) * (1 + self.gamma(features)) + self.beta(features)

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        return input_shape[0]


@keras.saving.register_keras_serializable(package="superres")
class SPADEResBlock(Configured, keras.layers.Layer):
    """Residual block with SPADE: [x, s] -> (B, H, W, filters).

    SPADE, LeakyReLU and a 3x3 convolution, twice, added to x. Where x has another number
    of channels, it goes through SPADE and a 1x1 convolution without bias.

    Args:
        filters: Channels of the output.
        hidden: See `SPADE`.
        norm: See `SPADE`.
        spectral: Normalise the block's convolutions spectrally (`SpectralConv2D`).
        slope: LeakyReLU's below zero; 0 for ReLU.
        kernel_initializer: Of all convolutions.

    Source: Park et al. 2019, section 3.2 and figure 4.
    """

    def __init__(self, filters: int, hidden: int = 128, norm: Literal["batch", "instance"] = "batch",
                 spectral: bool = True, slope: float = 0.2,
                 kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
                 **kwargs) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.hidden = hidden
        self.norm = norm
        self.spectral = spectral
        self.slope = slope
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: list[Shape]) -> None:
        x_shape, s_shape = input_shape
        channels, between = x_shape[-1], min(x_shape[-1], self.filters)

        def spade(name, width):
            layer = SPADE(self.hidden, self.norm, self.kernel_initializer.clone(), name=name,
                          dtype=self.dtype_policy)
            layer.build([(*x_shape[:-1], width), s_shape])
            return layer

        def conv(name, width, filters, size, **kwargs):
            layer = (SpectralConv2D if self.spectral else layers.Conv2D)(
                filters, size, padding="same", name=name, dtype=self.dtype_policy,
                kernel_initializer=self.kernel_initializer.clone(), **kwargs)
            layer.build((*x_shape[:-1], width))
            return layer

        self.norm_0, self.conv_0 = spade("norm_0", channels), conv("conv_0", channels, between, 3)
        self.norm_1, self.conv_1 = spade("norm_1", between), conv("conv_1", between, self.filters, 3)
        self.norm_s = self.conv_s = None
        if channels != self.filters:
            self.norm_s = spade("norm_s", channels)
            self.conv_s = conv("conv_s", channels, self.filters, 1, use_bias=False)

    def _activate(self, x):
        # Not ops.leaky_relu: after a convolution and a sum, as SPADE's are, TensorFlow 2.21 computes it on
        # processors with a slope of 0.2, whatever it was told, in graphs without gradients.
        return ops.relu(x) - self.slope * ops.relu(-x) if self.slope else ops.relu(x)

    def call(self, inputs: list[Tensor]) -> Tensor:
        x, s = inputs
        h = self.conv_0(self._activate(self.norm_0([x, s])))
        h = self.conv_1(self._activate(self.norm_1([h, s])))
        if self.conv_s is not None:
            x = self.conv_s(self.norm_s([x, s]))
        return x + h

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        return (*input_shape[0][:-1], self.filters)
