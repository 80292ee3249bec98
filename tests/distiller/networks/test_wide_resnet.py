from __future__ import annotations

import pytest
import torch

from distiller.networks import wide_resnet


@pytest.mark.parametrize(
    ("depth", "widen", "parameters"),
    [(16, 1, 175_066), (16, 2, 691_674), (40, 1, 563_930), (40, 2, 2_243_546)],
)
def test_sizes_are_the_published_ones(depth, widen, parameters):
    assert sum(p.numel() for p in wide_resnet(depth, widen).parameters()) == parameters


def test_any_image_size_and_number_of_channels_gives_one_logit_per_class():
    network = wide_resnet(10, 1, num_classes=7, in_channels=1).eval()
    assert network(torch.zeros(2, 1, 20, 12)).shape == (2, 7)


def test_a_shortcut_within_a_stage_carries_the_input_as_it_is():
    block = wide_resnet(16, 1).eval().layer1[1]
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(block(x), x)


def test_a_shortcut_between_stages_sees_what_the_first_convolution_sees():
    block = wide_resnet(16, 1).eval().layer2[0]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 16, 4, 4)
    expected = block.shortcut(torch.relu(block.bn1(x)))
    assert expected.shape == (1, 32, 2, 2)
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("depth", [4, 14, 21])
def test_a_depth_that_no_number_of_blocks_gives_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth \({depth}\) is not 6n \+ 4 with n >= 1"):
        wide_resnet(depth)
