"""Training batches by number: what makes a stopped training go on to the bit."""

from collections.abc import Callable

import tensorflow as tf


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

    numbers = tf.data.Dataset.range(start, 2**62)
    return numbers.map(load, num_parallel_calls=2, deterministic=True).prefetch(8)
