"""Training batches by number: what makes a stopped training go on to the bit."""

import contextlib
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from superres.errors import InputError


def numbered_batches(get: Callable[[int], tuple], start: int = 0) -> tf.data.Dataset:
    """An endless `tf.data.Dataset` of get(start), get(start + 1), ...

    Args:
        get: Function of a batch's number alone that returns arrays in any structure of
            tuples, of the same shapes for every number.
        start: Number of the first batch.
    """
    first = get(start)
    arrays = tf.nest.flatten(first)

    def load(number):
        batch = tf.numpy_function(
            lambda n: tf.nest.flatten(get(int(n))), [number], [a.dtype for a in arrays]
        )
        for tensor, array in zip(batch, arrays, strict=True):
            tensor.set_shape(array.shape)
        return tf.nest.pack_sequence_as(first, batch)

    options = tf.data.Options()
    options.autotune.enabled = False  # its thread can keep an iterator's end, and the program, for a minute
    batches = tf.data.Dataset.range(start, 2**62).map(load, num_parallel_calls=2, deterministic=True)
    return batches.prefetch(8).with_options(options)


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """An `InputError` within a dataset, such as that of a damaged file, comes out of it as one."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:  # what TensorFlow makes of it
        if found := re.search(r"InputError: (.*)", error.message):
            raise InputError(found[1]) from None
        raise
