"""Losses, written with `keras.ops` alone."""

from superres.losses.adversarial import relativistic, standard
from superres.losses.charbonnier import Charbonnier
from superres.losses.energy import PerceptualEnergy, energy_score
from superres.losses.fidelity import Fidelity
from superres.losses.gradient_penalty import gradient_penalty
from superres.losses.grid import grid, shifted
from superres.losses.likelihood import bits_per_dimension, cross_entropy
from superres.losses.perceptual import Perceptual
from superres.losses.total_variation import total_variation

__all__ = ["Charbonnier", "Fidelity", "Perceptual", "PerceptualEnergy", "bits_per_dimension", "cross_entropy",
           "energy_score", "gradient_penalty", "grid", "relativistic", "shifted", "standard",
           "total_variation"]
