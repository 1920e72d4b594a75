"""Losses, written with `keras.ops` alone."""

from losses.charbonnier import Charbonnier
from losses.perceptual import Perceptual

__all__ = ["Charbonnier", "Perceptual"]
