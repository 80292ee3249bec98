from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from synthesizer.augment import augment, shift_and_flip


def shift_one(image: Tensor, row: int, column: int, flip: bool, *, margin: int = 3) -> Tensor:
    """Pads ``[C, H, W]`` with black and cuts a window out."""
    _, height, width = image.shape
    padded = F.pad(image, (margin,) * 4)
    top, left = margin + row, margin + column
    window = padded[:, top : top + height, left : left + width]
    return window.flip(-1) if flip else window


def test_a_shift_is_a_crop_of_the_padded_image_then_a_flip() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 5, 7, generator=rng)
    rows, columns = (torch.randint(-3, 4, (40,), generator=rng) for _ in range(2))
    flips = torch.rand(40, generator=rng) < 0.5
    expected = torch.stack(
        [
            shift_one(image, int(row), int(column), bool(flip))
            for image, row, column, flip in zip(images, rows, columns, flips, strict=True)
        ]
    )
    assert torch.equal(shift_and_flip(images, rows, columns, flips), expected)


def test_gradient_of_a_shift_agrees_with_finite_differences() -> None:
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(4, 2, 3, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    rows, columns = torch.tensor([0, 1, -2, 1]), torch.tensor([0, -1, 1, 2])
    flips = torch.tensor([False, True, True, False])
    assert torch.autograd.gradcheck(lambda x: shift_and_flip(x, rows, columns, flips), images)


def test_every_shift_up_to_the_padding_and_both_orientations_occur() -> None:
    image = torch.zeros(1, 1, 7, 7)
    image[..., 3, 3] = 1.0
    image[..., 3, 4] = 2.0
    drawn = augment(
        image.expand(3000, 1, 7, 7), torch.Generator().manual_seed(2), padding=2, flip=True
    )
    marks = drawn.flatten(1).argmax(dim=1)
    flipped = (drawn.flatten(1).gather(1, (marks + 1)[:, None]) == 1.0).squeeze(1)
    counts = torch.bincount(marks[flipped], minlength=49), torch.bincount(marks[~flipped])
    assert int((counts[0] > 0).sum()) == int((counts[1] > 0).sum()) == 25
    # 3000 draws of 50 equal outcomes: 60 each, 5 standard deviations are 38.
    assert counts[0].max() < 100
    assert counts[1].max() < 100


def test_images_are_drawn_for_one_by_one() -> None:
    images = torch.rand(1, 3, 6, 6).expand(64, 3, 6, 6)
    drawn = augment(images, torch.Generator().manual_seed(3), padding=2, flip=False)
    assert len(drawn.flatten(1).unique(dim=0)) > 10


def test_without_padding_and_flip_images_pass_unchanged() -> None:
    images = torch.rand(4, 3, 6, 6)
    rng = torch.Generator().manual_seed(4)
    assert augment(images, rng, padding=0, flip=False) is images


def test_flip_alone_keeps_every_pixel_in_its_row() -> None:
    images = torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    drawn = augment(images, torch.Generator().manual_seed(6), padding=0, flip=True)
    same = (drawn == images).flatten(1).all(dim=1)
    mirrored = (drawn == images.flip(-1)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 16 < int(mirrored.sum()) < 48
