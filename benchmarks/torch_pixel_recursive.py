"""The network of models/pixel_recursive.py in PyTorch: the rival that the benchmarks time.

Written as a PyTorch user would write it (NCHW modules, masks as buffers), with the weights of
the Keras network, so that both compute the same logits. It covers batch normalisation and
a softmax head.
"""

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_lapsrn import to_torch

from superres.layers import GatedPixelCNNBlock
from superres.layers.masked_conv import colour_mask


class ResidualBlock(nn.Module):
    def __init__(self, filters):
        super().__init__()
        self.conv1 = nn.Conv2d(filters, filters, 3, padding=1)
        self.norm1 = batch_norm(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1)
        self.norm2 = batch_norm(filters)

    def forward(self, x):
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


def batch_norm(filters):
    return nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01)  # as Keras has them


class Upsample(nn.ConvTranspose2d):
    """Transposed convolution of stride 2, padded as TensorFlow's `same`: one more at the end than before."""

    def __init__(self, filters, kernel_size):
        super().__init__(filters, filters, kernel_size, stride=2, padding=(kernel_size - 2) // 2)

    def forward(self, x):
        height, width = x.shape[2:]
        return super().forward(x)[:, :, : 2 * height, : 2 * width]


class Conditioning(nn.Sequential):
    """LR (B, C, h, w) in [0, 1] -> logits (B, 256 C, sh, sw), colour by colour."""

    def __init__(self, upsamplings, channels, filters, blocks, transpose_kernel, levels):
        super().__init__(nn.Conv2d(channels, filters, 1))
        for i in range(upsamplings + 1):
            if i:
                self.append(Upsample(filters, transpose_kernel))
            self.extend(ResidualBlock(filters) for _ in range(blocks))
        self.append(nn.Conv2d(filters, channels * levels, 1))

    def forward(self, lr):
        return super().forward(lr - 0.5)


class MaskedConv2d(nn.Conv2d):
    """Convolution whose last tap is masked: `mask` is (inputs, outputs), see `colour_mask`."""

    def __init__(self, inputs, outputs, kernel_size, mask, **kwargs):
        super().__init__(inputs, outputs, kernel_size, **kwargs)
        open_to = torch.ones_like(self.weight)
        open_to[:, :, -1, -1] = torch.from_numpy(mask.T)
        self.register_buffer("mask", open_to)

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class GatedBlock(nn.Module):
    """Gated convolution of the vertical and the horizontal stack: v, h -> v, h."""

    def __init__(self, channels, filters, kernel_size, mask_type, colours):
        super().__init__()
        self.past, self.first = kernel_size // 2, mask_type == "A"
        self.vertical = nn.Conv2d(channels, 2 * filters, (self.past + (not self.first), kernel_size),
                                  padding=(0, self.past))
        self.across = nn.Conv2d(2 * filters, 2 * filters, 1)
        self.horizontal = MaskedConv2d(channels, 2 * filters, (1, self.past + 1),
                                       colour_mask(channels, 2 * filters, mask_type, colours, gates=2),
                                       bias=False)  # `across` has it
        self.output = MaskedConv2d(filters, filters, 1, colour_mask(filters, filters, "B", colours))

    def forward(self, v, h):
        # The first block stops one row earlier: the one shift of the vertical stack.
        features = self.vertical(F.pad(v, (0, 0, self.past, -1 if self.first else 0)))
        gates = self.horizontal(F.pad(h, (self.past, 0))) + self.across(features)
        output = self.output(gated(gates))
        return gated(features), output if self.first else output + h


def gated(features):
    tanh, sigmoid = features.chunk(2, 1)
    return torch.tanh(tanh) * torch.sigmoid(sigmoid)


class Prior(nn.Module):
    """HR (B, C, H, W) in [0, 1] -> logits (B, 256 C, H, W), colour by colour."""

    def __init__(self, channels, filters, kernel_sizes, head, levels):
        super().__init__()
        first, *others = kernel_sizes
        self.blocks = nn.ModuleList([GatedBlock(channels, filters, first, "A", channels)])
        self.blocks.extend(GatedBlock(filters, filters, size, "B", channels) for size in others)
        outputs = channels * levels
        self.head = MaskedConv2d(filters, head, 1, colour_mask(filters, head, "B", channels))
        self.last = MaskedConv2d(head, outputs, 1, colour_mask(head, outputs, "B", channels))

    def forward(self, hr):
        v = h = hr - 0.5
        for block in self.blocks:
            v, h = block(v, h)
        return self.last(F.relu(self.head(h)))


class PixelRecursive(nn.Module):
    """LR, HR -> the conditioning network's logits and the prior network's."""

    def __init__(self, conditioning, prior):
        super().__init__()
        self.conditioning, self.prior = conditioning, prior

    def forward(self, lr, hr):
        return self.conditioning(lr), self.prior(hr)

    @classmethod
    def from_keras(cls, network):
        """The PyTorch network with a Keras network's settings and weights."""
        ours, prior = network.get_layer("conditioning"), network.get_layer("prior")
        channels, levels = network.output_shape[0][-2:]
        layers = [layer for layer in ours.layers if layer.weights]
        upsamplings = [layer for layer in layers if isinstance(layer, keras.layers.Conv2DTranspose)]
        norms = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)
        conditioning = Conditioning(
            len(upsamplings), channels, layers[0].filters, norms // 2 // (len(upsamplings) + 1),
            upsamplings[0].kernel_size[0], levels,
        )
        # Both list their layers in the order in which they compute.
        modules = [module for module in conditioning.modules()
                   if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))]
        for layer, module in zip(layers, modules, strict=True):
            (copy_norm if isinstance(module, nn.BatchNorm2d) else _copy)(module, *layer.get_weights())

        blocks = [layer for layer in prior.layers if isinstance(layer, GatedPixelCNNBlock)]
        model = Prior(channels, blocks[0].filters, [block.kernel_size for block in blocks],
                      prior.get_layer("head").filters, levels)
        for layer, block in zip(blocks, model.blocks, strict=True):
            _copy(block.vertical, layer.vertical_kernel, layer.vertical_bias)
            _copy(block.across, layer.across_kernel, layer.horizontal_bias)
            _copy(block.horizontal, layer.horizontal_kernel)
            _copy(block.output, layer.output_kernel, layer.output_bias)
        for name in ("head", "last"):
            _copy(getattr(model, name), *prior.get_layer(name).get_weights())
        return cls(conditioning, model)


