"""What the four training scripts share: where to run, what to keep, how to go on.

A run is a folder::

    settings.yaml          the settings it was started with
    held_out.txt           the names of the pictures it is not trained on
    log.csv                one row an epoch
    model.keras            the best network so far, without its trainer
    last.keras             the network after the last epoch
    backup.weights.h5      trainer and optimiser, to go on from
    step_NUMBER.keras      the network at the steps that RunSettings.snapshots names
    samples/               LR, bicubic, SR and HR of the validation pictures, side by side
    tensorboard/           the log and the samples for TensorBoard
    lock                   held by the process that trains

Starting a run again in its folder goes on after its last finished epoch.
"""

import contextlib
import dataclasses
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from superres.datasets.batches import input_errors
from superres.datasets.patches import Patches
from superres.datasets.pictures import write_picture
from superres.datasets.thumbnails import Thumbnails
from superres.errors import InputError, check_range
from superres.files import whole
from superres.layers.base import Tensor
from superres.models.upscaler import at_precision
from superres.precision import chosen_precision
from superres.train.devices import (
    alike,
    any_machine,
    is_chief,
    others_lost,
    several_machines,
    take_from_chief,
)
from superres.train.folder import alone, comparable, keep_held_out, keep_settings
from superres.train.log import Log
from superres.train.validation import Validation


@dataclasses.dataclass
class RunSettings:
    """Where and how a training runs."""

    folder: str = ""
    """Folder of the run; empty: runs/PAPER/PRESET. An existing run goes on."""
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Of the network; weights stay float32. auto: the fastest that the machine computes natively:
    mixed_bfloat16 on processors with AVX512-BF16 or AMX and on GPUs from compute capability 8.0 on,
    mixed_float16 on GPUs from 7.0 on, else float32."""
    replicas: int = 0
    """Devices to train on. 0: every visible GPU, or the CPU. With no GPU, 2 or more split the CPU
    into logical devices, which tests training on several but does not speed it up."""
    workers: tuple[str, ...] = ()
    """Machines that train together, each HOST:PORT, the port free there: the same command is started on
    every one. The first keeps the folder. Empty: those of the environment's TF_CONFIG, if any."""
    seed: int = 0
    """Of weights, patches and augmentation."""
    early_stopping: int = 0
    """Stop after so many epochs without a better validation score; 0: never."""
    cache: int = 2048
    """MiB of decoded pictures that are kept in memory where the data are shards; all others always are."""
    snapshots: tuple[int, ...] = ()
    """Steps whose network is kept; each must end an epoch."""

    def check(self) -> None:
        """Raise InputError for numbers that no training can run with."""
        numbers = {f"run.{name}": value for name, value in vars(self).items()}
        check_range(numbers, "run.replicas", "run.early_stopping", "run.cache", least=0)
        check_range(numbers, "run.seed", least=0, below=2**32)  # what NumPy takes
        check_range({"run.snapshots": min(self.snapshots, default=1)}, least=1)


def minimised(optimizer: keras.optimizers.Optimizer, loss: tf.Tensor | float) -> tf.Tensor | float:
    """What a device differentiates: its part of the mean loss over all devices.

    Keras's optimisers sum the gradients of the devices. In float16 the loss is scaled, too,
    so that small gradients do not vanish; the optimiser takes that back.
    """
    return optimizer.scale_loss(loss / tf.distribute.get_strategy().num_replicas_in_sync)


def descend(optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor],
            variables: list[keras.Variable]) -> None:
    """Take a step along a device's gradients of `minimised`.

    In float16 a step whose gradients overflow is skipped. Keras looks at those of the first device, so
    an overflow on any other is told to all.
    """
    context = tf.distribute.get_replica_context()
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and context.num_replicas_in_sync > 1:
        finite = optimizer.check_finite(gradients)
        overflows = context.all_reduce("SUM", tf.cast(~finite, "float32"))
        gradients = [g if g is None else tf.where(overflows > 0, np.nan, g) for g in gradients]
    optimizer.apply(gradients, variables)


