"""Start a training from the weights of another network."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from superres.errors import InputError
from superres.models.upscaler import load


def start_from(network: keras.Model, settings: Any, new: tuple[type, ...] = (),
               adapt: Callable[[dict, keras.Model], dict] = lambda given, network: given) -> None:
    """Take the weights of the network that `settings.start` names, if it names one.

    Args:
        settings: With `start` and `start_partial`.
        new: See `take_weights`.
        adapt: What makes a dict for `take_weights` out of those weights and the network.
    """
    if settings.start:
        given = adapt(weights_of(load(settings.start)), network)
        take_weights(network, given, settings.start_partial, new)


def take_weights(network: keras.Model, given: dict[str, list[np.ndarray]], partial: bool = False,
                 new: tuple[type, ...] = ()) -> None:
    """Copy weights from another network, layer by layer, and say how many.

    A layer takes the weights of its namesake where they have its shapes; networks whose
    shapes are the same throughout need no names in common.

    Args:
        given: Dict of layer name -> list of weights, such as `weights_of` a network.
        partial: Whether layers that find no weights may keep theirs.
        new: Classes of layers that may keep theirs in any case.

    Raises:
        InputError: if no layer finds weights, or one does not that should.
    """
    layers = dict(_layers(network))
    if [*map(_shapes, given.values())] == [_shapes(layer.get_weights()) for layer in layers.values()]:
        given = dict(zip(layers, given.values(), strict=True))
    taken = [name for name, layer in layers.items()
             if _shapes(given.get(name, [])) == _shapes(layer.get_weights())]
    missing = [name for name, layer in layers.items() if name not in taken and not isinstance(layer, new)]
    if not taken:
        raise InputError(f"start: the network has no layer in common with {network.name}")
    if missing and not partial:
        raise InputError(
            f"start: only {len(taken)} of {len(layers)} layers find weights of their shape in it, "
            f"{missing[0]} does not; --start-partial takes what there is and trains the others anew")
    for name in taken:
        layers[name].set_weights(given[name])
    counts = [sum(layers[name].count_params() for name in names) for names in (taken, layers)]
    print(f"start: took {len(taken)} of {len(layers)} layers, {counts[0]:,} of {counts[1]:,} weights")


def weights_of(network: keras.Model) -> dict[str, list[np.ndarray]]:
    """Dict of layer name -> list of its weights; of a network within, `network/layer`."""
    return {name: layer.get_weights() for name, layer in _layers(network)}


def _layers(network, prefix=""):
    """(name, layer) of every layer with weights."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer, f"{prefix}{layer.name}/")
        elif layer.weights:
            yield prefix + layer.name, layer


def _shapes(weights):
    return [w.shape for w in weights]
