"""Zero-centred gradient penalties on a discriminator."""

from keras import ops

from superres.layers.base import Tensor


def gradient_penalty(gradient: Tensor) -> Tensor:
    """Half the squared norm of a logit's gradient, summed over the picture.

    On HR pictures it is called R1, on SR pictures R2. It holds the discriminator flat where
    the pictures are; nothing draws the norm towards one.

    Args:
        gradient: (B, H, W, C), of each picture's logit with respect to the picture, in
            [0, 1]. Values in 0..255 have a gradient 255 times smaller.

    Returns:
        (B,), to be weighted by gamma.

    Source: Mescheder, Geiger and Nowozin, "Which Training Methods for GANs do actually
    Converge?", ICML 2018, equation 9.
    """
    return 0.5 * ops.sum(ops.square(gradient), axis=(1, 2, 3))
