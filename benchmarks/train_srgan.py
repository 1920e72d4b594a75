"""Training speed of SRGAN against the same networks and steps in PyTorch.

    python benchmarks/train_srgan.py

The step of the warm-up is forward, the mean squared error, gradients and Adam. The step of the
adversarial training adds the discriminator: one pass of it over HR and one over SR, the gradients of both
networks from these, and Adam for both. On one fixed batch, without VGG. Ours runs the trainer's
own compiled train function on a `tf.data` iterator, as `fit` does, the norms of the gradients
that it shows included. All engines take turns.

`two passes` is the step as most PyTorch code writes it: the generator answers to the
discriminator as it is after its step, which takes a second pass of it over SR. It computes
more, and is there for information.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import math

import numpy as np
import torch
from common import flop, interleaved, keras_step, keras_trainer, native, save, table, training_rows
from torch.nn import functional as F
from torch_lapsrn import to_torch
from torch_srgan import Discriminator, Generator, check

from superres.train.srgan import Settings, trainer

FIRST = 3  # so many losses of every engine must agree before anything is timed


def fixed_batch(settings, seed=0):
    """(lr, (hr,)): noise, whose values do not change the time of a step."""
    rng = np.random.default_rng(seed)
    lr, hr = (rng.random((settings.batch, size, size, 3), "float32")
              for size in (settings.crop // settings.scale, settings.crop))
    return lr, (hr,)


def our_step(settings, adversarial, batch, precision):
    """A function that does our step and returns its losses."""
    model = keras_trainer(trainer, settings, precision)
    model.discriminator_active = adversarial
    return keras_step(model, batch, ["loss", "discriminator"] if adversarial else ["loss"])


class TorchStep:
    """Does the same step in PyTorch when called, and returns its losses.

    Args:
        model: The Keras trainer whose weights both networks start from.
        adversarial: Whether the discriminator joins.
        compiled: Networks, losses and gradients together, as one graph.
        autocast: Compute in bfloat16.
    """

    def __init__(self, model, settings, adversarial, batch, channels_last=False, compiled=False,
                 autocast=False):
        self.discriminator_active, self.autocast = adversarial, autocast
        self.adversarial = settings.adversarial
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.generator = Generator.from_keras(model.network).train().to(memory_format=layout)
        self.discriminator = Discriminator.from_keras(model.discriminator).train().to(memory_format=layout)
        self.lr, self.hr = to_torch(batch[0], channels_last), to_torch(batch[1][0], channels_last)
        networks = [self.generator, self.discriminator] if adversarial else [self.generator]
        self.parameters = [list(network.parameters()) for network in networks]
        # Keras adds its epsilon, 1e-7, before Adam's correction of the first steps, PyTorch after
        # it: this makes the first step the same.
        eps = 1e-7 / math.sqrt(1 - settings.beta_2)
        self.optimizers = [
            torch.optim.Adam(parameters, settings.learning_rate, (0.9, settings.beta_2), eps, fused=True)
            for parameters in self.parameters
        ]
        if compiled:
            # Without this the graph ends before the first gradient, and each of the two computes both.
            torch._dynamo.config.trace_autograd_ops = True
            self.gradients = torch.compile(self.gradients, fullgraph=True, dynamic=False)

    def forward(self, network, pictures):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return network(pictures)

    def pixel_loss(self, hr, sr):
        return F.mse_loss(2 * sr, 2 * hr)  # on [-1, 1]

    def generator_loss(self, hr, sr, fake):
        return self.pixel_loss(hr, sr) + self.adversarial * F.softplus(-fake).mean()

    def discriminator_loss(self, real, fake):
        return (F.softplus(-real) + F.softplus(fake)).mean()

    def gradients(self, lr, hr):
        """The losses, and the gradient of each for its own network."""
        sr = self.forward(self.generator, lr)
        if self.discriminator_active:
            real, fake = (self.forward(self.discriminator, pictures) for pictures in (hr, sr))
            losses = self.generator_loss(hr, sr, fake), self.discriminator_loss(real, fake)
        else:
            losses = (self.pixel_loss(hr, sr),)
        gradients = [
            torch.autograd.grad(loss, inputs=parameters, retain_graph=loss is not losses[-1])
            for loss, parameters in zip(losses, self.parameters, strict=True)
        ]
        return [loss.detach() for loss in losses], gradients

    def __call__(self):
        losses, gradients = self.gradients(self.lr, self.hr)
        for parameters, found in zip(self.parameters, gradients, strict=True):
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
        for optimizer in self.optimizers:
            optimizer.step()
        return [loss.item() for loss in losses]


class TwoPasses(TorchStep):
    """The adversarial step as most PyTorch code writes it: the discriminator's, then the generator's."""

    def __call__(self):
        optimizer, discriminator_optimizer = self.optimizers
        sr = self.forward(self.generator, self.lr)

        discriminator_optimizer.zero_grad(set_to_none=True)
        real = self.forward(self.discriminator, self.hr)
        fake = self.forward(self.discriminator, sr.detach())
        discriminator_loss = self.discriminator_loss(real, fake)
        discriminator_loss.backward()
        discriminator_optimizer.step()

        optimizer.zero_grad(set_to_none=True)
        loss = self.generator_loss(self.hr, sr, self.forward(self.discriminator, sr))
        loss.backward()
        optimizer.step()
        return [loss.item(), discriminator_loss.item()]


def agree(name, losses, ours):
    """Whether an engine's first losses, a list for every step, are ours."""
    losses, ours = np.array(losses), np.array(ours)
    if "bfloat16" in name:
        return np.allclose(losses, ours, rtol=2e-2)
    if "two passes" in name:  # its discriminator has moved before the generator asks it
        return np.isclose(losses[0, 1], ours[0, 1], rtol=1e-4) and np.allclose(losses, ours, rtol=2e-2)
    # Adam goes as far for a small gradient as for a large one, so rounding errors grow with the
    # steps. The fall tells whether gradients and optimisers are the same.
    return (np.allclose(losses[0], ours[0], rtol=1e-4) and np.allclose(losses, ours, rtol=1e-3)
            and np.allclose(losses[0] - losses[-1], ours[0] - ours[-1], rtol=0.05))


