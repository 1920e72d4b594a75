"""Training speed of LapSRN against the same network and step in PyTorch.

    python benchmarks/train_lapsrn.py

A step is forward, the Charbonnier loss of every level, gradients and Adam, on one fixed
batch of 8 of the `improved` presets, at the paper's depth of ten convolutions a level. Ours runs
the trainer's own compiled train function on a `tf.data` iterator, as `fit` does, training PSNR
included. All engines take turns.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses

import numpy as np
import torch
from common import flop, interleaved, keras_step, keras_trainer, native, randomise, save, table, training_rows
from torch_lapsrn import LapSRN, charbonnier, check, to_torch

from superres.train.lapsrn import PRESETS, trainer


def settings_of(scale):
    """The preset improved-xN at the paper's depth, in batches of 8."""
    return dataclasses.replace(PRESETS[f"improved-x{scale}"][1], depth=(10,), batch=8)


def fixed_batch(settings, seed=0):
    """(lr, (target of a level, ...)): noise, whose values do not change the time of a step."""
    rng = np.random.default_rng(seed)
    factors = [2**i for i in range(int(np.log2(settings.scale)) + 1)]
    lr, *targets = (
        rng.random((settings.batch, settings.patch * f, settings.patch * f, settings.channels), "float32")
        for f in factors
    )
    return lr, tuple(targets)


def torch_step(network, batch, channels_last=False, compiled=False, autocast=False):
    """A function that does the same step in PyTorch and returns its loss."""
    model = LapSRN.from_keras(network).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    lr, targets = to_torch(batch[0], channels_last), [to_torch(t, channels_last) for t in batch[1]]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True)

    def loss_of(lr, targets):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(lr)
        return sum(charbonnier(hr, sr.float()) for hr, sr in zip(targets, outputs, strict=True))

    forward = torch.compile(loss_of) if compiled else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward(lr, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def measure(scale, rounds):
    """The rows of one scale."""
    settings = settings_of(scale)
    batch = fixed_batch(settings)
    network = keras_trainer(trainer, settings, "float32").network
    trained = keras_trainer(trainer, settings, "float32").network
    randomise(trained)
    print(f"x{scale}: outputs agree to {check(trained, batch[0]):.1e}")
    engines = native({
        "keras float32": keras_step(keras_trainer(trainer, settings, "float32"), batch),
        "keras mixed_bfloat16": keras_step(keras_trainer(trainer, settings, "mixed_bfloat16"), batch),
        "torch eager": torch_step(network, batch),
        "torch eager channels_last": torch_step(network, batch, channels_last=True),
        "torch compiled": torch_step(network, batch, compiled=True),
        "torch compiled channels_last": torch_step(network, batch, channels_last=True, compiled=True),
        "torch eager bfloat16": torch_step(network, batch, channels_last=True, autocast=True),
    })
    first = {name: step() for name, step in engines.items()}
    ours = first["keras float32"]
    for name, loss in first.items():
        if abs(loss - ours) > (2e-2 if "bfloat16" in name else 1e-4) * ours:
            raise SystemExit(f"{name}: the first step's loss is {loss}, not {ours}: nothing to compare")

    seconds = interleaved(engines, rounds)
    # Gradients of weights and of features cost as much as the forward pass each.
    work = 3 * settings.batch * flop(network, settings.patch, settings.patch)
    rows, peak = training_rows(seconds, work, settings.batch)
    return [{"scale": scale, **row, "first_loss": first[row["engine"]]} for row in rows], peak


def main(scales: tuple[int, ...] = (2, 4), rounds: int = 15):
    """Training speed of LapSRN against the same network and step in PyTorch.

    Args:
        scales: Which of the presets improved-x2, improved-x4, improved-x8.
        rounds: Timed steps of every engine.
    """
    rows, peaks = [], {}
    for scale in scales:
        more, peaks[f"x{scale}"] = measure(scale, rounds)
        rows += more
    print(table(rows, {
        "scale": "d", "engine": "", "step_seconds": ".3f", "pictures_per_second": ".1f",
        "over_best_torch_float32": ".2f", "over_keras_float32": ".2f", "gflop_per_second": ".0f",
        "of_peak_conv": ".0%", "of_peak_matmul": ".0%",
    }))
    save("train_lapsrn", rows, goal="keras float32 over_best_torch_float32 >= 1", peak_gflop_per_second=peaks,
         torch_threads=torch.get_num_threads())


if __name__ == "__main__":
    command(main)
