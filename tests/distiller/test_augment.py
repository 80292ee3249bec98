from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from distiller.augment import crop_and_flip, mix, to_unit


def _random_images(count, *, seed=0, shape=(2, 5, 6)):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, *shape), generator=generator)
    return images.to(torch.uint8)


def _candidates(image, padding):
    """Every window of the padded image and of its mirror image, by (down, right, mirrored)."""
    _, height, width = image.shape
    found = {}
    for mirrored in (False, True):
        shown = image.flip(2) if mirrored else image
        padded = F.pad(shown, (padding,) * 4)
        for down in range(2 * padding + 1):
            for right in range(2 * padding + 1):
                window = padded[:, down : down + height, right : right + width]
                found[window.numpy().tobytes()] = (down, right, mirrored)
    return found


def test_each_image_becomes_one_window_of_itself_all_equally_often():
    image = _random_images(1)[0]
    windows = _candidates(image, padding=1)
    assert len(windows) == 18
    repeated = image.expand(9000, *image.shape)
    augmented = crop_and_flip(
        repeated, padding=1, flip=True, generator=torch.Generator().manual_seed(3)
    )
    counts = dict.fromkeys(windows.values(), 0)
    for result in augmented.contiguous():
        counts[windows[result.numpy().tobytes()]] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_smaller_windows_come_from_everywhere_equally_often():
    image = _random_images(1)[0]  # 5 by 6
    windows = {
        image[:, down : down + 3, right : right + 4].numpy().tobytes(): (down, right)
        for down in range(3)
        for right in range(3)
    }
    cut = crop_and_flip(
        image.expand(4500, *image.shape),
        padding=0,
        flip=False,
        generator=torch.Generator().manual_seed(3),
        size=(3, 4),
    )
    counts = dict.fromkeys(windows.values(), 0)
    for result in cut.contiguous():
        counts[windows[result.numpy().tobytes()]] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_images_are_not_mirrored_unless_asked():
    image = _random_images(1)[0]
    windows = {key: value for key, value in _candidates(image, 2).items() if not value[2]}
    augmented = crop_and_flip(
        image.expand(200, *image.shape),
        padding=2,
        flip=False,
        generator=torch.Generator().manual_seed(0),
    )
    assert all(result.numpy().tobytes() in windows for result in augmented.contiguous())


def test_images_of_one_batch_are_not_mixed_up():
    images = _random_images(64)
    augmented = crop_and_flip(
        images, padding=2, flip=True, generator=torch.Generator().manual_seed(0)
    ).contiguous()
    for image, result in zip(images, augmented, strict=True):
        assert result.numpy().tobytes() in _candidates(image, 2)


def test_nothing_to_do_returns_the_same_images():
    images = _random_images(3)
    generator = torch.Generator()
    assert crop_and_flip(images, padding=0, flip=False, generator=generator) is images


def test_one_seed_gives_one_augmentation():
    images = _random_images(16)

    def augmented(seed):
        generator = torch.Generator().manual_seed(seed)
        return crop_and_flip(images, padding=2, flip=True, generator=generator)

    assert torch.equal(augmented(5), augmented(5))
    assert not torch.equal(augmented(5), augmented(6))


def test_as_many_are_blended_as_asked_and_each_keeps_most_of_itself():
    images = torch.eye(1000).view(1000, 1, 10, 100)
    mixed = mix(images, share=0.4, generator=torch.Generator().manual_seed(0)).view(1000, 1000)
    own = mixed.diagonal()
    assert (mixed.sum(dim=1) - 1.0).abs().max() < 1e-6
    assert own.min() >= 0.5
    blended = own < 1.0
    assert 0.35 < blended.float().mean() < 0.45
    assert 0.72 < own[blended].mean() < 0.78
    assert mix(images, share=0.0, generator=torch.Generator()) is images
    everything = mix(images, share=1.0, generator=torch.Generator().manual_seed(0))
    assert (everything.view(1000, 1000).diagonal() < 1.0).float().mean() > 0.99


def test_results_are_channels_last_of_the_same_type():
    result = crop_and_flip(_random_images(4), padding=1, flip=True, generator=torch.Generator())
    assert result.dtype == torch.uint8
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_bytes_become_the_unit_interval():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert to_unit(images).tolist() == pytest.approx([0.0, 0.2, 1.0])
