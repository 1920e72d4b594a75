"""Faithfulness to the picture that was given."""

import keras
from keras import ops

from superres.layers import BicubicDownsampling2D
from superres.layers.base import Configured, Tensor


@keras.saving.register_keras_serializable(package="superres")
class Fidelity(Configured, keras.losses.Loss):
    """|LR - D SR|, averaged: how far SR, shrunk by MATLAB's bicubic, is from LR.

    Takes LR (B, H, W, C) and SR (B, sH, sW, C), values in [0, 1]; one value a picture.

    Args:
        scale: SR's size over LR's, even. SR must measure at least 3 scale / 2 each way.
    """

    def __init__(self, scale: int, name: str = "fidelity", **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        self.scale = scale
        self.downsample = BicubicDownsampling2D(scale)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return ops.mean(ops.abs(y_true - self.downsample(y_pred)), axis=(1, 2, 3))
