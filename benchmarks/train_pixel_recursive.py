"""Training speed of pixel recursive super resolution against the same network and step in PyTorch.

    python benchmarks/train_pixel_recursive.py

A step is forward, CE(A + B) + CE(A), gradients and RMSProp, on one fixed batch of the
`reported` preset. Ours runs the trainer's own compiled train function on a `tf.data`
iterator, as `fit` does. All engines take turns.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses
import math

import numpy as np
import torch
from common import interleaved, keras_step, keras_trainer, native, save, table, training_rows
from sampler import multiply_adds
from torch_lapsrn import to_torch
from torch_pixel_recursive import PixelRecursive, check, cross_entropy

from superres.train.pixel_recursive import PRESETS, trainer

FIRST = 3  # so many losses of every engine must agree before anything is timed


def fixed_batch(settings, seed=0):
    """(lr, hr): noise, whose values do not change the time of a step."""
    rng, data = np.random.default_rng(seed), settings.data
    lr = rng.random((settings.batch, data.size, data.size, data.channels), "float32")
    size = data.size * data.scale
    hr = rng.integers(0, 256, (settings.batch, size, size, data.channels)) / 255
    return lr, hr.astype("float32")


def torch_step(network, settings, batch, channels_last=False, compiled=False, autocast=False):
    """A function that does the same step in PyTorch and returns the same loss."""
    model = PixelRecursive.from_keras(network).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    lr, hr = (to_torch(picture, channels_last) for picture in batch)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=settings.learning_rate, alpha=0.95, momentum=0.9,
                                    eps=1e-8)
    for parameter in model.parameters():  # the mean squared gradient starts as in ours
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0), "momentum_buffer": torch.zeros_like(parameter),
            "square_avg": torch.full_like(parameter, settings.accumulator),
        }

    def losses_of(lr, hr):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            a, b = model(lr, hr)
        a, b = a.float(), b.float()
        return cross_entropy(a + b, hr), cross_entropy(a, hr)

    forward = torch.compile(losses_of) if compiled else losses_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        both, conditioning = forward(lr, hr)
        (both + conditioning).backward()
        optimizer.step()
        return both.item() / math.log(2)

    return step


def measure(settings, rounds, steps):
    """The rows, and the machine's best rates at that time."""
    batch = fixed_batch(settings)
    network = keras_trainer(trainer, settings, "float32").network
    print(f"logits agree to {check(network, *(picture[:2] for picture in batch)):.1e}")

    def torch_engine(**kwargs):
        return torch_step(network, settings, batch, **kwargs)

    engines = native({
        "keras float32": keras_step(keras_trainer(trainer, settings, "float32"), batch),
        "keras mixed_bfloat16": keras_step(keras_trainer(trainer, settings, "mixed_bfloat16"), batch),
        "torch eager": torch_engine(),
        "torch eager channels_last": torch_engine(channels_last=True),
        "torch compiled": torch_engine(compiled=True),
        "torch compiled channels_last": torch_engine(channels_last=True, compiled=True),
        "torch eager bfloat16": torch_engine(channels_last=True, autocast=True),
    })
    first = {name: [step() for _ in range(FIRST)] for name, step in engines.items()}
    ours = first["keras float32"]
    for name, losses in first.items():
        same = np.allclose(losses, ours, rtol=2e-2 if "bfloat16" in name else 1e-4)
        if "bfloat16" not in name:  # the fall tells whether gradients and optimiser are the same
            same = same and math.isclose(losses[0] - losses[-1], ours[0] - ours[-1], rel_tol=0.05)
        if not same:
            raise SystemExit(f"{name}: the first losses are {losses}, not {ours}: nothing to compare")

    def several(step):
        return lambda: [step() for _ in range(steps)]

    seconds = interleaved({name: several(step) for name, step in engines.items()}, rounds)
    seconds = {name: {key: s / steps for key, s in times.items()} for name, times in seconds.items()}
    # Gradients of weights and of features cost as much as the forward pass each. What a
    # mask closes is computed too.
    counts = multiply_adds(network, opened=False)
    pixels = (settings.data.size * settings.data.scale) ** 2
    per_picture = counts["conditioning"] + pixels * (counts["vertical"] + counts["horizontal"])
    work = 3 * 2 * settings.batch * per_picture
    rows, peak = training_rows(seconds, work, settings.batch)
    return [{**row, "first_losses": first[row["engine"]]} for row in rows], peak


def main(
    batch: int = 32,
    rounds: int = 10,
    steps: int = 1,
    size: int = 8,
    filters: int = 32,
    blocks: int = 20,
    head: int = 1024,
    json: str = "train_pixel_recursive",
):
    """Training speed of pixel recursive super resolution against the same network and step in PyTorch.

    Args:
        batch: Pictures in a step.
        rounds: How often every engine is timed.
        steps: Steps that are timed together.
        size: Height and width of LR; HR's are four times as large.
        filters: Channels of both networks.
        blocks: Gated blocks of the prior network.
        head: Channels of its 1x1 convolution before the last.
        json: Name of the result file in benchmarks/results.
    """
    reported = PRESETS["reported"][1]
    settings = dataclasses.replace(
        reported, batch=batch, data=dataclasses.replace(reported.data, size=size), filters=filters,
        blocks=min(reported.blocks, blocks), prior_filters=filters, prior_blocks=blocks, prior_head=head,
    )
    rows, peak = measure(settings, rounds, steps)
    print(table(rows, {
        "engine": "", "step_seconds": ".3f", "pictures_per_second": ".1f", "over_best_torch_float32": ".2f",
        "over_keras_float32": ".2f", "gflop_per_second": ".0f", "of_peak_conv": ".0%",
        "of_peak_matmul": ".0%",
    }))
    save(json, rows, goal="keras float32 over_best_torch_float32 >= 1", peak_gflop_per_second=peak,
         torch_threads=torch.get_num_threads(), settings=dataclasses.asdict(settings), timed_steps=steps)


if __name__ == "__main__":
    command(main)
