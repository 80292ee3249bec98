"""The textbook CIFAR ResNet: three stages of 16, 32 and 64 channels, option-A shortcuts.

He et al. 2015 (https://arxiv.org/abs/1512.03385), section 4.2. Where a stage halves the image, the
shortcut takes every second pixel and pads the missing channels with zeros on both sides: it has no
parameters. ReLU after each block; global average pool.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut around them.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, at least ``inputs``.
        stride: 1 keeps the image's size, 2 halves it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.missing == 0:
            return x
        before = self.missing // 2
        subsampled = x[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, before, self.missing - before))


class CifarResNet(nn.Module):
    """A CIFAR ResNet; see :func:`cifar_resnet`."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = stage(Block, WIDTHS[0], WIDTHS[0], 1, blocks)
        self.layer2 = stage(Block, WIDTHS[0], WIDTHS[1], 2, blocks)
        self.layer3 = stage(Block, WIDTHS[1], WIDTHS[2], 2, blocks)
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` of normalised images ``[B, C, H, W]``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def stage(
    block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, stride: int, blocks: int
) -> nn.Sequential:
    """``blocks`` blocks in a row; the first one changes channels and size.

    Args:
        block: makes one of its input channels, output channels and stride.
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first block.
        blocks: at least 1.
    """
    rest = [block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(inputs, outputs, stride), *rest)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def blocks_per_stage(depth: int, *, around: int = 2) -> int:
    """N of a network of ``depth`` = 6n + ``around`` layers.

    Raises:
        ValueError: no n >= 1 gives that depth.
    """
    if depth < 6 + around or (depth - around) % 6:
        raise ValueError(
            f"depth ({depth}) is not 6n + {around} with n >= 1: three stages of n blocks of two "
            f"layers and {around} layers around them cannot add up to it"
        )
    return (depth - around) // 6


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """A CIFAR ResNet of ``depth`` = 6n + 2 layers, n blocks a stage.

    Raises:
        ValueError: no n >= 1 gives that depth.
    """
    return CifarResNet(blocks_per_stage(depth), num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-20: 0.27 million parameters."""
    return cifar_resnet(20, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-56: 0.85 million parameters."""
    return cifar_resnet(56, num_classes, in_channels)