@torch.no_grad()
def _copy(module, kernel, bias=None):
    # (height, width, inputs, outputs), the last two the other way round where transposed:
    # in both cases PyTorch has them reversed. A 1x1 kernel may come without height and width.
    kernel = np.array(kernel)
    kernel = kernel.reshape(*[1] * (4 - kernel.ndim), *kernel.shape)
    module.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
    if bias is not None:
        module.bias.copy_(torch.from_numpy(np.array(bias)))


@torch.no_grad()
def copy_norm(module, *weights):
    for target, source in zip((module.weight, module.bias, module.running_mean, module.running_var),
                              weights, strict=True):
        target.copy_(torch.from_numpy(source))


def cross_entropy(logits, hr):
    """losses.cross_entropy: nats a sub-pixel, averaged over everything.

    Args:
        logits: (B, 256 C, H, W).
        hr: (B, C, H, W) in [0, 1].
    """
    levels, colours = (hr * 255).round().long(), hr.shape[1]
    if logits.is_contiguous(memory_format=torch.channels_last):
        # A view: the levels of a sub-pixel lie side by side.
        logits = logits.permute(0, 2, 3, 1).unflatten(-1, (colours, -1))
        return F.cross_entropy(logits.flatten(0, -2), levels.permute(0, 2, 3, 1).flatten())
    return F.cross_entropy(logits.unflatten(1, (colours, -1)).flatten(0, 1), levels.flatten(0, 1))


def check(network, lr, hr, tolerance=1e-4):
    """The largest difference between the logits of a Keras network and its PyTorch copy.

    Args:
        lr: (B, h, w, C) float32 array.
        hr: (B, H, W, C) float32 array.
        tolerance: More than this, relative to the largest logit, ends the benchmark.
    """
    ours = network.predict_on_batch([lr, hr])
    with torch.inference_mode():
        theirs = PixelRecursive.from_keras(network).eval()(to_torch(lr), to_torch(hr))
    difference = max(
        float(np.abs(a - np.moveaxis(b.numpy(), 1, -1).reshape(a.shape)).max() / max(1, np.abs(a).max()))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not difference <= tolerance:
        raise SystemExit(f"the two networks differ by {difference:.1e}: nothing to compare")
    return difference
