"""The network of models/lapsrn.py in PyTorch: the rival that the benchmarks time.

Written as a PyTorch user would write it (NCHW modules, `pixel_shuffle`), with the weights
of the Keras network, so that both compute the same picture.
"""

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class LapSRN(nn.Module):
    """(B, C, H, W) in [0, 1] -> list of (B, C, 2^i H, 2^i W), one a level.

    Covers the networks that chain features, have the fixed bicubic image branch and make
    the last level's residual picture directly.

    Args:
        levels: log2 of the scale.
        depth: 3x3 convolutions of a level, the same for all.
        skip_every: Skip connection around every so many of them.
    """

    def __init__(self, levels, channels, filters, depth, slope, skip_every):
        super().__init__()
        self.slope, self.skip_every = slope, skip_every
        self.head = nn.Conv2d(channels, filters, 3, padding=1)
        self.levels = nn.ModuleList(
            nn.ModuleDict({
                "convs": nn.ModuleList(nn.Conv2d(filters, filters, 3, padding=1) for _ in range(depth)),
            })
            for _ in range(levels)
        )
        for level in self.levels[:-1]:
            level["up"] = nn.Conv2d(filters, 4 * filters, 3, padding=1)
            level["residual"] = nn.Conv2d(filters, channels, 3, padding=1)
        self.levels[-1]["residual"] = nn.Conv2d(filters, 4 * channels, 5, padding=2)
        # Bicubic x2 as a convolution, the two phases of Keys' kernel (a = -0.5) at -1/4 and 1/4.
        taps = np.array([[-3, 29, 111, -9, 0], [0, -9, 111, 29, -3]]) / 128
        kernel = np.einsum("pi,qj->pqij", taps, taps).reshape(4, 1, 5, 5)
        self.register_buffer("bicubic", torch.tensor(np.tile(kernel, (channels, 1, 1, 1))).float())

    def forward(self, image):
        features = self.head(image)
        outputs = []
        for level in self.levels:
            x = skip = features
            for i, conv in enumerate(level["convs"], start=1):
                x = conv(F.leaky_relu(x, self.slope))
                if i % self.skip_every == 0:
                    x = skip = skip + x
            if "up" in level:
                features = F.pixel_shuffle(level["up"](x), 2)
                residual = level["residual"](features)
            else:
                residual = F.pixel_shuffle(level["residual"](x), 2)
            image = self._upsample(image) + residual
            outputs.append(image)
        return outputs

    def _upsample(self, image):
        # Symmetric padding, which PyTorch lacks: two rows and columns of mirrored pixels.
        image = torch.cat([image[:, :, :2].flip(2), image, image[:, :, -2:].flip(2)], 2)
        image = torch.cat([image[..., :2].flip(3), image, image[..., -2:].flip(3)], 3)
        return F.pixel_shuffle(F.conv2d(image, self.bicubic, groups=image.shape[1]), 2)

    @classmethod
    def from_keras(cls, network):
        """The PyTorch network with a Keras network's settings and weights."""
        layers = {layer.name: layer for layer in network.layers}
        channels, filters = layers["head"].kernel.shape[2:]
        skips = [int(name.removeprefix("level1_skip")) for name in layers if name.startswith("level1_skip")]
        model = cls(
            levels=sum(name.endswith("_sr") for name in layers),
            channels=channels,
            filters=filters,
            depth=sum(name.startswith("level1_conv") for name in layers),
            slope=layers["level1_act1"].negative_slope,
            skip_every=min(skips),
        )
        copy_conv(layers["head"], model.head)
        for number, level in enumerate(model.levels, start=1):
            for i, conv in enumerate(level["convs"], start=1):
                copy_conv(layers[f"level{number}_conv{i}"], conv)
            if "up" in level:
                copy_conv(layers[f"level{number}_up"], level["up"], shuffle=4)
            copy_conv(layers[f"level{number}_residual"], level["residual"], shuffle=1 if "up" in level else 4)
        return model


@torch.no_grad()
def copy_conv(layer, conv, shuffle=1):
    kernel, bias = layer.get_weights()
    # Keras keeps the channels before a pixel shuffle as (sub-pixel, filter), PyTorch as
    # (filter, sub-pixel).
    order = np.arange(len(bias)).reshape(shuffle, -1).T.ravel()
    conv.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)[order]))
    conv.bias.copy_(torch.from_numpy(bias[order]))


def charbonnier(hr, sr, epsilon=1e-3):
    """losses.Charbonnier: averaged over pixels and pictures."""
    return torch.sqrt((hr - sr).square() + epsilon**2).mean()


def to_torch(array, channels_last=False):
    """(B, H, W, C) array -> (B, C, H, W) tensor, in either memory layout."""
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


def check(network, lr, tolerance=1e-4):
    """The largest difference between the pictures of a Keras network and its PyTorch copy.

    Args:
        lr: (B, H, W, C) float32 array.
        tolerance: More than this, relative to the largest value, ends the benchmark.
    """
    ours = keras.tree.flatten(network.predict_on_batch(lr))
    with torch.inference_mode():
        theirs = LapSRN.from_keras(network)(to_torch(lr))
    difference = max(
        float(np.abs(a - np.moveaxis(b.numpy(), 1, -1)).max() / max(1, np.abs(a).max()))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not difference <= tolerance:
        raise SystemExit(f"the two networks differ by {difference:.1e}: nothing to compare")
    return difference