def measure(settings, adversarial, rounds):
    """The rows of one step, and the machine's best rates at that time."""
    batch = fixed_batch(settings)
    model = keras_trainer(trainer, settings, "float32")
    phase = "adversarial" if adversarial else "warm-up"
    differences = [check(model.network, batch[0]), check(model.discriminator, batch[1][0])]
    print(f"HR {settings.crop}, {phase}: outputs agree to {max(differences):.1e}")
    torch._dynamo.reset()  # what was compiled before counts towards PyTorch's limit

    def torch_engine(kind=TorchStep, **kwargs):
        return kind(model, settings, adversarial, batch, **kwargs)

    engines = native({
        "keras float32": our_step(settings, adversarial, batch, "float32"),
        "keras mixed_bfloat16": our_step(settings, adversarial, batch, "mixed_bfloat16"),
        "torch eager": torch_engine(),
        "torch eager channels_last": torch_engine(channels_last=True),
        "torch compiled": torch_engine(compiled=True),
        "torch compiled channels_last": torch_engine(channels_last=True, compiled=True),
        "torch eager bfloat16": torch_engine(channels_last=True, autocast=True),
    })
    if adversarial:
        engines["torch two passes"] = torch_engine(TwoPasses)
        engines["torch two passes channels_last"] = torch_engine(TwoPasses, channels_last=True)
    first = {name: [step() for _ in range(FIRST)] for name, step in engines.items()}
    ours = first["keras float32"]
    for name, losses in first.items():
        if not agree(name, losses, ours):
            raise SystemExit(f"{name}: the first losses are {losses}, not {ours}: nothing to compare")

    seconds = interleaved(engines, rounds)
    # Gradients of weights and of features cost as much as the forward pass each. The
    # discriminator sees two pictures; the generator needs the features' gradients of one more.
    work = 3 * flop(model.network, *batch[0].shape[1:3])
    if adversarial:
        work += (2 * 3 + 1) * flop(model.discriminator, settings.crop, settings.crop)
    # What two passes compute twice counts once.
    rows, peak = training_rows(seconds, settings.batch * work, settings.batch, ("bfloat16", "two passes"))
    return [{"hr": settings.crop, "phase": phase, **row, "first_losses": first[row["engine"]]}
            for row in rows], peak


def main(
    scale: int = 4,
    hr: tuple[int, ...] = (48, 96),
    batch: int = 16,
    rounds: int = 10,
    json: str = "train_srgan",
):
    """Training speed of SRGAN against the same networks and steps in PyTorch.

    Args:
        scale: HR's size over LR's: 2, 4 or 8.
        hr: Sizes of HR's patches in pixels.
        batch: Patches in a step.
        rounds: Timed steps of every engine.
        json: Name of the result file in benchmarks/results.
    """
    rows, peaks = [], {}
    for size in hr:
        # With beta_2 as shipped, the two epsilons are near in the second step too.
        settings = Settings(scale=scale, crop=size, batch=batch, beta_2=0.99)
        for adversarial in (True, False):
            more, peak = measure(settings, adversarial, rounds)
            rows += more
            peaks[f"{size} {more[0]['phase']}"] = peak
            # After each: the whole takes half an hour.
            save(json, rows, goal="keras float32 over_best_torch_float32 >= 1", peak_gflop_per_second=peaks,
                 torch_threads=torch.get_num_threads(), scale=scale, batch=batch)
    print(table(rows, {
        "hr": "d", "phase": "", "engine": "", "step_seconds": ".3f", "pictures_per_second": ".1f",
        "over_best_torch_float32": ".2f", "over_keras_float32": ".2f", "gflop_per_second": ".0f",
        "of_peak_conv": ".0%", "of_peak_matmul": ".0%",
    }))


if __name__ == "__main__":
    command(main)
