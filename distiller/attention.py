"""Attention transfer: the student is to look where the teacher looks, layer by layer.

Zagoruyko and Komodakis 2017 (https://arxiv.org/abs/1612.03928); in data-free distillation by
Micaelli and Storkey 2019 (https://arxiv.org/abs/1905.09768), whose weight of 250 is the default.

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention(activation: Tensor) -> Tensor:
    """Where a layer is active: ``[B, H W]`` sums of squares over channels, of length 1 each.

    Args:
        activation: ``[B, C, H, W]``.
    """
    return F.normalize(activation.float().square().sum(dim=1).flatten(1), dim=1)


class AttentionTransfer:
    """Watches layers of both networks, which have the same names in both.

    Args:
        student: its activations carry gradients.
        teacher: frozen.
        layers: names of submodules whose outputs are images ``[B, C, H, W]``.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, layers: Sequence[str]) -> None:
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._layers = layers
        for whose, network in (("student", student), ("teacher", teacher)):
            for layer in layers:
                network.get_submodule(layer).register_forward_hook(self._keeper(whose, layer))

    def _keeper(self, whose: str, layer: str):  # type: ignore[no-untyped-def]
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            self._seen[whose, layer] = output

        return keep

    def losses(self) -> Tensor:
        """``[B]``: mean squared difference of the maps of the latest passes, summed over layers."""
        parts = [
            (attention(self._seen["student", layer]) - attention(self._seen["teacher", layer]))
            .square()
            .mean(dim=1)
            for layer in self._layers
        ]
        self._seen.clear()
        return torch.stack(parts).sum(dim=0)
