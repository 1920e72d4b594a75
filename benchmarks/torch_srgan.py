"""The networks of models/srgan.py in PyTorch: the rivals that the benchmarks time.

Written as a PyTorch user would write them (NCHW modules, `PixelShuffle`, `PReLU`), with the
weights of the Keras networks, so that both compute the same pictures and logits. They cover
the discriminator that averages over the picture.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_lapsrn import copy_conv, to_torch
from torch_pixel_recursive import batch_norm, copy_norm

from superres.layers import SubPixelConv2D


class ResidualBlock(nn.Sequential):
    def __init__(self, filters, slopes):
        super().__init__(
            _conv(filters), batch_norm(filters), nn.PReLU(slopes), _conv(filters), batch_norm(filters)
        )

    def forward(self, x):
        return x + super().forward(x)


def _conv(filters, factor=1):
    return nn.Conv2d(filters, factor * filters, 3, padding=1)


class Generator(nn.Module):
    """LR (B, 3, H, W) in [0, 1] -> (B, 3, sH, sW) in [0, 1].

    Args:
        upsamplings: log2 of the scale.
        slopes: How many a PReLU learns: 1, or one for each channel.
    """

    def __init__(self, upsamplings, blocks, filters, slopes):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, filters, 9, padding=4), nn.PReLU(slopes))
        self.body = nn.Sequential(
            *(ResidualBlock(filters, slopes) for _ in range(blocks)), _conv(filters), batch_norm(filters)
        )
        self.tail = nn.Sequential()
        for _ in range(upsamplings):
            self.tail.extend([_conv(filters, 4), nn.PixelShuffle(2), nn.PReLU(slopes)])
        self.tail.append(nn.Conv2d(filters, 3, 9, padding=4))

    def forward(self, lr):
        head = self.head(2 * lr - 1)
        sr = self.tail(head + self.body(head))
        return 0.5 + 0.5 * torch.tanh(sr.float())  # in float32 under autocast too, as in ours

    @classmethod
    def from_keras(cls, network):
        """The PyTorch network with a Keras network's settings and weights."""
        layers = [layer for layer in network.layers if layer.weights]
        upsamplings = sum(isinstance(layer, SubPixelConv2D) for layer in layers)
        # Head and its PReLU, five a block, the body's last two, two an upsampling, the tail's last.
        blocks = (len(layers) - 5 - 2 * upsamplings) // 5
        return _copied(cls(upsamplings, blocks, layers[0].filters, layers[1].alpha.shape[-1]), layers)


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2, padded as TensorFlow's `same`: even sizes at the end alone."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, stride=2)

    def forward(self, x):
        height, width = x.shape[2:]
        return super().forward(F.pad(x, (width % 2, 1, height % 2, 1)))


class Discriminator(nn.Sequential):
    """HR (B, 3, H, W) in [0, 1] -> logits (B, 1)."""

    def __init__(self, filters):
        super().__init__()
        inputs = 3
        for factor in (1, 2, 4, 8):
            outputs = factor * filters
            self.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if factor > 1:
                self.append(batch_norm(outputs))
            self.append(nn.LeakyReLU(0.2, inplace=True))
            self.extend([Downsample(outputs, outputs), batch_norm(outputs), nn.LeakyReLU(0.2, inplace=True)])
            inputs = outputs
        self.extend([nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, 16 * filters, 1),
                     nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(16 * filters, 1, 1), nn.Flatten()])

    def forward(self, pictures):
        return super().forward(pictures).float()

    @classmethod
    def from_keras(cls, network):
        """The PyTorch network with a Keras network's settings and weights."""
        layers = [layer for layer in network.layers if layer.weights]
        return _copied(cls(layers[0].filters), layers)


def _copied(model, layers):
    """The model, with the weights of Keras layers."""
    # Both list their layers in the order in which they compute.
    modules = [module for module in model.modules()
               if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.PReLU))]
    for layer, module in zip(layers, modules, strict=True):
        if isinstance(module, nn.Conv2d):
            copy_conv(layer, module, layer.scale**2 if isinstance(layer, SubPixelConv2D) else 1)
        elif isinstance(module, nn.BatchNorm2d):
            copy_norm(module, *layer.get_weights())
        else:
            module.weight.data.copy_(torch.from_numpy(layer.get_weights()[0].ravel()))
    return model


def check(network, pictures, tolerance=1e-4):
    """The largest difference between what a Keras network and its PyTorch copy put out.

    Each is called as in use, and then as in training, on the statistics of the batch.

    Args:
        network: A generator or a discriminator.
        pictures: (B, H, W, 3) float32 array.
        tolerance: More than this, relative to the largest value, ends the benchmark.
    """
    kind = Generator if len(network.output_shape) == 4 else Discriminator
    weights, model, differences = network.get_weights(), kind.from_keras(network), []
    for training in (False, True):
        ours = np.array(network(pictures, training=training))
        with torch.inference_mode():
            theirs = np.moveaxis(model.train(training)(to_torch(pictures)).numpy(), 1, -1)
        differences.append(float(np.abs(ours - theirs).max() / max(1, np.abs(ours).max())))
    network.set_weights(weights)  # training moved the averages of the statistics
    if not max(differences) <= tolerance:
        raise SystemExit(f"the two networks differ by {max(differences):.1e}: nothing to compare")
    return max(differences)
