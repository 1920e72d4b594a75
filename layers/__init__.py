"""Custom Keras layers, written with `keras.ops` alone."""

from layers.bicubic import BicubicUpsampling2D
from layers.subpixel import ICNR, SubPixelConv2D

__all__ = ["ICNR", "BicubicUpsampling2D", "SubPixelConv2D"]
