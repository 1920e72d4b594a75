"""Four super-resolution systems in Keras 3 and TensorFlow, reproduced and mended.

The folder of this file is the package: `superres.models` is `models/`, and so on.
"""
