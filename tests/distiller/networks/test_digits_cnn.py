from __future__ import annotations

import torch

from distiller.networks import digits_cnn


def test_digits_give_one_logit_per_class():
    assert digits_cnn(width=3)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_width_sets_the_size():
    def size(width):
        return sum(p.numel() for p in digits_cnn(width).parameters())

    assert size(12) < 5_000 < 25_000 < size(32)
