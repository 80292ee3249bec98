"""Attention transfer: the student is to look where the teacher looks, layer by layer.

Zagoruyko and Komodakis 2017 (https://arxiv.org/abs/1612.03928); in data-free distillation by
Micaelli and Storkey 2019 (https://arxiv.org/abs/1905.09768), whose weight of 250 is the default.

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
        layers: names of submodules whose outputs are activations ``[B, C, H, W]``.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, layers: Sequence[str]) -> None:
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._layers = layers
        self._hooks = [
            network.get_submodule(layer).register_forward_hook(self._keeper(whose, layer))
            for whose, network in (("student", student), ("teacher", teacher))
            for layer in layers
        ]

    def close(self) -> None:
        """Watches no longer."""
        for hook in self._hooks:
            hook.remove()

    def _keeper(self, whose: str, layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_module: nn.Module, _given: Any, output: Tensor) -> None:
            self._seen[whose, layer] = output

        return keep

    def losses(self) -> Tensor:
        """``[B]``: mean squared difference of the maps of the latest passes, summed over layers."""
        differences = (
            attention(self._seen["student", layer]) - attention(self._seen["teacher", layer])
            for layer in self._layers
        )
        parts = [difference.square().mean(dim=1) for difference in differences]
        self._seen.clear()
        return torch.stack(parts).sum(dim=0)
