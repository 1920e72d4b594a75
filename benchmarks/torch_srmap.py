"""The networks of models/srmap.py in PyTorch: the rival of the benchmarks.

Written as a PyTorch user would, noise drawn from PyTorch's own generator. Layers carry the names
of ours, from which their weights are copied so that both compute the same; `check` compares the
outputs without noise before anything is timed.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_lapsrn import to_torch

from superres.models.srmap import MEAN


class Activation(nn.Module):
    """Noise with a scale for each channel, a bias for each channel, SiLU."""

    def __init__(self, channels, noise=False):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels)) if noise else None
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x, temperature=1.0):
        if self.scale is not None and temperature:
            x = x + temperature * self.scale.view(-1, 1, 1) * torch.randn_like(x)
        return F.silu(x + (self.bias.view(-1, 1, 1) if x.ndim == 4 else self.bias))


class Network(nn.Module):
    """Convolutions and activations by the names of ours."""

    def __init__(self, noise=False):
        super().__init__()
        self.noise, self.convs, self.acts = noise, nn.ModuleDict(), nn.ModuleDict()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("binomial", torch.outer(row, row).expand(1, 1, 3, 3).contiguous())

    def add(self, name, inputs, outputs, kernel_size=3, act=""):
        # Without anything to pad, "reflect" would still copy the input.
        self.convs[name] = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2,
                                     padding_mode="reflect" if kernel_size > 1 else "zeros", bias=False)
        if act:
            self.acts[act] = Activation(outputs, self.noise)

    def blur(self, x):
        """[1, 2, 1] / 4 each way, edges reflected."""
        kernel = self.binomial.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), kernel, groups=x.shape[1])

    @classmethod
    @torch.no_grad()
    def from_keras(cls, network, **arguments):
        model = cls(**arguments)
        for name, module in model.convs.items():
            kernel = np.asarray(network.get_layer(name).kernel)
            # Keras keeps the channels around a pixel shuffle as (sub-pixel, filter), PyTorch as
            # (filter, sub-pixel).
            if name.endswith("expand"):
                kernel = kernel[..., np.arange(kernel.shape[-1]).reshape(4, -1).T.ravel()]
            if name.endswith("reduce"):
                kernel = kernel[:, :, np.arange(kernel.shape[2]).reshape(4, -1).T.ravel()]
            order = (2, 3, 0, 1) if module.groups > 1 else (3, 2, 0, 1)
            module.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.transpose(order))))
        for name, module in model.acts.items():
            module.bias.copy_(torch.from_numpy(np.array(network.get_layer(f"{name}_act").bias)))
            if module.scale is not None:
                module.scale.copy_(torch.from_numpy(np.array(network.get_layer(f"{name}_noise").scale)))
        return model


def bilinear(x, factor, antialias=False):
    x = x.float() if antialias else x  # which PyTorch has no bfloat16 for
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False, antialias=antialias)


class Generator(Network):
    """LR (B, 3, H, W) in [0, 1] -> (B, 3, sH, sW)."""

    def __init__(self, stem=256, widths=(512, 256, 128), blocks=(16, 16, 16, 16), compression=4, noise=True):
        super().__init__(noise)
        self.blocks, self.doublings = blocks, len(widths) - 1
        self.add("stem", 3, stem, act="stem")
        self.add("stem_features", stem, widths[0], 1, act="features")
        for i, count in enumerate(blocks, start=1):
            for j in range(1, count + 1):
                name = f"stage{i}_block{j}"
                self.add(f"{name}_conv1", stem, stem // compression, act=f"{name}_conv1")
                self.add(f"{name}_conv2", stem // compression, stem, act=name)
            self.add(f"stage{i}_features", stem, widths[0], 1)
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            bottleneck = before // compression
            self.add(f"up{i}_conv1", before, bottleneck, act=f"up{i}_conv1")
            self.add(f"up{i}_expand", bottleneck, before, 1)
            self.acts[f"up{i}_blur"] = Activation(before // 4, noise)
            self.add(f"up{i}_shortcut", before, after, 1)
            self.add(f"up{i}_conv2", before // 4, after, act=f"up{i}")
            self.add(f"up{i}_to_rgb", after, 3, 1)

    def forward(self, lr, temperature=1.0):
        convs, acts = self.convs, self.acts
        x = convs["stem"](lr - self.mean)
        a = acts["stem"](x, temperature)
        f = convs["stem_features"](a)
        for i, count in enumerate(self.blocks, start=1):
            for j in range(1, count + 1):
                name = f"stage{i}_block{j}"
                y = acts[f"{name}_conv1"](convs[f"{name}_conv1"](a), temperature)
                x = x + convs[f"{name}_conv2"](y)
                a = acts[name](x, temperature)
            f = f + convs[f"stage{i}_features"](a)
        g, picture = acts["features"](f, temperature), lr
        for i in range(1, self.doublings + 1):
            y = acts[f"up{i}_conv1"](convs[f"up{i}_conv1"](g), temperature)
            y = self.blur(F.pixel_shuffle(convs[f"up{i}_expand"](y), 2))
            f = bilinear(convs[f"up{i}_shortcut"](f), 2) + convs[f"up{i}_conv2"](
                acts[f"up{i}_blur"](y, temperature))
            g = acts[f"up{i}"](f, temperature)
            picture = bilinear(picture, 2) + convs[f"up{i}_to_rgb"](g).float()
        return picture


class Discriminator(Network):
    """(B, 3, S, S) in [0, 1] -> logits (B, 1)."""

    def __init__(self, stem=256, widths=(256, 512, 512, 512, 1024, 1024), blocks=(1, 1, 2, 2, 2, 1),
                 compression=4):
        super().__init__()
        self.blocks = blocks
        self.add("stem", 3, stem)
        width = stem
        for i, (after, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            down, bottleneck = f"stage{i}_down", after // compression
            self.acts[down] = Activation(width)
            self.add(f"{down}_conv1", width, bottleneck, act=f"{down}_conv1")
            self.add(f"{down}_reduce", 4 * bottleneck, bottleneck, 1, act=f"{down}_reduce")
            self.add(f"{down}_conv2", bottleneck, after)
            if after != width:
                self.add(f"{down}_shortcut", width, after, 1)
            width = after
            for j in range(1, count):
                name = f"stage{i}_block{j}"
                self.acts[name] = Activation(width)
                self.add(f"{name}_conv1", width, bottleneck, act=f"{name}_conv1")
                self.add(f"{name}_conv2", bottleneck, width)
        self.acts["whole"] = Activation(width)
        self.convs["whole"] = nn.Conv2d(width, width, 3, groups=width, bias=False)
        self.features, self.logits = nn.Linear(width, width // 2, bias=False), nn.Linear(width // 2, 1)
        self.acts["features"] = Activation(width // 2)

    def forward(self, hr):
        convs, acts = self.convs, self.acts
        x = convs["stem"](hr - self.mean)
        for i, count in enumerate(self.blocks, start=1):
            down = f"stage{i}_down"
            y = self.blur(acts[f"{down}_conv1"](convs[f"{down}_conv1"](acts[down](x))))
            y = acts[f"{down}_reduce"](convs[f"{down}_reduce"](F.pixel_unshuffle(y, 2)))
            shortcut = bilinear(x, 0.5, antialias=True)
            if f"{down}_shortcut" in convs:
                shortcut = convs[f"{down}_shortcut"](shortcut)
            x = shortcut + convs[f"{down}_conv2"](y)
            for j in range(1, count):
                name = f"stage{i}_block{j}"
                x = x + convs[f"{name}_conv2"](acts[f"{name}_conv1"](convs[f"{name}_conv1"](acts[name](x))))
        x = self.features(convs["whole"](acts["whole"](x)).flatten(1))
        return self.logits(acts["features"](x))

    @classmethod
    @torch.no_grad()
    def from_keras(cls, network, **arguments):
        model = super().from_keras(network, **arguments)
        for name, linear in (("features", model.features), ("logits", model.logits)):
            kernel, *bias = network.get_layer(name).get_weights()
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.T)))
            if bias:
                linear.bias.copy_(torch.from_numpy(bias[0]))
        return model


def check(network, model, inputs, tolerance=1e-4):
    """The largest difference between what a Keras network and its PyTorch copy give, without noise.

    Args:
        inputs: What the Keras network takes: an array, or a list that begins with LR.
        tolerance: More than this, relative to the largest value, ends the benchmark.
    """
    several = isinstance(inputs, list)
    ours = network.predict_on_batch(inputs)
    with torch.inference_mode():
        theirs = model(to_torch(inputs[0]), 0.0) if several else model(to_torch(inputs))
    theirs = theirs.numpy() if theirs.ndim == 2 else np.moveaxis(theirs.numpy(), 1, -1)
    difference = float(np.abs(ours - theirs).max() / max(1, np.abs(ours).max()))
    if not difference <= tolerance:
        raise SystemExit(f"the two networks differ by {difference:.1e}: nothing to compare")
    return difference
