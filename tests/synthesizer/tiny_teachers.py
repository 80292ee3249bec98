"""Networks for 8x8 images, small enough to be inverted in milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4
IMAGE_SHAPE = (3, 8, 8)


def bn_cnn(width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, CLASSES),
    )


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


class CallsLayerTwice(nn.Module):
    """One BatchNorm layer that is passed twice, once by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, inputs: Tensor) -> Tensor:
        once: Tensor = self.norm(inputs)
        twice: Tensor = self.norm(input=2.0 * once + 1.0)
        return twice


def coloured_images(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Data of four classes that differ in colour, with noise: ``[n, 3, 8, 8]`` and labels."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.1]])
    labels = torch.randint(CLASSES, (n,), generator=rng)
    noise = 0.15 * torch.randn(n, *IMAGE_SHAPE, generator=rng)
    return (colours[labels][:, :, None, None] + noise).clamp(0.0, 1.0), labels


def trained_weights(steps: int = 150) -> dict[str, Tensor]:
    """Weights of a ``bn_cnn`` that tells the colours apart."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = bn_cnn()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        images, labels = coloured_images(64, rng)
        loss = nn.functional.cross_entropy(network((images - 0.5) / 0.25), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict()
