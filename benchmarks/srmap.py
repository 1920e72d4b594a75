"""Speed and memory of SRMAP against the same networks and steps in PyTorch.

    python benchmarks/srmap.py

The step is the adversarial one with R1 (`train/srmap.py reported --size reduced --no-reuse`): a batch is
split between the networks, each gets its gradients, each its Adam. Inference is the generator
alone, full and reduced, with noise and without: ours is a function of the place, PyTorch's
comes from its generator, on one core. All engines take turns. Memory is the peak of a process
of its own, compiling included, over what it had before the first call; where that, once used to
build a large network, suffices, little is left to see.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses
import math
import multiprocessing
from typing import Literal

import keras
import numpy as np
import torch
import torch._inductor.config
from common import (
    flop,
    interleaved,
    keras_step,
    keras_trainer,
    native,
    peak_functions,
    randomise,
    resident,
    save,
    table,
    training_rows,
)
from torch.nn import functional as F
from torch_lapsrn import to_torch
from torch_srmap import Discriminator, Generator, check
from train_srgan import agree

from superres.datasets.degradations import resize_matrix
from superres.layers import NoiseInjection
from superres.models.srmap import SIZES, generator
from superres.models.upscaler import at_precision
from superres.train.srmap import REPORTED, trainer

FIRST = 3  # so many losses of an engine must agree before it is timed


def fixed_batch(settings, seed=0):
    """((lr, seeds), (hr,)): noise, whose values do not change the time of a step."""
    rng = np.random.default_rng(seed)
    lr, hr = (rng.random((settings.batch, size, size, 3), "float32")
              for size in (settings.crop // settings.scale, settings.crop))
    return (lr, rng.integers(2**31, size=(settings.batch, 2)).astype("int32")), (hr,)


def placed(lr, temperature=1.0):
    """What our generator takes: LR, and the noise's seeds, temperatures and places."""
    count = len(lr)
    return [lr, np.arange(count, dtype="int32"), np.full(count, temperature, "float32"),
            np.zeros((count, 2), "int32")]


def torch_copy(kind, network, size, **arguments):
    return kind.from_keras(network, **SIZES[size][kind is Discriminator], **arguments)


def silence(network):
    """Scales of zero: the noise is drawn, but the engines' losses can be compared."""
    for layer in network.layers:
        if isinstance(layer, NoiseInjection):
            layer.scale.assign(np.zeros(layer.scale.shape))


class TorchStep:
    """Does the adversarial step in PyTorch when called, and returns the losses of both networks.

    Args:
        model: The Keras trainer whose weights both networks start from.
        compiled: Compile the networks, but for the discriminator's pass whose gradient is penalised.
        autocast: Compute in bfloat16.
    """

    def __init__(self, model, settings, batch, channels_last=False, compiled=False, autocast=False):
        self.settings, self.autocast = settings, autocast
        layout = torch.channels_last if channels_last else torch.contiguous_format
        pairs = (Generator, model.network), (Discriminator, model.discriminator)
        self.networks = [torch_copy(*pair, settings.size).to(memory_format=layout) for pair in pairs]
        (lr, _), (hr,) = batch
        self.batch = [to_torch(x[i::2], channels_last) for i in (0, 1) for x in (lr, hr)]
        self.batch[-1].requires_grad_(True)  # for the penalty's gradient
        shrink = resize_matrix(settings.crop, 1 / settings.scale).toarray()
        self.shrink = torch.from_numpy(shrink.astype("float32"))
        # Where PyTorch adds Adam's epsilon, see train_srgan.py.
        eps = 1e-8 / math.sqrt(1 - settings.beta_2)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), settings.learning_rate, (0.9, settings.beta_2), eps,
                             fused=True)
            for network in self.networks
        ]
        # What the penalty needs, a gradient's gradient, PyTorch's compiler refuses: that pass stays eager.
        self.calls = [torch.compile(network, dynamic=False) if compiled else network
                      for network in self.networks]

    def forward(self, network, pictures):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return network(pictures).float()

    def gradients(self, lr, hr, other_lr, other_hr):
        """The losses, and the gradient of each for its own network."""
        generator, discriminator = self.calls
        sr = self.forward(generator, lr)
        fidelity = (lr - self.shrink @ sr @ self.shrink.T).abs().mean()
        adversarial = F.softplus(self.forward(discriminator, hr) - self.forward(discriminator, sr)).mean()
        loss = self.settings.fidelity * fidelity + adversarial
        gradients = torch.autograd.grad(loss, list(self.networks[0].parameters()))

        with torch.no_grad():
            sr = self.forward(generator, other_lr)
        real, fake = self.forward(self.networks[1], other_hr), self.forward(discriminator, sr)
        (slope,) = torch.autograd.grad(real.sum(), other_hr, create_graph=True)
        shown = F.softplus(fake - real).mean()
        penalised = shown + self.settings.r1 / 2 * slope.square().sum((1, 2, 3)).mean()
        return [loss.detach(), shown.detach()], [
            gradients, torch.autograd.grad(penalised, list(self.networks[1].parameters()))]

    def __call__(self):
        losses, gradients = self.gradients(*self.batch)
        for network, found in zip(self.networks, gradients, strict=True):
            for parameter, gradient in zip(network.parameters(), found, strict=True):
                if gradient.stride() != parameter.stride():  # Adam's fused loop takes them for equal
                    gradient = torch.empty_like(parameter).copy_(gradient)
                parameter.grad = gradient
        for optimizer in self.optimizers:
            optimizer.step()
        return [loss.item() for loss in losses]


