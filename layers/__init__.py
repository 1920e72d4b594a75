"""Custom Keras layers, written with `keras.ops` alone."""

from layers.batch_norm import batch_norm
from layers.biased_silu import BiasedSiLU
from layers.bicubic import BicubicDownsampling2D, BicubicUpsampling2D, ConsistentPicture
from layers.gated_pixelcnn import GatedPixelCNNBlock
from layers.masked_conv import MaskedConv2D
from layers.noise import NoiseInjection
from layers.polyphase import PolyphaseConv2D
from layers.reflected_conv import ReflectedConv2D
from layers.resize import (
    BilinearDownsampling2D,
    BilinearUpsampling2D,
    BinomialBlur2D,
    PixelShuffle2D,
    PixelUnshuffle2D,
)
from layers.spade import SPADE, SPADEResBlock
from layers.spectral_conv import SpectralConv2D
from layers.subpixel import ICNR, SubPixelConv2D

__all__ = ["ICNR", "SPADE", "BiasedSiLU", "BicubicDownsampling2D", "BicubicUpsampling2D",
           "BilinearDownsampling2D", "BilinearUpsampling2D", "BinomialBlur2D", "ConsistentPicture",
           "GatedPixelCNNBlock", "MaskedConv2D", "NoiseInjection", "PixelShuffle2D", "PixelUnshuffle2D",
           "PolyphaseConv2D", "ReflectedConv2D", "SPADEResBlock", "SpectralConv2D", "SubPixelConv2D",
           "batch_norm"]
