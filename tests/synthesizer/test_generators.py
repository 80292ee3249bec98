from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from buffer.errors import ConfigError
from synthesizer.generators import ConvGenerator, check_image_shape, initialize


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (4, 8, 20)])
def test_images_have_the_asked_shape_and_lie_between_zero_and_one(
    shape: tuple[int, int, int],
) -> None:
    generator = ConvGenerator(shape, latent_dim=6, width=4)
    images = generator(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (5, *shape)
    assert images.dtype == torch.float32
    assert 0.0 < images.min() < images.max() < 1.0


@pytest.mark.parametrize("shape", [(3, 30, 32), (3, 32, 30)])
def test_sides_not_divisible_by_four_are_refused(shape: tuple[int, int, int]) -> None:
    message = r"teacher.image_shape \(\(3, 3\d, 3\d\)\): height and width must be divisible by 4"
    with pytest.raises(ConfigError, match=message):
        check_image_shape(shape)
    with pytest.raises(ConfigError, match=message):
        ConvGenerator(shape)


def test_the_published_size_has_the_published_layers() -> None:
    generator = ConvGenerator((3, 32, 32))
    shapes = [
        tuple(layer.weight.shape)
        for layer in generator.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    assert shapes == [(128 * 8 * 8, 256), (128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]


def test_images_stay_float32_under_autocast() -> None:
    generator = ConvGenerator((3, 8, 8), latent_dim=6, width=4)
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(torch.randn(5, 6))
    assert images.dtype == torch.float32


def test_weights_are_drawn_from_the_given_generator_alone() -> None:
    one, two = (ConvGenerator((3, 8, 8), latent_dim=6, width=4) for _ in range(2))
    for network in (one, two):
        torch.rand(1)
        initialize(network, torch.Generator().manual_seed(7))
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    initialize(two, torch.Generator().manual_seed(8))
    assert not torch.equal(one.first_layers[0].weight, two.first_layers[0].weight)


def test_initial_weights_fill_the_documented_interval() -> None:
    layer = nn.Conv2d(8, 64, 3)
    initialize(layer, torch.Generator().manual_seed(7))
    bound = 1.0 / math.sqrt(8 * 9)
    for values in (layer.weight, layer.bias):
        assert values is not None
        assert values.abs().max() <= bound
        assert values.min() < -0.9 * bound
        assert values.max() > 0.9 * bound


def test_only_the_first_layers_can_be_started_anew() -> None:
    generator = ConvGenerator((3, 8, 8), latent_dim=6, width=4)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.fill_(9.0)
    initialize(generator.first_layers, torch.Generator().manual_seed(7))
    assert all((p != 9.0).all() for p in generator.first_layers.parameters())
    assert all((p == 9.0).all() for p in generator.upsampling.parameters())


def test_the_generator_remembers_no_batch() -> None:
    generator = ConvGenerator((3, 8, 8), latent_dim=6, width=4)
    assert list(generator.buffers()) == []
