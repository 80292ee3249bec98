"""A CIFAR ResNet with a wide stem, projection shortcuts and few ReLUs.

A stem of 64 channels, three stages of 16, 32 and 64; 1x1 convolution and BatchNorm on the shortcut
wherever the shape changes, also from the stem into the first stage. Inside a block ReLU stands only
between the two convolutions, and once after each stage. The means over an image's four quarters
are 256 features: of 32x32 pixels it is a 4x4 average pool, and crops of them can be seen, too.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.networks.cifar_resnet import WIDTHS, blocks_per_stage, stage

STEM = 64
QUARTERS = (2, 2)
FEATURES = 256


class LinearBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them and no ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        summed: Tensor = out + self.shortcut(x)
        return summed


class ResNetSmall(nn.Module):
    """See :func:`resnet_small`."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = stage(LinearBlock, STEM, WIDTHS[0], 1, blocks)
        self.layer2 = stage(LinearBlock, WIDTHS[0], WIDTHS[1], 2, blocks)
        self.layer3 = stage(LinearBlock, WIDTHS[1], WIDTHS[2], 2, blocks)
        self.linear = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` of normalised images ``[B, C, H, W]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            out = torch.relu(layer(out))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, QUARTERS).flatten(1))
        return logits


def resnet_small(depth: int, num_classes: int = 100, in_channels: int = 3) -> ResNetSmall:
    """A ResNet of this family of ``depth`` = 6n + 2 layers, n blocks a stage.

    Raises:
        ValueError: no n >= 1 gives that depth.
    """
    return ResNetSmall(blocks_per_stage(depth), num_classes, in_channels)


def resnet20s(num_classes: int = 100, in_channels: int = 3) -> ResNetSmall:
    """Depth 20: 0.31 million parameters at 100 classes."""
    return resnet_small(20, num_classes, in_channels)


def resnet32s(num_classes: int = 100, in_channels: int = 3) -> ResNetSmall:
    """Depth 32: 0.50 million parameters at 100 classes."""
    return resnet_small(32, num_classes, in_channels)
