"""What the two adversarial trainings share: how their networks are judged, and what a run draws."""

from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from superres.datasets.degradations import Triple
from superres.datasets.pictures import contact_sheet, write_picture
from superres.files import write_figure
from superres.losses import gradient_penalty
from superres.models.upscaler import Upscaler, at_precision, load
from superres.train.loop import EpochMean, Trainer, minimised
from superres.train.validation import PictureValidation, panels


def penalised(discriminator: keras.Model, pictures: tf.Tensor | np.ndarray,
              wanted: bool = True) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The logits (B, 1) of pictures (B, H, W, 3), and the mean gradient penalty there, or None."""
    if not wanted:
        return discriminator(pictures, training=True), None
    pictures = tf.convert_to_tensor(pictures)
    with tf.GradientTape() as tape:
        tape.watch(pictures)
        logits = discriminator(pictures, training=True)
        total = tf.reduce_sum(logits)
    return logits, tf.reduce_mean(gradient_penalty(tape.gradient(total, pictures)))


def gradient_norm(optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor]) -> tf.Tensor:
    """The norm of a device's gradients of `train.loop.minimised`, of the loss as it is."""
    return tf.linalg.global_norm(gradients) / minimised(optimizer, 1.0)


class GANTrainer(Trainer):
    """A trainer of `network`, the generator, and `discriminator`, each with an optimiser of its own.

    Args:
        network: The generator.
        discriminator: From pictures to logits (B, 1); None: there is none.
        names: Of the values that `averaged` takes.
    """

    def __init__(self, network: Upscaler, discriminator: keras.Model | None, names: Iterable[str],
                 **kwargs) -> None:
        super().__init__(network, **kwargs)
        self.discriminator = discriminator
        self.means = {name: EpochMean(name=name) for name in names}

    def compile(self, optimizer: keras.optimizers.Optimizer,
                discriminator_optimizer: keras.optimizers.Optimizer | None = None) -> None:
        super().compile(optimizer=optimizer)
        # As Keras does with the optimiser that it knows of
        if discriminator_optimizer and self.dtype_policy.name == "mixed_float16":
            discriminator_optimizer = keras.optimizers.LossScaleOptimizer(discriminator_optimizer)
        self.discriminator_optimizer = discriminator_optimizer
        if discriminator_optimizer:
            discriminator_optimizer.build(self.discriminator.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return list(self.means.values())

    def averaged(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Take the values of a step, a dict, into their means over the epoch, and return these.

        Norms of gradients that overflow are left out: in float16, such a step is skipped.
        """
        for name, value in values.items():
            if name.endswith("_gradient"):
                finite = tf.math.is_finite(value)
                self.means[name].update_state(tf.where(finite, value, 0), tf.cast(finite, value.dtype))
            else:
                self.means[name].update_state(value)
        return {name: self.means[name].result() for name in values}


class GANValidation(PictureValidation):
    """PSNR and SSIM of held-out pictures, and the plots of an adversarial run.

    The last epoch counts as the best: a sharper network has a lower PSNR. Besides the samples, the
    run's folder gets `losses.png`, every column of the log over the epochs, and `comparison.png`, the
    networks of its snapshots side by side.

    Args:
        pairs: List of (name, LR, HR), uint8.
        warm_up: Epochs before the discriminator joins.
        steps: Steps an epoch.
    """

    key = "epoch"

    def __init__(self, pairs: list[Triple], warm_up: int, steps: int) -> None:
        super().__init__(pairs)
        self.warm_up, self.steps = warm_up, steps

    def draw(self, folder: Path, rows: list[dict[str, float]]) -> None:
        write_figure(folder / "losses.png", curves(rows, self.warm_up), dpi=80)
        if rows and (folder / f"step_{rows[-1]['step']}.keras").exists():
            write_figure(folder / "comparison.png", self._comparison(folder), dpi=110)

    def _comparison(self, folder):
        """A row for each of up to three pictures, a column for each snapshot."""
        steps = sorted(int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.keras"))
        columns = []
        for step in steps:
            epoch, network = step // self.steps, load(folder / f"step_{step}.keras")
            title = "warm-up" if epoch <= self.warm_up else f"after epoch {epoch - self.warm_up}"
            columns.append((title, [network.upscale(lr, tile=network.tile_for(lr))
                                    for _, lr, _ in self.pairs[:3]]))
        rows = min(3, len(self.pairs))
        sheet = Figure(figsize=(2.2 * (len(columns) + 2), 2.3 * rows))
        axes = sheet.subplots(rows, len(columns) + 2, squeeze=False)
        for i, (_, lr, hr) in enumerate(self.pairs[:3]):
            shown = [(title, panels(lr, pictures[i], hr, 128)[2]) for title, pictures in columns]
            _, bicubic, _, truth = panels(lr, hr, hr, 128)
            for axis, (title, picture) in zip(
                axes[i], [("bicubic", bicubic), *shown, ("HR", truth)], strict=True
            ):
                axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
                axis.set_title(title if i == 0 else "", fontsize=9)
                axis.axis("off")
        sheet.tight_layout()
        return sheet


class TrainingSamples(keras.callbacks.Callback):
    """Draws what the weights of the moment make of held-out pictures: samples/step_NUMBER.png.

    Losses do not tell how adversarial training goes.

    Args:
        folder: The run's.
        pairs: List of (name, LR, HR), uint8; squares of up to four of them are shown.
        every: Draw after every so many steps.
    """

    def __init__(self, folder: Path, pairs: list[Triple], every: int) -> None:
        super().__init__()
        self.folder, self.every = folder / "samples", every
        self.pairs = [panels(lr, hr, hr, 128) for _, lr, hr in pairs[:4]]
        self.scale = pairs[0][2].shape[0] // pairs[0][1].shape[0]

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.copy = at_precision(self.model.network, "float32")

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.done = epoch * self.params["steps"]

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = self.done + batch + 1
        if step % self.every:
            return
        self.copy.set_weights(self.model.network.get_weights())
        rows = [[lr, bicubic, self.copy.upscale(lr[:: self.scale, :: self.scale]), hr]
                for lr, bicubic, _, hr in self.pairs]
        write_picture(self.folder / f"step_{step:06d}.png", contact_sheet(rows))


def curves(rows: list[dict[str, float]], warm_up: int = 0) -> Figure:
    """Every column of a log but its times, over the epochs: a matplotlib figure."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row)
            if key not in ("epoch", "step", "seconds", "step_seconds")]
    lines = -(-len(keys) // 4)
    figure = Figure(figsize=(13, 2.4 * lines))
    axes = figure.subplots(lines, 4, squeeze=False)
    for axis, key in zip(axes.flat, keys, strict=False):
        points = [(row["epoch"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axis.set_title(key.replace("_", " "), fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        if 0 < warm_up < rows[-1]["epoch"]:
            axis.axvline(warm_up + 0.5, color="grey", linewidth=0.7, linestyle=":")
    for axis in axes.flat[len(keys):]:
        axis.axis("off")
    figure.tight_layout()
    return figure
