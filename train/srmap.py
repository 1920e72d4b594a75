"""Train SRMAP: a generator on L1 first, then MAP, against a relativistic discriminator and for fidelity.

    python train/srmap.py pretrain-l1 --data FOLDER    the generator alone, on L1
    python train/srmap.py reported --data FOLDER --start runs/srmap/pretrain-l1/model.keras
    python train/srmap.py improved --data FOLDER --start runs/srmap/pretrain-l1/model.keras
    python train/srmap.py quick                        minutes on two CPU cores, no data needed

`--size reduced --crop 96` trains networks of a size for two CPU cores. `improved` compares
features of VGG19, whose weights `--vgg-weights FILE` names, or which are downloaded; `--vgg 0`
does without.

Source: the report "Explicit MAP Optimization for Photo-Realistic Super Resolution", whose
sections and equations the comments name. What it leaves open is as in its authors' code, and
is marked so.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses
from typing import Literal

import keras
import tensorflow as tf

from superres.datasets.degradations import degraded
from superres.datasets.patches import NoisyPatches, split_pictures
from superres.errors import InputError, check_range
from superres.layers import NoiseInjection
from superres.losses import Fidelity, PerceptualEnergy, energy_score, relativistic, shifted
from superres.metrics.report import evaluate, table
from superres.models.srmap import CRITIC_WIDTHS, SIZES, crop_of, discriminator, generator
from superres.models.upscaler import Upscaler, load
from superres.train.devices import is_chief, strategy
from superres.train.gan import GANTrainer, GANValidation, TrainingSamples, gradient_norm, penalised
from superres.train.loop import RunSettings, averaging, descend, fit, minimised, run_folder
from superres.train.start import start_from
from superres.train.validation import PictureValidation


@dataclasses.dataclass
class Settings:
    """SRMAP."""

    # Data (3)
    data: tuple[str, ...] = ()
    """Where HR pictures come from: folders, shards (FOLDER/*.tfrecord) or names of the catalogue."""
    scale: Literal[2, 4] = 4
    """HR's size over LR's."""
    val_pictures: int = 5
    """Pictures held out and measured after every epoch."""
    test_pictures: int = 5
    """Pictures held out for the table at the end."""
    crop: int = 192
    """Size of an HR patch in pixels: 192 for the full discriminator, 96 for the reduced one."""
    batch: int = 64
    """Patches a batch, over all devices together. In adversarial training, one half trains the generator,
    the other the discriminator."""
    accumulate: int = 1
    """Compute a step's gradients in so many parts, one after another: less memory, the same step."""

    # Networks (3, appendix)
    size: Literal["full", "reduced"] = "full"
    """The report's networks (21 million parameters each; mirrored padding, initial values and the order
    of their layers: authors' code), or small ones (1.7 and 0.7 million)."""
    noise: bool = True
    """Noise in every block of the generator."""
    initial_noise: float = 0.0
    """What the noise's learned scales start from."""
    noise_cell: int = 1
    """How many pixels apart the noise at LR's size is drawn."""
    consistent: bool = False
    """Project SR onto the pictures that shrink to LR."""

    # Loss of the generator (equations 3 to 6)
    l1: float = 0.0
    """Weight of |HR - SR|."""
    energy: float = 0.0
    """Weight of the energy score of two samples, which wants them as far apart as from the truth."""
    vgg: float = 0.0
    """Weight of the same score of features of VGG19: `losses.PerceptualEnergy`."""
    vgg_weights: str = "imagenet"
    """VGG19's weights: "imagenet" (downloaded), or a file as `losses.Perceptual` takes it."""
    fidelity: float = 2550.0
    """Weight alpha of |LR - shrunk SR|: 10 (authors' code) is for 0..255."""
    adversarial: float = 1.0
    """Weight of the adversarial loss; 0 trains the generator alone."""

    # Loss of the discriminator (equation 7)
    r1: float = 1.54e-4
    """Weight gamma of the gradient penalty on HR: 10 (authors' code) is for 0..255."""
    r2: float = 0.0
    """Weight of the same penalty on SR."""
    reuse: bool = True
    """Show the discriminator the SR that trains the generator, beside HR of the other half (3). Otherwise
    SR is drawn anew for the other half, one more pass of the generator a step."""

    # Optimisation
    start: str = ""
    """A saved generator to start from, such as that of pretrain-l1."""
    start_partial: bool = False
    """Start from a generator that has only a part of the layers, such as one of another scale."""
    scratch: bool = False
    """Train without L1 and without a start all the same: it does not converge (3)."""
    epochs: int = 200
    """Epochs (3). The report's plots show the first steps at half the rate (4), which more epochs take."""
    steps: int = 500
    """Steps an epoch (authors' code)."""
    learning_rate: float = 2e-5
    """Adam's, of both networks (authors' code)."""
    beta_2: float = 0.99
    """Adam's (authors' code); beta_1 is 0.9."""
    halve: int = 200
    """Halve the learning rates after so many epochs (4); 0: never."""
    ema: float = 0.999
    """Momentum of the running average of the generator's weights that is measured and saved (authors'
    code); 0: none."""
    sample_every: int = 10
    """Draw samples of the weights as they are after every so many steps; 0: only after epochs."""

    run: RunSettings = dataclasses.field(default_factory=RunSettings)


OBJECTIVES = ("l1", "energy", "vgg", "fidelity", "adversarial")  # of the generator

REPORTED = Settings()
# Batch, rate and epochs: authors' code; the report has batches of 64 here too, and 10 hours.
PRETRAIN = Settings(noise=False, l1=1.0, fidelity=0.0, adversarial=0.0, batch=16, epochs=400,
                    learning_rate=1e-4, beta_2=0.999, ema=0.0, sample_every=0)
# The penalties hold the discriminator back on a few hundred pictures, which it soon knows by heart. SR
# that is reused saves a pass of the generator a step, but stands beside HR of other pictures, whose
# contents differ by more than real and fake do: a paired loss wants SR of the same LR, drawn anew.
# The weights 200, 60 and 5 were chosen among the trials that weights/README.md lists.
IMPROVED = Settings(initial_noise=0.2, noise_cell=4, consistent=True, energy=200.0, vgg=60.0,
                    fidelity=0.0, adversarial=5.0, r1=0.03, r2=0.03, reuse=False, epochs=400,
                    run=RunSettings(precision="auto"))
PRESETS = {
    "pretrain-l1": ("The generator on L1, from which adversarial training starts.", PRETRAIN),
    "reported": ("The report's adversarial training.", REPORTED),
    "improved": ("Exactly consistent with LR, and diverse.", IMPROVED),
    "quick": ("Small networks, 100 steps of all losses at once, on photographs that scikit-image ships.",
              dataclasses.replace(IMPROVED, data=("photos",), size="reduced", crop=96, batch=4, l1=200.0,
                                  vgg=0.0, adversarial=1.0, epochs=4, steps=25, learning_rate=1e-4, ema=0.9,
                                  val_pictures=1, test_pictures=0, run=RunSettings())),
}


class SRMAPTrainer(GANTrainer):
    """Trains `network`, the generator, and `discriminator` on batches ((lr, seeds), (hr,)).

    Args:
        network: The generator.
        discriminator: From pictures to logits (B, 1); None trains the generator alone.
        weights: Dict of the weights of `OBJECTIVES`, "r1" and "r2".
        scale: HR's size over LR's.
        perceptual: `losses.PerceptualEnergy`, where "vgg" has a weight.
        parts: How many parts the gradients are computed in.
        reuse: Show the discriminator the SR that trains the generator, beside HR of other pictures.
    """

    def __init__(self, network: Upscaler, discriminator: keras.Model | None, weights: dict[str, float],
                 scale: int, perceptual: PerceptualEnergy | None = None, parts: int = 1, reuse: bool = False,
                 **kwargs) -> None:
        weights = {key: value for key, value in weights.items() if value}
        names = ["loss", "fidelity", *weights]
        if discriminator:
            names += ["discriminator", "accuracy", "generator_gradient", "discriminator_gradient"]
        super().__init__(network, discriminator, names, **kwargs)
        self.weight, self.parts, self.reuse = weights, parts, reuse
        self.fidelity, self.perceptual = Fidelity(scale), perceptual

    def sample(self, lr: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """SR of a batch; seed (B,)."""
        temperature, origin = tf.ones_like(seed, tf.float32), tf.zeros((tf.shape(seed)[0], 2), tf.int32)
        return self.network(self.network.feed(lr, temperature, seed, origin), training=True)

    def generator_loss(self, lr: tf.Tensor, seeds: tf.Tensor,
                       hr: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor], tf.Tensor]:
        """Equation 6: (loss, dict of its terms, SR)."""
        sr = self.sample(lr, seeds[:, 0])
        shown = {"fidelity": tf.reduce_mean(self.fidelity.call(lr, sr))}  # shown, wanted or not
        if "l1" in self.weight:
            shown["l1"] = tf.reduce_mean(tf.abs(hr - sr))
        if self.weight.keys() & {"energy", "vgg"}:
            pictures = hr, sr, self.sample(lr, seeds[:, 1])
            if "energy" in self.weight:
                shown["energy"] = tf.reduce_mean(energy_score(*pictures))
            if "vgg" in self.weight:
                # Else what the poolings favour in one place of every LR pixel becomes a grid.
                pictures = shifted(pictures, self.fidelity.scale, self.optimizer.iterations)
                shown["vgg"] = tf.reduce_mean(self.perceptual(*pictures))
        if "adversarial" in self.weight:
            real, fake = self.discriminator(hr, training=True), self.discriminator(sr, training=True)
            shown["adversarial"] = tf.reduce_mean(relativistic(real, fake)[0])
        loss = sum(self.weight[name] * value for name, value in shown.items() if name in self.weight)
        return loss, shown, sr

    def discriminator_loss(self, sr: tf.Tensor, hr: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Equation 7, with a penalty on SR too: (loss, dict of its terms)."""
        real, real_penalty = penalised(self.discriminator, hr, "r1" in self.weight)
        fake, fake_penalty = penalised(self.discriminator, sr, "r2" in self.weight)
        shown = {"discriminator": tf.reduce_mean(relativistic(real, fake)[1])}
        loss = shown["discriminator"]
        for name, penalty in (("r1", real_penalty), ("r2", fake_penalty)):
            if name in self.weight:
                shown[name] = penalty
                loss += self.weight[name] * penalty
        shown["accuracy"] = tf.reduce_mean(tf.cast(real > fake, "float32"))
        return loss, shown

    def train_step(self, batch: tuple) -> dict[str, tf.Tensor]:
        (lr, seeds), (hr,) = batch
        sums = None
        for part in zip(*(tf.split(x, self.parts) for x in (lr, seeds, hr)), strict=True):
            with tf.control_dependencies(tf.nest.flatten(sums) if sums else []):  # one after another
                part = [tf.identity(x) for x in part]
            new = self._gradients(*part)
            sums = new if sums is None else tf.nest.map_structure(tf.add, sums, new)
        shown, gradients = sums
        if self.discriminator:
            # Both networks answer to each other as they were.
            optimizers = {"generator": self.optimizer, "discriminator": self.discriminator_optimizer}
            for (name, optimizer), of_one in zip(optimizers.items(), gradients, strict=True):
                shown[f"{name}_gradient"] = gradient_norm(optimizer, of_one)
            descend(self.discriminator_optimizer, gradients[1], self.discriminator.trainable_variables)
        descend(self.optimizer, gradients[0], self.network.trainable_variables)
        return self.averaged(shown)

    def _gradients(self, lr, seeds, hr):
        """What a part of the batch adds to the terms, and to the gradients of each network."""
        # Half of the pictures train one network, half the other.
        half, other = (slice(i, None, 2 if self.discriminator else 1) for i in (0, 1))
        with tf.GradientTape() as tape:
            loss, shown, sr = self.generator_loss(lr[half], seeds[half], hr[half])
            scaled = minimised(self.optimizer, loss / self.parts)
        shown["loss"] = loss
        gradients = [tape.gradient(scaled, self.network.trainable_variables)]
        if self.discriminator:
            if not self.reuse:
                sr = self.sample(lr[other], seeds[other, 0])
            with tf.GradientTape() as tape:
                loss, more = self.discriminator_loss(tf.stop_gradient(sr), hr[other])
                scaled = minimised(self.discriminator_optimizer, loss / self.parts)
            shown |= more
            gradients.append(tape.gradient(scaled, self.discriminator.trainable_variables))
        return tf.nest.map_structure(lambda x: x / self.parts, shown), gradients


def trainer(settings: Settings) -> SRMAPTrainer:
    """The compiled trainer that the settings describe."""
    for_generator, for_discriminator = SIZES[settings.size]
    network = generator(settings.scale, **for_generator, noise=settings.noise,
                        initial_noise=settings.initial_noise, noise_cell=settings.noise_cell,
                        consistent=settings.consistent)
    start_from(network, settings, new=(NoiseInjection,))  # which a generator trained on L1 lacks
    weights = {key: getattr(settings, key) for key in (*OBJECTIVES, "r1", "r2")}
    if not settings.adversarial:
        weights |= {"r1": 0, "r2": 0}
    critic = discriminator(**for_discriminator) if settings.adversarial else None
    perceptual = PerceptualEnergy(settings.vgg_weights) if settings.vgg else None
    model = SRMAPTrainer(network, critic, weights, settings.scale, perceptual, settings.accumulate,
                         settings.reuse)

    def adam(**arguments):
        rate = settings.learning_rate
        if settings.halve:
            rate = keras.optimizers.schedules.PiecewiseConstantDecay(
                [settings.halve * settings.steps - 1], [rate, rate / 2])
        # Epsilon: authors' code.
        return keras.optimizers.Adam(rate, beta_2=settings.beta_2, epsilon=1e-8, **arguments)

    model.compile(adam(**averaging(settings.ema)),
                  adam() if settings.adversarial else None)
    return model


def check(settings: Settings) -> None:
    """Raise InputError for settings that cannot be trained with."""
    numbers = vars(settings)
    settings.run.check()
    check_range(numbers, "batch", "accumulate", "epochs", "steps", "noise_cell", least=1)
    check_range(numbers, "halve", "sample_every", "learning_rate", "initial_noise", *OBJECTIVES, "r1", "r2",
                least=0)
    check_range(numbers, "ema", least=0, below=1)
    if not any(getattr(settings, name) for name in OBJECTIVES):
        raise InputError(f"{', '.join(OBJECTIVES)}: one must have a weight")
    if settings.adversarial:
        needed = crop_of(SIZES[settings.size][1].get("widths", CRITIC_WIDTHS))
        if settings.crop != needed:
            raise InputError(f"crop: the {settings.size} discriminator takes {needed}, not {settings.crop}")
    elif settings.crop % settings.scale or settings.crop < 2 * settings.scale:
        raise InputError(f"crop: {settings.crop} is no multiple of the scale, {settings.scale}, or too small")
    if settings.consistent and settings.crop < 8 * settings.scale:
        raise InputError(f"crop: must be at least {8 * settings.scale} to be consistent, not {settings.crop}")
    if not settings.noise:
        if settings.energy or settings.vgg:
            raise InputError("energy, vgg: need noise, or all samples are the same")
        if settings.initial_noise or settings.noise_cell != 1:
            raise InputError("initial_noise, noise_cell: need noise")
    if settings.adversarial and not (settings.l1 or settings.start or settings.scratch):
        raise InputError(
            "start: adversarial training does not converge from scratch (report, section 3): first "
            f"train/srmap.py pretrain-l1 --data {' '.join(settings.data)} --scale {settings.scale} "
            f"--size {settings.size}, "
            "then --start runs/srmap/pretrain-l1/model.keras; or --scratch")


def main(preset: str, settings: Settings) -> None:
    """Train, then print the table of the held-out pictures: test, or validation where there is no test.

    PRESET --help explains every setting.
    """
    check(settings)
    distribution = strategy(settings.run.replicas, settings.run.workers)
    parts = (2 if settings.adversarial else 1) * settings.accumulate * distribution.num_replicas_in_sync
    if settings.batch % parts:
        raise InputError(f"batch: {settings.batch} does not divide into {parts} parts")
    train, val, test = split_pictures(settings.data, settings.val_pictures, settings.test_pictures,
                                      settings.run.seed)
    val, test = (list(degraded(part, settings.scale, "bicubic")) for part in (val, test))
    patches = NoisyPatches(train, settings.scale, settings.crop // settings.scale, settings.batch,
                           seed=settings.run.seed, cache=settings.run.cache)
    validation = GANValidation(val, 0, settings.steps) if settings.adversarial else PictureValidation(val)
    samples = [TrainingSamples(run_folder(settings.run, "srmap", preset), val, settings.sample_every)
               ] if settings.sample_every and is_chief(distribution) else ()
    folder = fit(
        distribution, trainer, patches, validation, settings,
        held_out=[name for name, _, _ in val + test], run=settings.run,
        paper="srmap", preset=preset, epochs=settings.epochs, steps=settings.steps, callbacks=samples,
    )
    if folder:
        print(table(evaluate(load(folder / "model.keras"), test or val)))


def cli() -> None:
    command(main, PRESETS)


if __name__ == "__main__":
    cli()
