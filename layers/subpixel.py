"""Sub-pixel convolution: upsampling by rearranging channels into space."""

from typing import Any, Literal

import keras
from keras import initializers, ops

from superres.layers.base import Configured, Shape, Tensor


@keras.saving.register_keras_serializable(package="superres")
class ICNR(Configured, initializers.Initializer):
    """Initialise a sub-pixel kernel so that upsampling starts as nearest neighbour.

    All ``scale**2`` sub-pixels of a channel start with the same weights, so an
    untrained layer makes no checkerboard. ``keras.ops.depth_to_space`` keeps the
    sub-pixels in blocks (every filter of sub-pixel (0, 0), then every filter of
    (0, 1), ...): the small kernel is therefore tiled, not repeated.

    Args:
        initializer: Initializer (or its name) of the kernel before tiling.
        scale: The upsampling factor.

    Source: Aitken et al., "Checkerboard artifact free sub-pixel convolution",
    arXiv 1707.02937.
    """

    def __init__(self, initializer: str | initializers.Initializer, scale: int) -> None:
        self.initializer = initializers.get(initializer)
        self.scale = scale

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        blocks = self.scale**2
        kernel = self.initializer((*shape[:-1], shape[-1] // blocks), dtype=dtype)
        return ops.tile(kernel, (1,) * (len(shape) - 1) + (blocks,))


@keras.saving.register_keras_serializable(package="superres")
class SubPixelConv2D(keras.layers.Conv2D):
    """Convolution followed by a pixel shuffle: (B, H, W, C) -> (B, sH, sW, filters).

    Args:
        filters: Channels of the output.
        kernel_size: Size of the convolution, which runs at the low resolution.
        scale: The upsampling factor s.
        icnr: Start all sub-pixels of a channel equal (see `ICNR`).
        **kwargs: Anything `keras.layers.Conv2D` takes, except `strides`,
            `data_format` and `groups`.

    Raises:
        ValueError: for a scale below 1, strides or groups.

    Example:
        >>> SubPixelConv2D(64, 3, scale=2)(keras.ops.ones((1, 8, 8, 16))).shape
        (1, 16, 16, 64)

    Source: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an
    Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016, equation 4.
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], scale: int = 2, icnr: bool = True,
                 padding: Literal["same", "valid"] = "same",
                 kernel_initializer: str | initializers.Initializer = "glorot_uniform", **kwargs) -> None:
        if scale < 1:
            raise ValueError(f"scale must be at least 1, not {scale}")
        initializer = initializers.get(kernel_initializer)
        super().__init__(
            filters * scale**2, kernel_size, padding=padding, data_format="channels_last",
            kernel_initializer=ICNR(initializer, scale) if icnr else initializer, **kwargs,
        )
        if {*self.strides, self.groups} != {1}:
            raise ValueError("strides and groups must be 1")
        self.scale = scale
        self.icnr = icnr

    def call(self, inputs: Tensor) -> Tensor:
        return ops.depth_to_space(super().call(inputs), self.scale, data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, channels = super().compute_output_shape(input_shape)
        return (
            batch,
            None if height is None else height * self.scale,
            None if width is None else width * self.scale,
            channels // self.scale**2,
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for fixed in ("data_format", "strides", "groups"):
            config.pop(fixed)
        initializer = self.kernel_initializer.initializer if self.icnr else self.kernel_initializer
        return {
            **config,
            "filters": self.filters // self.scale**2,
            "scale": self.scale,
            "icnr": self.icnr,
            "kernel_initializer": initializers.serialize(initializer),
        }
