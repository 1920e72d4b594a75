"""What the layers here, and losses and initialisers, have in common: types, and how they are written down."""

import inspect
from typing import Any

import keras

Tensor = Any
"""A tensor of Keras's backend, symbolic or with values, or a numpy array: there is no one type of them."""
Shape = tuple[int | None, ...]
"""What `build` and `compute_output_shape` are told of a tensor: its axes, None where any size will do."""


class Configured:
    """Mixed into a Keras class: `get_config` gives the arguments of its `__init__`, too.

    Each argument that `__init__` names is an attribute of that name, unless the base class's own
    `get_config` knows it. Keras by itself would only write down arguments that are numbers or
    strings, and none at all of a layer that was given an initialiser or a policy of precision.

    Example:
        >>> class Shift(Configured, keras.layers.Layer):
        ...     def __init__(self, by=0.0, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.by = by
        >>> Shift(0.5).get_config()["by"]
        0.5
    """

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        _, *arguments = inspect.signature(type(self).__init__).parameters.values()
        for argument in arguments:
            if argument.kind == argument.POSITIONAL_OR_KEYWORD and argument.name not in config:
                value = getattr(self, argument.name)
                is_object = hasattr(value, "get_config")
                config[argument.name] = keras.saving.serialize_keras_object(value) if is_object else value
        return config


class SameConv2D(keras.layers.Conv2D):
    """`Conv2D` of a picture to one of the same size: (B, H, W, C) -> (B, H, W, filters).

    Args:
        filters: Channels of the output.
        kernel_size: Odd, or a pair of odd numbers.
        **kwargs: Anything `keras.layers.Conv2D` takes but strides, padding, dilation,
            groups and data_format.

    Raises:
        ValueError: for an even kernel, strides, dilation or groups.
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], **kwargs) -> None:
        super().__init__(filters, kernel_size, padding="same", data_format="channels_last", **kwargs)
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")
        if {*self.strides, *self.dilation_rate, self.groups} != {1}:
            raise ValueError("strides, dilation_rate and groups must be 1")

    def get_config(self) -> dict[str, Any]:
        fixed = ("strides", "padding", "dilation_rate", "groups", "data_format")
        return {name: value for name, value in super().get_config().items() if name not in fixed}
