"""The image generator: latent noise to images in [0, 1].

Letters in shapes: B batch, C channels, H height, W width, D latent dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from buffer.errors import ConfigError

UPSAMPLING = 4
"""Height and width grow by so much between the first feature map and the image."""


class ConvGenerator(nn.Module):
    """The generator of Fast-DFKD (Fang et al. 2022), for any image shape.

    Linear D -> width x H/4 x W/4; BN; up x2; conv width -> width; BN; LeakyReLU 0.2; up x2; conv
    width -> width/2; BN; LeakyReLU; conv width/2 -> C; sigmoid. Its BatchNorm layers always
    normalise by the batch in hand and remember nothing: it only ever makes whole batches.

    Args:
        image_shape: C, H, W.
        latent_dim: D.
        width: channels of the first feature map.

    Raises:
        ConfigError: H or W is not divisible by 4.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, latent_dim: int = 256, width: int = 128
    ) -> None:
        super().__init__()
        check_image_shape(image_shape)
        channels, height, image_width = image_shape
        first = (width, height // UPSAMPLING, image_width // UPSAMPLING)
        self.latent_dim = latent_dim
        self.first_layers = nn.Sequential(
            nn.Linear(latent_dim, math.prod(first)), nn.Unflatten(1, first), _norm(width)
        )
        self.upsampling = nn.Sequential(
            nn.Upsample(scale_factor=2),
            # A BatchNorm follows: it would take a bias away again.
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _norm(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, padding=1, bias=False),
            _norm(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [0, 1], float32, of latents ``[B, D]``."""
        features = self.first_layers(latents).contiguous(memory_format=torch.channels_last)
        # Under bfloat16 autocast a sigmoid would round to 1/256 near 1: float32 keeps the shades.
        return torch.sigmoid(self.upsampling(features).float())


def check_image_shape(image_shape: tuple[int, int, int]) -> None:
    """Checks that the generator can make such images.

    Raises:
        ConfigError: height or width is not divisible by 4.
    """
    if any(side % UPSAMPLING for side in image_shape[1:]):
        raise ConfigError(
            f"teacher.image_shape ({image_shape}): height and width must be divisible by "
            f"{UPSAMPLING}, the generator doubles its first feature map twice and could not "
            "make such images"
        )


def initialize(module: nn.Module, rng: torch.Generator) -> None:
    """Draws all weights anew, as PyTorch's constructors do but from ``rng``.

    Linear and convolution: weight and bias uniform in ``+-1/sqrt(fan_in)``; BatchNorm: 1 and 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1.0 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound, generator=rng)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=rng)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)
