"""Losses, written with `keras.ops` alone."""

from losses.adversarial import relativistic, standard
from losses.charbonnier import Charbonnier
from losses.energy import PerceptualEnergy, energy_score
from losses.fidelity import Fidelity
from losses.gradient_penalty import gradient_penalty
from losses.grid import grid
from losses.likelihood import bits_per_dimension, cross_entropy
from losses.perceptual import Perceptual
from losses.total_variation import total_variation

__all__ = ["Charbonnier", "Fidelity", "Perceptual", "PerceptualEnergy", "bits_per_dimension", "cross_entropy",
           "energy_score", "gradient_penalty", "grid", "relativistic", "standard", "total_variation"]
