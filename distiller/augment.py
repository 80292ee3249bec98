"""Augmentation of a batch: crops, flips and blends, one draw per image, on the batch's device.

Why images are padded with zeros *before* normalisation (black, not the mean colour): that is what
torchvision's ``RandomCrop`` does to the images that the field's teachers were trained on, so the
teacher has seen such borders. Why here and not per image on the host: one gather moves the whole
batch, in its 8-bit form.

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def views(
    images: Tensor,
    *,
    padding: int,
    flip: bool,
    mixup: float,
    generator: torch.Generator,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """What a network in training is shown of stored images: cut, mirrored, blended at random.

    Args:
        images: ``[B, C, H, W]`` uint8.
        padding: of whole images; windows of another size move enough as they are.
        flip: whether to mirror.
        mixup: share of the images that are blended.
        generator: on the device of ``images``; the only source of randomness.
        size: height h and width w of the windows; default: whole images.

    Returns:
        ``[B, C, h, w]`` float32 in [0, 1], channels last in memory.
    """
    padding = 0 if size else padding
    cut = crop_and_flip(images, padding=padding, flip=flip, generator=generator, size=size)
    units = to_unit(cut).contiguous(memory_format=torch.channels_last)
    return mix(units, share=mixup, generator=generator)


def crop_and_flip(
    images: Tensor,
    *,
    padding: int,
    flip: bool,
    generator: torch.Generator,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Cuts a window out of each image and mirrors every second one, at random.

    Each image is padded with zeros by ``padding`` on every side and a window is cut out at a
    uniformly drawn place; then it is mirrored left to right with probability 1/2.

    Args:
        images: ``[B, C, H, W]`` of any type.
        padding: pixels, >= 0; 0 does not move images.
        flip: whether to mirror.
        generator: on the device of ``images``; the only source of randomness.
        size: height h and width w of the window; default: the image's own.

    Returns:
        ``[B, C, h, w]`` of the same type, channels last in memory; ``images`` itself if there is
        nothing to do.
    """
    count, _, full_height, full_width = images.shape
    height, width = size or (full_height, full_width)
    if padding == 0 and not flip and (height, width) == (full_height, full_width):
        return images
    device = images.device

    def draw(below: int) -> Tensor:
        return torch.randint(below, (count, 1), generator=generator, device=device)

    rows = torch.arange(height, device=device) + draw(full_height - height + 2 * padding + 1)
    columns = torch.arange(width, device=device).expand(count, width)
    if flip:
        columns = torch.where(draw(2) == 1, width - 1 - columns, columns)
    columns = columns + draw(full_width - width + 2 * padding + 1)
    padded = F.pad(images, (padding, padding, padding, padding))
    which = torch.arange(count, device=device).view(-1, 1, 1)
    # Indices around a slice put their own dimensions first: [B, H, W, C], channels last for free.
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def mix(images: Tensor, *, share: float, generator: torch.Generator) -> Tensor:
    """Blends some images with others of the batch (mixup, Zhang et al. 2018).

    Why it helps without labels: the teacher answers for a blend as for any image, so that few
    images make many. An image keeps at least half of its own weight, which is drawn uniformly from
    [1/2, 1]: what the student's answer says is still said of it rather than of its partner.

    Args:
        images: ``[B, C, H, W]``, floating point.
        share: of the images that are blended, in [0, 1].
        generator: on the device of ``images``; the only source of randomness.

    Returns:
        ``[B, C, H, W]``; ``images`` itself if ``share`` is 0.
    """
    if share == 0.0:
        return images
    count, device = len(images), images.device
    own, chosen = torch.rand((2, count, 1, 1, 1), generator=generator, device=device)
    partners = images[torch.randperm(count, generator=generator, device=device)]
    return torch.lerp(images, partners, 0.5 * own * (chosen < share))


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], keeping their memory format."""
    return images.float().div_(255.0)