class EpochMean(keras.metrics.Mean):
    """A mean over an epoch. A backup leaves it out: of several machines, one alone could not read it."""

    def save_own_variables(self, store: MutableMapping[str, Tensor]) -> None:
        """Nothing to save: it begins anew with every epoch."""

    def load_own_variables(self, store: MutableMapping[str, Tensor]) -> None:
        """Nothing to load."""


class Trainer(keras.Model):
    """A model whose `train_step` trains `network`, on one machine or on several.

    `fit` of Keras 3.15 fails on several machines, where it builds a model and where it takes the mean
    of what a step returns; both are done here in its stead.
    """

    def __init__(self, network: keras.Model, **kwargs) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.built = True  # nothing but the networks has weights
        # Saved with them. An optimiser's steps do not tell: in float16 it skips what overflows.
        self.epochs_done = keras.Variable(0, dtype="int32", trainable=False, name="epochs_done")

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        pass

    def state(self) -> list[keras.Variable]:
        """All that a training goes on from: variables of networks and optimisers."""
        optimizers = [part for part in vars(self).values() if isinstance(part, keras.optimizers.Optimizer)]
        return self.weights + [variable for optimizer in optimizers for variable in optimizer.variables]

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is not None and not force:
            return
        distribution = self.distribute_strategy

        def compute(batch):
            logs = distribution.run(self.train_step, args=(batch,))
            return {name: distribution.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        def step(iterator):
            return compute(next(iterator))

        if not self.run_eagerly:
            compute = tf.function(compute, autograph=False, jit_compile=self.jit_compile)
            step = tf.function(step, autograph=False)
        self.train_function = step


def run_folder(run: RunSettings, paper: str, preset: str) -> Path:
    """Where a run lives."""
    return Path(run.folder or Path("runs") / paper / preset)


def fit(distribution: tf.distribute.Strategy, build: Callable[[Any], Trainer], batches: Patches | Thumbnails,
        validation: Validation, settings: Any, *, held_out: Iterable[str], run: RunSettings, paper: str,
        preset: str, epochs: int, steps: int,
        callbacks: Iterable[keras.callbacks.Callback] = ()) -> Path | None:
    """Train until `epochs` are done, going on from where the run in its folder stopped.

    Args:
        distribution: `train.devices.strategy` of the run's devices and machines.
        build: Function of the settings that returns a compiled trainer, with an `optimizer` of its
            `network`, which is saved. Whatever else it trains, it builds the optimisers of.
        batches: `datasets.patches.Patches` or the like: `batch`, the size of a batch, and
            `dataset(start, rows)`, of every batch from number `start` on a slice.
        validation: A `Validation`.
        settings: The whole settings dataclass, kept in the run's folder. On one machine, a run that
            goes on does without the network that `start` names.
        held_out: Names of the pictures that are not trained on; a run does not go on with others.
        run: `RunSettings`.
        paper: Name of the paper, for the default folder.
        preset: Name of the preset, for the default folder.
        epochs: Total number of epochs.
        steps: Steps an epoch.
        callbacks: More of Keras's callbacks; at the end of an epoch they find its files.

    Returns:
        The run's folder; None where another machine keeps it.
    """
    folder, chief = run_folder(run, paper, preset), is_chief(distribution)
    with alone(folder) if chief else contextlib.nullcontext(), others_lost(folder, distribution):
        backup, log = folder / "backup.weights.h5", Log(folder / "log.csv", validation.key, validation.better)
        precision = chosen_precision(run.precision)
        if chief:
            begun = backup.exists() or log.path.exists()
            keep_settings(folder / "settings.yaml", settings, precision, begun)
            keep_held_out(folder / "held_out.txt", held_out, begun)
        if not alike(distribution, precision):
            raise InputError(f"run.precision: this machine has {precision}, another one trains in another; "
                             "name one that all of them have")
        if not alike(distribution, comparable(settings)):
            raise InputError("settings: this machine's differ from another one's; start the same command")

        keras.utils.set_random_seed(run.seed)
        if wrong := [step for step in run.snapshots if step % steps]:
            raise InputError(f"run.snapshots: {wrong[0]} does not end an epoch of {steps} steps")
        if batches.batch % distribution.num_replicas_in_sync:
            raise InputError(
                f"batch: {batches.batch} does not divide by {distribution.num_replicas_in_sync} replicas"
            )
        if run.early_stopping and validation.key == "epoch":
            raise InputError("run.early_stopping: of adversarial training, the last epoch counts as the best")
        begun = chief and backup.exists()
        if begun and not several_machines(distribution):  # of which only the first one knows
            settings = dataclasses.replace(settings, start="")
        with distribution.scope(), _policy(precision):
            trainer = build(settings)
            trainer.optimizer.build(trainer.network.trainable_variables)

        if begun:
            try:
                with warnings.catch_warnings():
                    # Keras leaves an optimiser as it is that the backup does not fit: float16's.
                    warnings.filterwarnings("error", "Skipping variable loading")
                    trainer.load_weights(backup)
            except Exception as error:  # h5py and Keras raise many kinds
                reason = " ".join(str(error).split())[:160]
                raise InputError(f"{backup}: cannot go on from it ({reason})") from None
        if several_machines(distribution):
            take_from_chief(distribution, trainer.state())
        done = int(trainer.epochs_done.numpy())
        if chief:
            log.rewind(done)
        if any_machine(distribution, done >= epochs or (chief and log.stale(run.early_stopping))):
            print(f"{folder}: done already, after {done} of {epochs} epochs")
            return folder if chief else None
        print(f"{folder}: {'going on after' if done else 'starting, done'} {done} of {epochs} epochs, "
              f"{distribution.num_replicas_in_sync} device(s), {precision}")

        def rows(context):
            """The rows of every batch that one pipeline makes: a device's, or one of several machines'."""
            part = batches.batch // context.num_input_pipelines
            first = context.input_pipeline_id * part
            return batches.dataset(done * steps, slice(first, first + part)).rebatch(
                batches.batch // distribution.num_replicas_in_sync, drop_remainder=True)

        # A pipeline a device: what parts one pipeline among devices is autotuned, whatever the pipeline's
        # options are, and then its end can take a minute. For several machines there is nothing else.
        apart = None if several_machines(distribution) else tf.distribute.InputOptions(
            experimental_fetch_to_device=False,
            experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA)

        with _written_by_tensorflow(folder / "tensorboard") as tensorboard, input_errors():
            keeper = Keeper(folder, trainer, validation, log, run, steps)
            callbacks = [keeper, *callbacks]
            if chief:
                callbacks.append(keras.callbacks.TensorBoard(tensorboard, write_graph=False))
            try:
                trainer.fit(
                    distribution.distribute_datasets_from_function(rows, apart),
                    initial_epoch=done,
                    epochs=epochs,
                    steps_per_epoch=steps,
                    shuffle=False,
                    callbacks=callbacks,
                    verbose=(1 if sys.stdout.isatty() else 2) if chief else 0,
                )
            except tf.errors.ResourceExhaustedError as error:
                if str(tensorboard) in error.message:  # a full disk
                    raise
                raise MemoryError("a training step with a smaller batch takes less of it") from None
        if any_machine(distribution, bool(keeper.failure)):
            kept = "model.keras holds the best weights before it" if log.rows else "no epoch was finished"
            raise InputError(f"{folder}: stopped, {keeper.failure}; {kept}" if chief else
                             f"{folder}: stopped, the first machine says why")
        return folder if chief else None


@contextlib.contextmanager
def _policy(precision):
    """Layers that are built within compute in this precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _written_by_tensorflow(folder):
    """Gives the folder; if a file in it cannot be written, that is an OSError, as of all other files."""
    try:
        yield folder
    except tf.errors.OpError as error:
        if str(folder) not in error.message:
            raise
        reason = error.message.splitlines()[0].rpartition("; ")[2]
        raise OSError(f"{folder}: cannot be written ({reason})") from None


class Keeper(keras.callbacks.Callback):
    """After every epoch: validate, log, save, draw samples, and stop what has failed.

    Of several machines, the first does all of this, and the others stop when it does.
    """

    def __init__(self, folder: Path, trainer: Trainer, validation: Validation, log: Log, run: RunSettings,
                 steps: int) -> None:
        super().__init__()
        self.folder, self.network, self.validation = folder, trainer.network, validation
        self.copy = at_precision(trainer.network, "float32")  # what is measured and saved
        self.log, self.run, self.steps = log, run, steps
        self.failure = None
        self.distribution = trainer.distribute_strategy
        self.chief = is_chief(self.distribution)
        if self.chief:
            self.images = tf.summary.create_file_writer(str(folder / "tensorboard" / "samples"))

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.began, self.first = time.perf_counter(), None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.started = time.perf_counter()
        self.first = epoch if self.first is None else self.first

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not math.isfinite(logs["loss"]):
            self.failure = f"the loss is {logs['loss']} at step {batch + 1} of the epoch"
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.chief and not self.failure:
            self.keep(epoch, logs)
        self.model.stop_training = any_machine(self.distribution, self.model.stop_training)

    def keep(self, epoch: int, logs: dict) -> None:
        """Validate, log and save an epoch, unless it has failed."""
        seconds = time.perf_counter() - self.started
        # With use_ema, the averages are measured and saved, not the weights of the last step.
        weights = self.network.get_weights()
        self.model.optimizer.finalize_variable_values(self.network.trainable_variables)
        self.copy.set_weights(self.network.get_weights())
        self.network.set_weights(weights)
        scores, sheet = self.validation(self.copy)
        logs.update(scores)
        step = (epoch + 1) * self.steps
        row = {"epoch": epoch + 1, "step": step, "seconds": round(seconds, 2),
               "step_seconds": round(seconds / self.steps, 4),
               **{key: float(f"{float(value):.6g}") for key, value in logs.items()}}
        self.failure = self.validation.failure(row, self.log.rows)
        if self.failure:
            self.model.stop_training = True
            return

        self.log.add(row)
        if self.log.is_best():
            self.save("model.keras")
        self.save("last.keras")
        if step in self.run.snapshots:
            self.save(f"step_{step}.keras")
        (self.folder / "samples").mkdir(exist_ok=True)
        write_picture(self.folder / "samples" / f"epoch_{epoch + 1:04d}.png", sheet)
        with self.images.as_default():
            tf.summary.image("samples", sheet[None], step=epoch + 1)
        self.images.flush()
        self.validation.draw(self.folder, self.log.rows)
        # The backup comes last: a run killed before this line repeats the epoch.
        with whole(self.folder / "backup.weights.h5") as part:
            part.write_bytes(bytes(self.backup_size()))  # on a full disk, HDF5 would crash the process
            self.model.epochs_done.assign(epoch + 1)
            self.model.save_weights(part)
        done, left = epoch + 1 - self.first, self.params["epochs"] - epoch - 1
        end = (time.perf_counter() - self.began) / done * left  # validation included
        print(f"epoch {epoch + 1} of {self.params['epochs']}: {seconds / self.steps:.3f} s a step"
              + (f", ends in about {_duration(end)}" if left else ""))
        if self.log.stale(self.run.early_stopping):
            print(f"early stopping: no better {self.validation.key} for {self.run.early_stopping} epochs")
            self.model.stop_training = True

    def save(self, name: str) -> None:
        with whole(self.folder / name) as part:
            self.copy.save(part)

    def backup_size(self) -> int:
        """Bytes that a backup takes: those of the last one, or at first what its weights need."""
        try:
            return os.path.getsize(self.folder / "backup.weights.h5")
        except FileNotFoundError:
            holders = [value for value in vars(self.model).values()
                       if isinstance(value, (keras.Layer, keras.optimizers.Optimizer))]
            # HDF5 adds about 1 kB to each.
            return sum(4 * math.prod(weight.shape) + 2048 for part in holders for weight in part.variables)


def averaging(momentum: float) -> dict[str, Any]:
    """What an optimiser of Keras takes to keep a running average of the weights; a momentum of 0: none."""
    return {"use_ema": momentum > 0, "ema_momentum": momentum or 0.99}


def _duration(seconds):
    """`2 h 5 min`, `5 min`, `40 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
