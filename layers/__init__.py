"""Custom Keras layers, written with `keras.ops` alone."""

from superres.layers.batch_norm import batch_norm
from superres.layers.biased_silu import BiasedSiLU
from superres.layers.bicubic import BicubicDownsampling2D, BicubicUpsampling2D, ConsistentPicture
from superres.layers.gated_pixelcnn import GatedPixelCNNBlock
from superres.layers.masked_conv import MaskedConv2D
from superres.layers.noise import NoiseInjection
from superres.layers.polyphase import PolyphaseConv2D
from superres.layers.reflected_conv import ReflectedConv2D
from superres.layers.resize import (
    BilinearDownsampling2D,
    BilinearUpsampling2D,
    BinomialBlur2D,
    PixelShuffle2D,
    PixelUnshuffle2D,
)
from superres.layers.spade import SPADE, SPADEResBlock
from superres.layers.spectral_conv import SpectralConv2D
from superres.layers.subpixel import ICNR, SubPixelConv2D

__all__ = ["ICNR", "SPADE", "BiasedSiLU", "BicubicDownsampling2D", "BicubicUpsampling2D",
           "BilinearDownsampling2D", "BilinearUpsampling2D", "BinomialBlur2D", "ConsistentPicture",
           "GatedPixelCNNBlock", "MaskedConv2D", "NoiseInjection", "PixelShuffle2D", "PixelUnshuffle2D",
           "PolyphaseConv2D", "ReflectedConv2D", "SPADEResBlock", "SpectralConv2D", "SubPixelConv2D",
           "batch_norm"]
