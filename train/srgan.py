"""Train SRGAN: a warm-up on pixels, then adversarial training against the discriminator, in one run.

    python train/srgan.py reported --data FOLDER      the report's settings, x2
    python train/srgan.py paper --data FOLDER         the paper's, x4: weeks without a GPU
    python train/srgan.py improved --data FOLDER      the report's faults mended, x4
    python train/srgan.py improved-x2 --data FOLDER   the same for x2
    python train/srgan.py quick                       minutes on two CPU cores, no data needed

Sources: Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative
Adversarial Network", CVPR 2017 (the paper), and the report "Image Super-Resolution using
Generative Adversarial Networks", whose sections the comments name.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses
from collections.abc import Callable
from typing import Literal

import keras
import tensorflow as tf

from superres.datasets.degradations import degraded
from superres.datasets.patches import Patches, split_pictures
from superres.errors import InputError, check_range
from superres.losses import Fidelity, Perceptual, grid, relativistic, shifted, standard, total_variation
from superres.metrics.report import evaluate, table
from superres.models.srgan import discriminator, generator, start_as_interpolation
from superres.models.upscaler import Upscaler, load
from superres.train.devices import strategy
from superres.train.gan import GANTrainer, GANValidation, gradient_norm, penalised
from superres.train.loop import RunSettings, averaging, descend, fit, minimised
from superres.train.optimisers import TwoPhases
from superres.train.start import start_from
from superres.train.validation import PictureValidation


@dataclasses.dataclass
class Settings:
    """SRGAN."""

    # Data (2)
    data: tuple[str, ...] = ()
    """Where HR pictures come from: folders, shards (FOLDER/*.tfrecord) or names of the catalogue."""
    scale: Literal[2, 4, 8] = 4
    """HR's size over LR's."""
    val_pictures: int = 5
    """Pictures held out and measured after every epoch."""
    test_pictures: int = 5
    """Pictures held out for the table at the end."""
    crop: int = 96
    """Size of an HR patch in pixels."""
    batch: int = 16
    """Patches a batch, over all devices together."""

    # Networks (3.2)
    blocks: int = 5
    """Residual blocks of the generator; the paper has 16."""
    prelu: Literal["scalar", "channel"] = "scalar"
    """Slopes of a PReLU: one, or one for each channel (the paper)."""
    initial: Literal["xavier", "interpolation"] = "xavier"
    """The generator's weights at the start: random, or such that it interpolates."""
    head: Literal["average", "dense"] = "average"
    """The discriminator's: averages over the picture, or dense over all positions (the paper)."""
    norm: Literal["batch", "spectral"] = "batch"
    """The discriminator's: of its features, or of its kernels, which bounds its slope."""
    frozen_norm: bool = False
    """In adversarial training, normalise with the warm-up's statistics, as the network will when it is
    used, not with the batch's."""

    # Loss of the generator (4.1): the warm-up has the pixels' alone, adversarial training the sum of these
    pixel: float = 1.0
    """Weight of the pixels' loss in adversarial training."""
    pixel_loss: Literal["mse", "l1"] = "mse"
    """Mean of squared differences on [-1, 1], where tanh and the paper have the pixels, or of absolute ones
    on [0, 1]."""
    vgg: float = 0.0
    """Weight of the mean squared difference of VGG's features."""
    vgg_scale: Literal["paper", "relative"] = "paper"
    """The features, at the size that ImageNet's have, times 1 / 12.75 (`losses.Perceptual`), or the
    difference relative to the features of HR."""
    vgg_layer: str = "block2_conv2"
    """The layer: block2_conv2 is the paper's VGG22, block5_conv4 its VGG54."""
    vgg_activated: bool = True
    """Features after the activation (the paper), or before it (ESRGAN)."""
    vgg_weights: str = "imagenet"
    """`imagenet` (VGG19, downloaded by Keras), or a file of VGG19 (.h5, .npz) or VGG16 weights (.npz)."""
    adversarial: float = 1e-3
    """Weight of the adversarial loss."""
    adversarial_loss: Literal["standard", "relativistic"] = "standard"
    """Is this picture real, or is it more real than its counterpart?"""
    variation: float = 0.0
    """Weight of the total variation."""
    fidelity: float = 0.0
    """Weight of |LR - shrunk SR|, which holds colours fast."""
    grid: float = 0.0
    """Weight of the difference between the phases' means, the grid that sub-pixel convolutions draw."""
    grid_window: int = 0
    """Size of the windows that it is measured in, in LR pixels; 0: the whole patch."""
    shift: bool = False
    """VGG and the discriminator see pictures from another pixel on at every step, so that their strides
    draw no grid."""

    # Loss of the discriminator
    r1: float = 0.0
    """Weight of the gradient penalty on HR, which keeps the discriminator from running away."""

    # Optimisation (5.2)
    start: str = ""
    """A saved generator to start from; with --warm-up 0, adversarial training begins at once."""
    start_partial: bool = False
    """Start from a generator that has only a part of the layers, such as one of another scale."""
    scratch: bool = False
    """Allow adversarial training of an untrained generator, with --warm-up 0 and no start. It does not
    converge."""
    warm_up: int = 10
    """Epochs on pixels alone."""
    epochs: int = 40
    """Epochs of adversarial training after it; 0 trains the generator alone (SRResNet)."""
    steps: int = 50
    """Steps an epoch."""
    warm_up_rate: float = 1e-4
    """Adam's learning rate at the start of the warm-up."""
    learning_rate: float = 1e-4
    """Adam's learning rate at the start of adversarial training, for both networks."""
    beta_2: float = 0.9999
    """Adam's; beta_1 is 0.9."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """Of both phases: constant; a tenth for the second half of adversarial training (the paper); to zero as
    a cosine."""
    ema: float = 0.0
    """Momentum of a running average of the generator's weights, which then is what is saved; 0: none."""

    run: RunSettings = dataclasses.field(default_factory=RunSettings)


# The report's loss table gives 0.0041 for "perceptual loss", which its section 4.1.1
# calls the per-pixel loss. Its epoch is taken to be one crop of each of DIV2K's 800 pictures.
# What the loss's terms weigh after a warm-up (srresnet-x2 on Set5): VGG 9e-3 to 3e-2, pixels 3e-6 to
# 1e-5, adversarial 7e-4. Unit-mean features taken as they are would leave VGG 8e-7 to 3e-6.
REPORTED = Settings(scale=2, pixel=0.0041, vgg=0.001)
PAPER = Settings(blocks=16, prelu="channel", head="dense", pixel=0.0, vgg=1.0, vgg_layer="block5_conv4",
                 warm_up=1000, epochs=200, steps=1000, beta_2=0.999, schedule="step")
# Adversarial training is short: the discriminator wins a longer one, and what five blocks then invent
# lies further from HR again (weights/README.md). The discriminator's slope is bounded, VGG
# compares before the activation (ESRGAN, section 3.2), and neither can tell where a pixel lies within an LR
# pixel. Over a whole patch the grid term lets a hatching pass that is another in every region; windows of 4
# LR pixels do not.
IMPROVED = Settings(
    crop=64, initial="interpolation", norm="spectral", frozen_norm=True, pixel=0.3, pixel_loss="l1", vgg=1.0,
    vgg_scale="relative", vgg_layer="block3_conv1", vgg_activated=False, adversarial=5e-3,
    adversarial_loss="relativistic", fidelity=1.0, grid=20.0, grid_window=4, shift=True, warm_up=24, epochs=6,
    steps=250, warm_up_rate=4e-4, beta_2=0.99, schedule="cosine", ema=0.999,
    run=RunSettings(precision="auto"),
)
IMPROVED_X2 = dataclasses.replace(IMPROVED, scale=2, crop=48, warm_up=16)
PRESETS = {
    "reported": ("The report's x2: weights of its table, 40 epochs.", REPORTED),
    "paper": ("The paper's x4: 16 blocks, VGG54.", PAPER),
    "improved": ("x4: from an interpolation, relativistic, colours held fast, averaged weights.", IMPROVED),
    "improved-x2": ("x2: the same.", IMPROVED_X2),
    "quick": ("A small x2 network on photographs that scikit-image ships, without VGG.",
              dataclasses.replace(IMPROVED_X2, data=("photos",), blocks=2, vgg=0.0, warm_up=10, epochs=2,
                                  steps=50, ema=0.99, val_pictures=1, test_pictures=0, run=RunSettings())),
}


class SRGANTrainer(GANTrainer):
    """Trains `network`, the generator, and `discriminator` on batches (lr, (hr,)).

    Until `discriminator_active`, on the pixels' loss alone.

    Args:
        network: The generator.
        discriminator: From pictures to logits (B, 1).
        terms: Dict of name -> (weight, function of (lr, hr, sr, seen)) of the generator's loss,
            with `"pixel"` among them. Functions give one value a picture; seen is what the
            discriminator sees of HR and SR.
        adversarial_loss: `losses.standard` or `losses.relativistic`.
        adversarial: Weight of the adversarial loss.
        r1: Weight of the discriminator's gradient penalty on HR.
        shift: The scale, where the discriminator sees `shifted` pictures; 0: whole ones.
        frozen_norm: Whether the generator's normalisations keep their statistics with the discriminator.
    """

    def __init__(self, network: Upscaler, discriminator: keras.Model,
                 terms: dict[str, tuple[float, Callable[..., tf.Tensor]]],
                 adversarial_loss: Callable[..., tuple[tf.Tensor, tf.Tensor]], adversarial: float,
                 r1: float = 0.0, shift: int = 0, frozen_norm: bool = False, **kwargs) -> None:
        names = ("loss", *terms, "adversarial", "discriminator", "r1", "accuracy", "generator_gradient",
                 "discriminator_gradient")
        super().__init__(network, discriminator, names, **kwargs)
        self.terms, self.adversarial_loss, self.adversarial = terms, adversarial_loss, adversarial
        self.r1, self.shift, self.frozen_norm, self.discriminator_active = r1, shift, frozen_norm, False

    def train_step(self, batch: tuple) -> dict[str, tf.Tensor]:
        lr, (hr,) = batch
        with tf.GradientTape() as tape, tf.GradientTape() as discriminator_tape:
            sr = self.network(lr, training=not (self.discriminator_active and self.frozen_norm))
            terms = self.terms if self.discriminator_active else {"pixel": (1, self.terms["pixel"][1])}
            seen = shifted((hr, sr), self.shift, self.optimizer.iterations) if self.shift else (hr, sr)
            shown = {name: tf.reduce_mean(term(lr, hr, sr, seen)) for name, (_, term) in terms.items()}
            loss = sum(weight * shown[name] for name, (weight, _) in terms.items())
            if self.discriminator_active:
                real, penalty = penalised(self.discriminator, seen[0], bool(self.r1))
                fake = self.discriminator(seen[1], training=True)
                shown["adversarial"], shown["discriminator"] = map(
                    tf.reduce_mean, self.adversarial_loss(real, fake))
                loss += self.adversarial * shown["adversarial"]
                discriminator_loss = shown["discriminator"]
                if self.r1:
                    shown["r1"] = penalty
                    discriminator_loss += self.r1 * penalty
                discriminator_loss = minimised(self.discriminator_optimizer, discriminator_loss)
            generator_loss = minimised(self.optimizer, loss)
        shown["loss"] = loss

        # Both networks answer to each other as they were: one pass through the discriminator
        # serves both gradients.
        variables = self.network.trainable_variables
        gradients = tape.gradient(generator_loss, variables)
        if self.discriminator_active:
            others = self.discriminator.trainable_variables
            other_gradients = discriminator_tape.gradient(discriminator_loss, others)
            shown["accuracy"] = tf.reduce_mean(tf.cast(real > fake, "float32"))
            shown["discriminator_gradient"] = gradient_norm(self.discriminator_optimizer, other_gradients)
            descend(self.discriminator_optimizer, other_gradients, others)
        shown["generator_gradient"] = gradient_norm(self.optimizer, gradients)
        descend(self.optimizer, gradients, variables)
        return self.averaged(shown)


class Phases(keras.callbacks.Callback):
    """Lets the discriminator join after so many epochs of warm-up."""

    def __init__(self, warm_up: int) -> None:
        super().__init__()
        self.warm_up = warm_up

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        active = epoch >= self.warm_up
        if active != self.model.discriminator_active:
            self.model.discriminator_active = active
            self.model.make_train_function(force=True)


def schedules(settings: Settings) -> tuple[TwoPhases, keras.optimizers.schedules.LearningRateSchedule]:
    """Learning rates of the generator and of the discriminator, which joins later."""
    schedules = keras.optimizers.schedules
    warm_up, adversarial_steps = settings.warm_up * settings.steps, max(1, settings.epochs * settings.steps)

    def constant(rate):
        return schedules.PiecewiseConstantDecay([0], [rate, rate])

    def adversarial():
        if settings.schedule == "cosine":
            return schedules.CosineDecay(settings.learning_rate, adversarial_steps)
        if settings.schedule == "step":
            return schedules.PiecewiseConstantDecay(
                [adversarial_steps // 2 - 1], [settings.learning_rate, settings.learning_rate / 10])
        return constant(settings.learning_rate)

    warming = (schedules.CosineDecay(settings.warm_up_rate, max(1, warm_up)) if settings.schedule == "cosine"
               else constant(settings.warm_up_rate))
    return TwoPhases(warming, adversarial(), warm_up), adversarial()


def trainer(settings: Settings) -> SRGANTrainer:
    """The compiled trainer that the settings describe."""
    network = generator(settings.scale, settings.blocks, prelu=settings.prelu)
    if settings.initial == "interpolation":
        start_as_interpolation(network)
    start_from(network, settings)
    terms = {"pixel": (settings.pixel, {"mse": _mse, "l1": _l1}[settings.pixel_loss])}
    if settings.vgg:
        perceptual = Perceptual(settings.vgg_layer, settings.vgg_weights, settings.vgg_scale,
                                settings.vgg_activated)
        terms["vgg"] = (settings.vgg, lambda lr, hr, sr, seen: perceptual.call(*seen))
    if settings.variation:
        terms["variation"] = (settings.variation, lambda lr, hr, sr, seen: total_variation(sr))
    if settings.fidelity:
        fidelity = Fidelity(settings.scale)
        terms["fidelity"] = (settings.fidelity, lambda lr, hr, sr, seen: fidelity.call(lr, sr))
    if settings.grid:
        terms["grid"] = (settings.grid, lambda lr, hr, sr, seen: grid(
            hr, sr, settings.scale, settings.grid_window))
    shift = settings.scale if settings.shift else 0
    model = SRGANTrainer(
        network, discriminator(size=settings.crop - shift if settings.head == "dense" else None,
                               norm=settings.norm),
        terms, {"standard": standard, "relativistic": relativistic}[settings.adversarial_loss],
        settings.adversarial, settings.r1, shift, settings.frozen_norm,
    )
    rate, discriminator_rate = schedules(settings)
    model.compile(
        keras.optimizers.Adam(rate, beta_2=settings.beta_2, **averaging(settings.ema)),
        keras.optimizers.Adam(discriminator_rate, beta_2=settings.beta_2),
    )
    return model


def _mse(lr, hr, sr, seen):
    return tf.reduce_mean(tf.square(2 * (hr - sr)), (1, 2, 3))


def _l1(lr, hr, sr, seen):
    return tf.reduce_mean(tf.abs(hr - sr), (1, 2, 3))


def main(preset: str, settings: Settings) -> None:
    """Train, then print the table of the held-out pictures: test, or validation where there is no test.

    PRESET --help explains every setting.
    """
    numbers = vars(settings)
    check_range(numbers, "batch", "steps", least=1)
    check_range(numbers, "blocks", "warm_up", "epochs", "warm_up_rate", "learning_rate", least=0)
    check_range(numbers, "pixel", "vgg", "adversarial", "variation", "fidelity", "grid", "r1", least=0)
    check_range(numbers, "ema", least=0, below=1)
    if settings.crop < settings.scale or settings.crop % settings.scale:
        raise InputError(f"crop: {settings.crop} is no multiple of the scale, {settings.scale}")
    check_range(numbers, "grid_window", least=0, below=settings.crop // settings.scale + 1)
    # What VGG19 halves four times, or what can be shrunk
    least = (16 if settings.vgg else 2 * settings.scale) + (settings.scale if settings.shift else 0)
    check_range(numbers, "crop", least=least)
    if settings.epochs and not (settings.warm_up or settings.start or settings.scratch):
        raise InputError("warm_up: adversarial training of an untrained generator does not converge; give "
                         "--start a network, or --scratch to try")
    if not (settings.warm_up or settings.epochs):
        raise InputError("warm_up, epochs: nothing to train, both are 0")
    settings.run.check()
    distribution = strategy(settings.run.replicas, settings.run.workers)
    train, val, test = split_pictures(settings.data, settings.val_pictures, settings.test_pictures,
                                      settings.run.seed)
    val, test = (list(degraded(part, settings.scale, "bicubic")) for part in (val, test))
    patches = Patches(train, settings.scale, settings.crop // settings.scale, settings.batch,
                      seed=settings.run.seed, cache=settings.run.cache)
    validation = (GANValidation(val, settings.warm_up, settings.steps) if settings.epochs
                  else PictureValidation(val))
    run = settings.run
    if settings.epochs and not run.snapshots:  # what is compared: the warm-up, and each quarter of the rest
        quarters = {settings.warm_up + settings.epochs * k // 4 for k in range(5)} - {0}
        run = dataclasses.replace(run, snapshots=tuple(sorted(q * settings.steps for q in quarters)))
    folder = fit(
        distribution, trainer, patches, validation, settings,
        held_out=[name for name, _, _ in val + test], run=run, paper="srgan", preset=preset,
        epochs=settings.warm_up + settings.epochs, steps=settings.steps,
        callbacks=[Phases(settings.warm_up)],
    )
    if folder:
        print(table(evaluate(load(folder / "model.keras"), test or val)))


def cli() -> None:
    command(main, PRESETS)


if __name__ == "__main__":
    cli()
