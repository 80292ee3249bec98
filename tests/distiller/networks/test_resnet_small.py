from __future__ import annotations

import pytest
import torch

from distiller.networks import resnet20s, resnet32s, resnet_small


@pytest.mark.parametrize(("factory", "parameters"), [(resnet20s, 306_884), (resnet32s, 501_316)])
def test_sizes_are_the_published_ones(factory, parameters):
    assert sum(p.numel() for p in factory().parameters()) == parameters


@pytest.mark.parametrize("side", [32, 28, 16])
def test_images_and_crops_of_them_give_one_logit_per_class(side):
    network = resnet_small(8, num_classes=7, in_channels=1).eval()
    assert network(torch.zeros(2, 1, side, side)).shape == (2, 7)


def test_every_change_of_shape_has_a_projection():
    names = resnet32s().state_dict()
    projected = {name.split(".shortcut")[0] for name in names if ".shortcut.0" in name}
    assert projected == {"layer1.0", "layer2.0", "layer3.0"}


def test_inner_blocks_let_negative_sums_through():
    torch.manual_seed(0)
    block = resnet32s().eval().layer1[1]
    assert block(torch.randn(2, 16, 8, 8)).min() < 0


@pytest.mark.parametrize("depth", [2, 9])
def test_a_depth_that_no_number_of_blocks_gives_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth \({depth}\) is not 6n \+ 2 with n >= 1"):
        resnet_small(depth)
