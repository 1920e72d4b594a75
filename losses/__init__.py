"""Losses, written with `keras.ops` alone."""

from losses.charbonnier import Charbonnier
from losses.likelihood import bits_per_dimension, cross_entropy
from losses.perceptual import Perceptual

__all__ = ["Charbonnier", "Perceptual", "bits_per_dimension", "cross_entropy"]