def measure_step(settings, rounds):
    """The rows of the step, and the machine's best rates at that time."""
    batch = fixed_batch(settings)
    model = keras_trainer(trainer, settings, "float32")
    silence(model.network)
    differences = [
        check(model.network, torch_copy(Generator, model.network, settings.size), placed(batch[0][0], 0.0)),
        check(model.discriminator, torch_copy(Discriminator, model.discriminator, settings.size),
              batch[1][0]),
    ]
    print(f"step: outputs agree to {max(differences):.1e}")
    torch._dynamo.reset()

    def our_step(precision):
        ours = keras_trainer(trainer, settings, precision)
        silence(ours.network)
        return keras_step(ours, batch, ["loss", "discriminator"])

    engines = native({
        "keras float32": our_step("float32"),
        "keras mixed_bfloat16": our_step("mixed_bfloat16"),
        "torch eager": TorchStep(model, settings, batch),
        "torch eager channels_last": TorchStep(model, settings, batch, channels_last=True),
        "torch compiled": TorchStep(model, settings, batch, compiled=True),
        "torch compiled channels_last": TorchStep(model, settings, batch, channels_last=True, compiled=True),
        "torch eager bfloat16": TorchStep(model, settings, batch, channels_last=True, autocast=True),
    })
    first = {name: [step() for _ in range(FIRST)] for name, step in engines.items()}
    wrong = [name for name, losses in first.items() if not agree(name, losses, first["keras float32"])]
    for name in wrong:
        print(f"left out: {name}, whose first losses are {first[name]}, not {first['keras float32']}")
    if "torch eager" in wrong:
        raise SystemExit("nothing to compare")
    engines = {name: step for name, step in engines.items() if name not in wrong}
    seconds = interleaved(engines, rounds)
    work = settings.batch / 2 * (
        (3 + 1) * flop(generator(settings.scale, noise=False, **SIZES[settings.size][0]),
                       *batch[0][0].shape[1:3])
        # For the generator two passes and the gradient of one; for the discriminator two, their
        # gradients, and those of the penalty's, twice as many as of its pass.
        + (2 + 1 + 2 * 3 + 3) * flop(model.discriminator, settings.crop, settings.crop))
    rows, peak = training_rows(seconds, work, settings.batch)
    rows = [{**row, "first_losses": first[row["engine"]]} for row in rows]
    return rows + [{"engine": name, "left_out": True, "first_losses": first[name]} for name in wrong], peak


