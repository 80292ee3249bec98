from __future__ import annotations

import pytest
import torch

from distiller.networks import cifar_resnet, resnet20, resnet56


@pytest.mark.parametrize(("factory", "parameters"), [(resnet20, 269_722), (resnet56, 853_018)])
def test_sizes_are_the_published_ones(factory, parameters):
    assert sum(p.numel() for p in factory().parameters()) == parameters


def test_any_image_size_and_number_of_channels_gives_one_logit_per_class():
    network = cifar_resnet(8, num_classes=7, in_channels=1).eval()
    assert network(torch.zeros(2, 1, 20, 12)).shape == (2, 7)


def test_shortcuts_have_no_parameters():
    assert not [name for name in resnet20().state_dict() if "shortcut" in name]


def test_a_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    block = resnet20().eval().layer2[0]
    torch.nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.arange(16.0 * 4 * 4).view(1, 16, 4, 4)
    with torch.no_grad():
        shortcut = block(x)
    assert shortcut.shape == (1, 32, 2, 2)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert torch.equal(shortcut[:, :8], torch.zeros(1, 8, 2, 2))
    assert torch.equal(shortcut[:, 24:], torch.zeros(1, 8, 2, 2))


@pytest.mark.parametrize("depth", [2, 7, 21])
def test_a_depth_that_no_number_of_blocks_gives_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth \({depth}\) is not 6n \+ 2 with n >= 1"):
        cifar_resnet(depth)
