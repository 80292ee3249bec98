"""Random crops and flips of generated images, one draw per image, differentiable.

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shift_and_flip(images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Shifts each image by whole pixels, filling with black, then mirrors some.

    The same as padding with black and cropping.

    Args:
        images: ``[B, C, H, W]``.
        rows: ``[B]`` int64; output row r shows input row ``r + rows[b]``.
        columns: ``[B]`` int64; likewise.
        flips: ``[B]`` bool; mirrored left to right.

    Returns:
        ``[B, C, H, W]``, channels last; gradient flows to the images.
    """
    batch, channels, height, width = images.shape
    y = torch.arange(height, device=images.device) + rows[:, None]
    x = torch.arange(width, device=images.device).expand(batch, width)
    x = torch.where(flips[:, None], width - 1 - x, x) + columns[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    flat = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    index = flat.reshape(batch, height * width, 1).expand(-1, -1, channels)
    pixels = images.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    picked = pixels.gather(1, index).view(batch, height, width, channels)
    return (picked * inside[..., None]).permute(0, 3, 1, 2)


def augment(images: Tensor, rng: torch.Generator, *, padding: int, flip: bool) -> Tensor:
    """Pads with black by ``padding`` pixels, crops at random, flips half; each image by itself.

    Args:
        images: ``[B, C, H, W]``.
        rng: on the device of the images.
        padding: largest shift in pixels; 0 leaves the place.
        flip: mirror images left to right with probability 1/2.
    """
    if padding == 0 and not flip:
        return images
    size, device = (len(images),), images.device
    rows, columns = (
        torch.randint(-padding, padding + 1, size, generator=rng, device=device) for _ in range(2)
    )
    flips = torch.randint(2, size, generator=rng, device=device).bool() & flip
    return shift_and_flip(images, rows, columns, flips)
