"""Fixed bicubic upsampling as one convolution."""

import keras
import numpy as np
from keras import ops


def cubic(x):
    """Keys' cubic interpolation kernel with a = -0.5, the one of MATLAB's imresize, in numpy."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


@keras.saving.register_keras_serializable(package="superres")
class BicubicUpsampling2D(keras.layers.Layer):
    """Bicubic upsampling: (B, H, W, C) -> (B, sH, sW, C), equal to MATLAB's imresize.

    Edges are symmetric, so a picture must measure at least 2 x 2. The layer has no
    weights, and it always computes in float32 or wider: in bfloat16 the picture
    itself would lose its last bits.

    Args:
        scale: The upsampling factor s, an integer.
    """

    def __init__(self, scale=2, dtype=None, **kwargs):
        wide = keras.dtype_policies.get(dtype).compute_dtype == "float64"
        super().__init__(dtype="float64" if wide else "float32", **kwargs)
        self.scale = scale

    def build(self, input_shape):
        # Output pixel s*i + p lies at i + (p + 0.5) / s - 0.5 in the input; five taps
        # around i hold the four that matter, whatever the phase p.
        phases = (np.arange(self.scale) + 0.5) / self.scale - 0.5
        taps = cubic(np.arange(-2, 3)[:, None] - phases)
        channels = input_shape[-1]
        # depth_to_space keeps sub-pixels in blocks: axis order (row, column, channel).
        kernel = np.einsum("ip,jq,cd->ijcpqd", taps, taps, np.eye(channels))
        self._kernel = kernel.reshape(5, 5, channels, -1).astype("float32")

    def call(self, inputs):
        # The torch backend takes ops.pad's "symmetric" for "replicate": mirror by hand.
        padded = ops.concatenate([ops.flip(inputs[:, :2], 1), inputs, ops.flip(inputs[:, -2:], 1)], 1)
        padded = ops.concatenate(
            [ops.flip(padded[:, :, :2], 2), padded, ops.flip(padded[:, :, -2:], 2)], 2
        )
        kernel = ops.convert_to_tensor(self._kernel, dtype=padded.dtype)
        phases = ops.conv(padded, kernel, padding="valid", data_format="channels_last")
        return ops.depth_to_space(phases, self.scale, data_format="channels_last")

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (
            batch,
            None if height is None else height * self.scale,
            None if width is None else width * self.scale,
            channels,
        )

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}
