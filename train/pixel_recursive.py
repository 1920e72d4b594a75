"""Train pixel recursive super resolution, with batch normalisation or SPADE.

    python train/pixel_recursive.py reported --data.source FOLDER --data.crop face
    python train/pixel_recursive.py improved --data.source FOLDER --data.crop face
    python train/pixel_recursive.py corners      the paper's toy proof, no data needed
    python train/pixel_recursive.py quick        minutes on two CPU cores, no data needed

Sources: Dahl, Norouzi and Shlens, "Pixel Recursive Super Resolution", arXiv 1702.00783
(the paper), and the report "Image Super-Resolution with pixel dependency", whose
sections the comments name.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses
from itertools import chain
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from superres.datasets import catalogue
from superres.datasets.likeness import warn_of_likenesses
from superres.datasets.patches import looks
from superres.datasets.pictures import write_picture
from superres.datasets.thumbnails import Crop, Thumbnails
from superres.errors import InputError, check_range
from superres.losses import cross_entropy
from superres.metrics.thumbnails import (
    evaluate_thumbnails,
    likelihood,
    sample_quality,
    thumbnail_sheet,
    thumbnail_table,
)
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.sampler import draws, networks_of
from superres.models.upscaler import ThumbnailUpscaler, load, upscaler
from superres.train.devices import strategy
from superres.train.loop import EpochMean, RunSettings, Trainer, averaging, descend, fit, minimised
from superres.train.optimisers import RMSprop
from superres.train.start import start_from
from superres.train.validation import Validation


@dataclasses.dataclass
class Data:
    """Pictures."""

    source: tuple[str, ...] = ("celeb_a",)
    """Where they come from: folders, shards (FOLDER/*.tfrecord) or names of the catalogue."""
    crop: Crop = "face"
    """The square that is cut out: the largest in the middle, or the face of an aligned CelebA picture."""
    size: int = 8
    """Height and width of LR."""
    scale: Literal[2, 4, 8] = 4
    """HR's size over LR's."""
    channels: Literal[1, 3] = 3
    """3: RGB; 1: grey."""
    flip: bool = False
    """Mirror pictures left to right at random."""
    held_out: int = 10
    """Of folders and shards, which have no test split: one picture in so many is held out."""
    val_pictures: int = 100
    """So many of the held-out pictures are measured after every epoch; the others at the end."""


@dataclasses.dataclass
class Settings:
    """Pixel recursive super resolution."""

    data: Data = dataclasses.field(default_factory=Data)

    # Networks (3.3, 3.4)
    model: Literal["recursive", "independent", "regression"] = "recursive"
    """The sum of both networks; the conditioning network alone, each sub-pixel drawn by
    itself; or the mean of a Gaussian for each sub-pixel."""
    filters: int = 32
    """Channels of the conditioning network."""
    blocks: int = 6
    """Its residual blocks at each resolution."""
    norm: Literal["batch", "spade", "batch+lr"] = "batch"
    """What stands after its convolutions; batch+lr also shows LR to each block."""
    hidden: int = 128
    """SPADE's hidden channels."""
    spectral: bool = True
    """Spectral normalisation of the convolutions in SPADE blocks."""
    slope: float = 0.2
    """Of the LeakyReLU in SPADE blocks; 0: ReLU."""
    transpose_kernel: int = 3
    """Size of its transposed convolutions."""
    prior_filters: int = 32
    """Channels of each stack of the prior network."""
    prior_blocks: int = 20
    """Its gated blocks."""
    prior_head: int = 1024
    """Channels of its 1x1 convolution before the last."""
    conditioned: bool = False
    """Show the conditioning network's features to its gates."""
    initializer: Literal["truncated_normal", "glorot_uniform"] = "glorot_uniform"
    """Of all kernels; truncated_normal: of standard deviation 0.1."""

    # Loss: CE(A + B) + w CE(A)
    conditioning_weight: tuple[float, float] = (1.0, 1.0)
    """w at the start, and after `conditioning_steps`; linear between."""
    conditioning_steps: int = 4000
    """When w has come to its second value."""

    # Optimisation (4.2)
    batch: int = 32
    """Pictures a batch, over all devices together."""
    learning_rate: float = 4e-4
    """RMSProp's at the start."""
    accumulator: float = 1.0
    """RMSProp's mean squared gradient at the start: 1 in TensorFlow 1, 0 in Keras."""
    decay: float = 0.5
    """What the learning rate is multiplied by after every `decay_steps`."""
    decay_steps: int = 500_000
    """Steps at one learning rate."""
    epochs: int = 16
    """Epochs of `steps` steps."""
    steps: int = 250
    """Steps an epoch."""
    ema: float = 0.0
    """Momentum of the running average of the weights that is measured and saved; 0: none."""
    start: str = ""
    """A saved network to start from, of which both networks take their weights."""
    start_partial: bool = False
    """Start from a network that has only a part of the layers, such as one without a prior."""

    run: RunSettings = dataclasses.field(default_factory=RunSettings)


# The checkpoints of the report's tables 2 (cars) and 3 (faces), as far as a run comes. Its runs
# ended after 21,000 steps on faces, which is 42 epochs, and 26,000 on cars: `--epochs 52`.
CHECKPOINTS = (2000, 4000, 8000, 12000, 16000, 19000, 20000, 24000)
REPORTED = Settings(initializer="truncated_normal", epochs=42, steps=500,
                    run=RunSettings(snapshots=CHECKPOINTS))
SHORT = dataclasses.replace(
    REPORTED, data=Data(flip=True), initializer="glorot_uniform", conditioning_weight=(1.0, 0.25), batch=16,
    accumulator=0.0, decay=0.25, decay_steps=1500, epochs=16, steps=250,
    run=RunSettings(precision="auto", snapshots=CHECKPOINTS),
)
# LR in the gates, and a high learning rate for two thirds of the run. The average is over as many
# steps as batch normalisation's own, which it is measured with: over more, the two do not fit.
IMPROVED = dataclasses.replace(SHORT, conditioned=True, ema=0.99, decay_steps=8000, epochs=48)
CORNERS = dataclasses.replace(
    SHORT, data=Data(source=("corners",), scale=2, channels=1), blocks=2, prior_filters=24, prior_blocks=8,
    prior_head=128, conditioning_weight=(1.0, 1.0), epochs=20, steps=100, run=RunSettings(),
)
QUICK = dataclasses.replace(
    SHORT, data=Data(source=("plates",), crop="centre"), blocks=1, prior_blocks=4, prior_head=128,
    epochs=4, steps=60, run=RunSettings(),
)
PRESETS = {
    "reported": ("The paper's network, as the report trained it.", REPORTED),
    # 4x4 and stride 2 are read as the upsampling convolutions' (see `conditioning_network`).
    "reported-spade": ("The report's: SPADE, ReLU, spectral normalisation, 4x4 transposed convolutions.",
                       dataclasses.replace(REPORTED, norm="spade", slope=0.0, transpose_kernel=4)),
    "improved": ("Gates that see LR, a learning rate that falls, CE(A) weighted less and less.", IMPROVED),
    "improved-spade": ("The same with SPADE, at as many parameters as batch normalisation.",
                       dataclasses.replace(IMPROVED, norm="spade", filters=24, hidden=10, spectral=False)),
    "regression": ("The paper's L2 baseline.", dataclasses.replace(SHORT, model="regression")),
    "corners": ("The paper's toy proof: a digit in one of two corners, which LR does not tell.", CORNERS),
    "quick": ("A small network on drawn licence plates.", QUICK),
}


class PixelRecursiveTrainer(Trainer):
    """Trains `network` on batches (lr, hr).

    `network` is a `pixel_recursive` model, or a `conditioning_network` of either head.

    Args:
        weight: (w at the start, w at the end, steps between) of CE(A + B) + w CE(A).
    """

    def __init__(self, network: keras.Model, weight: tuple[float, float, int] = (1.0, 1.0, 1),
                 **kwargs) -> None:
        super().__init__(network, **kwargs)
        self.weight, self.loss_metric = weight, EpochMean(name="loss")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.loss_metric]

    def train_step(self, batch: tuple) -> dict[str, tf.Tensor]:
        lr, hr = batch
        with tf.GradientTape() as tape:
            loss, shown = self.losses_of(lr, hr)
            loss = minimised(self.optimizer, loss)
        variables = self.network.trainable_variables
        descend(self.optimizer, tape.gradient(loss, variables), variables)
        self.loss_metric.update_state(shown)
        return self.get_metrics_result()

    def losses_of(self, lr: tf.Tensor, hr: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(what is minimised, what is shown): nats and bits per dimension, or the mean square error."""
        if not networks_of(self.network)[1]:
            output = self.network(lr, training=True)
            if not draws(self.network):
                loss = ops.mean(ops.square(hr - output))
                return loss, loss
            nats = cross_entropy(hr, output)
            return nats, nats / np.log(2)
        a, b = (ops.cast(logits, "float32") for logits in self.network([lr, hr], training=True))
        start, end, steps = self.weight
        progress = ops.minimum(ops.cast(self.optimizer.iterations, "float32") / steps, 1)
        nats = cross_entropy(hr, a + b)
        return nats + (start + (end - start) * progress) * cross_entropy(hr, a), nats / np.log(2)


class ThumbnailValidation(Validation):
    """Likelihood and samples of held-out pictures (`Thumbnails`).

    What is not finite stops the run, and so does a score that is worse than the best before by all that
    knowing nothing costs: 8 bits of 256 equal values, or the squared error 0.25 of mid-grey.
    """

    better = staticmethod(min)
    ignorance = {"val_bits": 8, "val_mse": 0.25}

    def __init__(self, pictures: Thumbnails, model: Literal["recursive", "independent", "regression"],
                 sampled: int = 32) -> None:
        self.pictures, self.sampled = pictures, pictures[:sampled]
        self.key = "val_mse" if model == "regression" else "val_bits"

    def __call__(self, network: ThumbnailUpscaler) -> tuple[dict[str, float], np.ndarray]:
        lr = self.sampled.lr
        drawn = {"samples": network.sample(lr), "greedy": network.sample(lr, np.inf)}
        scores = {**likelihood(network, self.pictures), **sample_quality(self.sampled, drawn["samples"])}
        return {f"val_{key}": value for key, value in scores.items()}, thumbnail_sheet(self.sampled, drawn)

    def failure(self, row: dict[str, float], before: list[dict[str, float]]) -> str | None:
        best = min((earlier[self.key] for earlier in before), default=np.inf)
        if row[self.key] > best + self.ignorance[self.key]:
            return f"collapsed in epoch {row['epoch']}: {self.key} {row[self.key]:.4g} after {best:.4g}"
        return super().failure(row, before)


def trainer(settings: Settings) -> PixelRecursiveTrainer:
    """The compiled trainer that the settings describe."""
    data = settings.data
    initializer = (keras.initializers.TruncatedNormal(stddev=0.1)
                   if settings.initializer == "truncated_normal" else settings.initializer)
    network = conditioning_network(
        data.size, data.scale, data.channels, settings.filters, settings.blocks, settings.norm,
        settings.hidden, settings.spectral, settings.slope, settings.transpose_kernel,
        "gaussian" if settings.model == "regression" else "softmax",
        features=settings.conditioned and settings.model == "recursive", initializer=initializer,
    )
    if settings.model == "recursive":
        network = pixel_recursive(network, prior_network(
            data.size * data.scale, data.channels, settings.prior_filters, settings.prior_blocks,
            head=settings.prior_head, condition=settings.filters * settings.conditioned,
            initializer=initializer))
    network = upscaler(network)
    start_from(network, settings)
    schedule = keras.optimizers.schedules.ExponentialDecay(
        settings.learning_rate, settings.decay_steps, settings.decay, staircase=True)
    model = PixelRecursiveTrainer(network, (*settings.conditioning_weight, settings.conditioning_steps))
    model.compile(optimizer=RMSprop(
        schedule, rho=0.95, momentum=0.9, epsilon=1e-8, accumulator=settings.accumulator,
        **averaging(settings.ema)))
    return model


def split_thumbnails(settings: Settings) -> tuple[Thumbnails, Thumbnails, Thumbnails]:
    """(training, validation, test) pictures, as `Thumbnails`.

    A picture of validation or test that looks like one of training is warned of.
    """
    data = settings.data
    shards = [source for source in data.source if catalogue.is_shards(source)]

    def pictures(side, sources=data.source):
        return catalogue.as_needed(sources, side, data.held_out)

    train, rest = (
        Thumbnails(examples, data.size, data.scale, channels=data.channels, crop=data.crop,
                   batch=settings.batch, flip=flip, seed=settings.run.seed,
                   corners=all(map(catalogue.has_corners, data.source)), cache=settings.run.cache)
        for examples, flip in ((pictures("train"), data.flip),
                               ((picture.read() for picture in pictures("test")), False))
    )
    if len(rest) <= data.val_pictures:
        raise InputError(f"data: {len(rest)} pictures held out are too few to validate on "
                         f"{data.val_pictures} (data.val_pictures) and test on others")
    if not train.corners:  # where different digits look alike
        warn_of_likenesses(*(
            # Names of pictures in memory come first; those in shards are compared whole, not cut square.
            chain(zip(part.names, part.hr, strict=False), looks(pictures(side, shards)))
            for part, side in ((rest, "test"), (train, "train"))))
    return train, rest[: data.val_pictures], rest[data.val_pictures :]


def main(preset: str, settings: Settings) -> None:
    """Train, then measure the held-out pictures.

    PRESET --help explains every setting.
    """
    numbers = {**vars(settings), **{f"data.{name}": value for name, value in vars(settings.data).items()}}
    check_range(numbers, "batch", "filters", "blocks", "hidden", "transpose_kernel", "prior_filters",
                "prior_head", "epochs", "steps", "decay_steps", "conditioning_steps", "data.size",
                "data.val_pictures", least=1)
    check_range(numbers, "prior_blocks", "slope", "learning_rate", "accumulator", "decay", least=0)
    check_range({"conditioning_weight": min(settings.conditioning_weight)}, least=0)
    check_range(numbers, "data.held_out", least=2)
    check_range({"data.size * data.scale": settings.data.size * settings.data.scale}, least=7)  # MS-SSIM's
    check_range(numbers, "ema", least=0, below=1)
    if settings.conditioned and settings.model != "recursive":
        raise InputError(f"conditioned: {settings.model} has no prior network whose gates could see LR")
    settings.run.check()
    distribution = strategy(settings.run.replicas, settings.run.workers)
    train, val, test = split_thumbnails(settings)
    folder = fit(
        distribution, trainer, train, ThumbnailValidation(val, settings.model), settings,
        held_out=val.names + test.names, run=settings.run, paper="pixel_recursive", preset=preset,
        epochs=settings.epochs, steps=settings.steps,
    )
    if folder:
        # Nearest neighbours are looked for among all pictures at once, which of shards are too many.
        known = None if train.stored else train
        result, drawn = evaluate_thumbnails(load(folder / "model.keras"), test[:100], known)
        write_picture(folder / "samples" / "test.png", thumbnail_sheet(test, drawn))
        print(thumbnail_table(result))


def cli() -> None:
    command(main, PRESETS)


if __name__ == "__main__":
    cli()
