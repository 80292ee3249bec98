"""Wide residual networks: pre-activation blocks, three stages of 16k, 32k and 64k channels.

Zagoruyko and Komodakis 2016 (https://arxiv.org/abs/1605.07146), without dropout. A shortcut is a
1x1 convolution where a block changes the number of channels; it sees the block's input after the
first BatchNorm and ReLU.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distiller.networks.cifar_resnet import WIDTHS, blocks_per_stage, stage


class Block(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice, with a shortcut around them.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: 1 keeps the image's size, 2 halves it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = (
            None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        active = torch.relu(self.bn1(x))
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A wide residual network; see :func:`wide_resnet`."""

    def __init__(self, blocks: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        one, two, three = (widen * width for width in WIDTHS)
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.layer1 = stage(Block, WIDTHS[0], one, 1, blocks)
        self.layer2 = stage(Block, one, two, 2, blocks)
        self.layer3 = stage(Block, two, three, 2, blocks)
        self.bn = nn.BatchNorm2d(three)
        self.linear = nn.Linear(three, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` of normalised images ``[B, C, H, W]``."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(torch.relu(self.bn(out)).mean(dim=(2, 3)))
        return logits


def wide_resnet(
    depth: int, widen: int = 2, num_classes: int = 10, in_channels: int = 3
) -> WideResNet:
    """WRN-``depth``-``widen``, where ``depth`` = 6n + 4, n blocks a stage.

    WRN-16-2 has 0.69 million parameters, WRN-40-2 2.2 million.

    Raises:
        ValueError: no n >= 1 gives that depth, or there would be no channels.
    """
    if widen < 1:
        raise ValueError(f"widen ({widen}) is below 1: the stages would have no channels")
    return WideResNet(blocks_per_stage(depth, around=4), widen, num_classes, in_channels)