def inference_engines(size, noise, width, height, chosen=None):
    """Dict of name -> function that draws SR of one LR picture."""
    keras.utils.set_random_seed(0)
    network = generator(4, **SIZES[size][0], noise=noise)
    randomise(network)
    lr = np.random.default_rng(0).random((1, height, width, 3), "float32")
    inputs = placed(lr) if noise else lr

    def torch_engine(channels_last=False, compiled=False, frozen=False, autocast=False):
        model = torch_copy(Generator, network, size, noise=noise).eval().requires_grad_(False)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        picture = to_torch(lr, channels_last)
        call = torch.compile(model, dynamic=False) if compiled else model
        # Freezing refuses inference_mode's tensors.
        context = torch.no_grad if frozen else torch.inference_mode

        def draw():
            with (torch._inductor.config.patch(freezing=frozen), context(),
                  torch.autocast("cpu", torch.bfloat16, enabled=autocast)):
                return call(picture).numpy()

        return draw

    def ours(precision):
        at = at_precision(network, precision)
        return lambda: at.predict_on_batch(inputs)

    makers = native({
        "keras float32": lambda: ours("float32"),
        "keras bfloat16": lambda: ours("bfloat16"),
        "torch eager": torch_engine,
        "torch eager channels_last": lambda: torch_engine(channels_last=True),
        "torch compiled": lambda: torch_engine(compiled=True),
        "torch compiled channels_last": lambda: torch_engine(channels_last=True, compiled=True),
        "torch compiled frozen": lambda: torch_engine(compiled=True, frozen=True),
        "torch compiled frozen bfloat16": lambda: torch_engine(compiled=True, frozen=True, autocast=True),
    })
    if chosen is None:
        small = lr[:, :32, :32]
        difference = check(network, torch_copy(Generator, network, size, noise=noise),
                           placed(small, 0.0) if noise else small)
        print(f"{size}: outputs agree to {difference:.1e}")
    return {name: make() for name, make in makers.items() if chosen in (None, name)}


def peak_memory(size, noise, width, height, engine):
    """MiB that an engine needs at most for two pictures, over what the process had before."""
    (draw,) = inference_engines(size, noise, width, height, engine).values()
    before = resident(peak=False)
    for _ in range(2):
        draw()
    return resident() - before


def measure_inference(size, noise, width, height, rounds):
    torch._dynamo.reset()
    engines, peaks = inference_engines(size, noise, width, height), peak_functions()
    seconds = interleaved({**engines, **{name: function for name, (function, _) in peaks.items()}}, rounds)
    peak = {name: work / seconds[name]["min"] / 1e9 for name, (_, work) in peaks.items()}
    work = flop(generator(4, noise=False, **SIZES[size][0]), height, width)
    best = min(s["median"] for name, s in seconds.items() if "torch" in name and "bfloat16" not in name)
    rows = []
    for name in engines:
        median = seconds[name]["median"]
        rate = work / median / 1e9
        # A process of its own for each: what a network needs at most does not go down again.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(peak_memory, (size, noise, width, height, name))
        rows.append({
            "noise": noise, "engine": name,
            "seconds": median, "seconds_min": seconds[name]["min"],
            "over_best_torch_float32": best / median, "peak_mib": memory, "gflop_per_second": rate,
            "of_peak_conv": rate / peak[f"conv {'bfloat16' if 'bfloat16' in name else 'float32'}"],
        })
    return rows, peak


def main(
    batch: int = 16,
    width: int = 160,
    height: int = 90,
    rounds: int = 8,
    parts: tuple[Literal["reduced", "full", "step"], ...] = ("reduced", "full", "step"),
):
    """Speed and memory of SRMAP against the same networks and steps in PyTorch.

    Args:
        batch: Patches in a step; one half for each network.
        width: Of the LR picture that is upscaled, in pixels; half as wide for the full network.
        height: Of the LR picture, in pixels; half as high for the full network.
        rounds: Timed calls of every engine.
        parts: What is measured: the inference of the reduced and of the full generator, and the step.
            Each has a result file of its own: compiling takes PyTorch minutes every time.
    """
    for part in parts:
        about = {"goal": "keras float32 over_best_torch_float32 >= 1",
                 "torch_threads": torch.get_num_threads()}
        if part == "step":
            settings = dataclasses.replace(REPORTED, size="reduced", crop=96, batch=batch, ema=0.0,
                                           reuse=False)
            rows, peaks = measure_step(settings, rounds)
            about["batch"] = batch
            columns = {"engine": "", "step_seconds": ".3f", "pictures_per_second": ".1f",
                       "over_best_torch_float32": ".2f", "over_keras_float32": ".2f",
                       "gflop_per_second": ".0f", "of_peak_conv": ".0%"}
        else:
            size = [n // (2 if part == "full" else 1) for n in (width, height)]
            rows, peaks, about["lr_size"] = [], {}, size
            for noise in (True, False):
                more, peaks[f"noise {noise}"] = measure_inference(part, noise, *size, rounds)
                rows += more
            columns = {"noise": "", "engine": "", "seconds": ".3f", "over_best_torch_float32": ".2f",
                       "peak_mib": ".0f", "gflop_per_second": ".0f", "of_peak_conv": ".0%"}
        print(table([row for row in rows if "left_out" not in row], columns))
        save(f"srmap_{part}", rows, **about, peak_gflop_per_second=peaks)


if __name__ == "__main__":
    command(main)
