"""Custom Keras layers, written with `keras.ops` alone."""

from layers.bicubic import BicubicDownsampling2D, BicubicUpsampling2D
from layers.gated_pixelcnn import GatedPixelCNNBlock
from layers.masked_conv import MaskedConv2D
from layers.polyphase import PolyphaseConv2D
from layers.spade import SPADE, SPADEResBlock
from layers.spectral_conv import SpectralConv2D
from layers.subpixel import ICNR, SubPixelConv2D

__all__ = ["ICNR", "SPADE", "BicubicDownsampling2D", "BicubicUpsampling2D", "GatedPixelCNNBlock",
           "MaskedConv2D", "PolyphaseConv2D", "SPADEResBlock", "SpectralConv2D", "SubPixelConv2D"]
