"""Adversarial losses, on the discriminator's logits: what each network minimises, one value a picture."""

from collections.abc import Callable

from keras import ops

from superres.layers.base import Tensor


def standard(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The original adversarial loss: is this picture real?

    Args:
        real: (B, 1) logits of HR pictures; positive means real.
        fake: (B, 1) logits of SR pictures.

    Returns:
        (generator, discriminator), each (B, 1): -log D(SR), and -log D(HR) - log(1 - D(SR))
        with D the sigmoid of the logit. Computed on logits, neither overflows, and the
        generator keeps its gradient however sure the discriminator is.

    Sources: Goodfellow et al., "Generative Adversarial Nets", 2014; Ledig et al., CVPR
    2017, equation 6.
    """
    return ops.softplus(-fake), ops.softplus(-real) + ops.softplus(fake)


def log_sigmoid(t: Tensor) -> Tensor:
    """f(t) = -log(1 + exp(-t)), the concave function of `relativistic` by default."""
    return -ops.softplus(-t)


def relativistic(real: Tensor, fake: Tensor,
                 f: Callable[[Tensor], Tensor] = log_sigmoid) -> tuple[Tensor, Tensor]:
    """The relativistic paired loss: is this picture more real than its counterpart?

    Args:
        real: (B, 1) logits of HR pictures.
        fake: (B, 1) logits of the SR pictures made from the same LR.
        f: A concave function.

    Returns:
        (generator, discriminator), each (B, 1): -f(fake - real) and -f(real - fake).

    Source: Jolicoeur-Martineau, "On Relativistic f-Divergences", 2020, section 3.
    """
    return -f(fake - real), -f(real - fake)
