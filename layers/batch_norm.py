"""Batch normalisation with the statistics of all devices together."""

import keras


def batch_norm(**kwargs) -> keras.layers.BatchNormalization:
    """`keras.layers.BatchNormalization`, synchronised where Keras can: on TensorFlow."""
    return keras.layers.BatchNormalization(synchronized=keras.backend.backend() == "tensorflow", **kwargs)
