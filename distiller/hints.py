"""Hints: inside, layer by layer, the student is to resemble the teacher, too.

An answer says ten or a hundred numbers of an image, the layers before it thousands. ``features``
compares the activations themselves (hints of FitNets, Romero et al. 2015,
https://arxiv.org/abs/1412.6550, here for layers of one shape, which need no regressor);
``attention`` compares where a layer is active, whatever its channels (attention transfer,
Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928; in data-free distillation:
Micaelli and Storkey 2019, https://arxiv.org/abs/1905.09768).

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["features", "attention"]


def features(activation: Tensor) -> Tensor:
    """What a layer says: ``[B, C H W]``, of length 1 each.

    Args:
        activation: ``[B, C, H, W]``.
    """
    return F.normalize(activation.float().flatten(1), dim=1)


def attention(activation: Tensor) -> Tensor:
    """Where a layer is active: ``[B, H W]`` sums of squares over channels, of length 1 each.

    Args:
        activation: ``[B, C, H, W]``.
    """
    return F.normalize(activation.float().square().sum(dim=1).flatten(1), dim=1)


COMPARED: dict[Kind, Callable[[Tensor], Tensor]] = {"features": features, "attention": attention}
"""What is compared of a layer, by kind."""


class Hints:
    """Watches layers of both networks, which have the same names in both.

    Args:
        student: its activations carry gradients.
        teacher: frozen.
        layers: names of submodules whose outputs are activations ``[B, C, H, W]``.
        kind: what of them is compared.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, layers: Sequence[str], *, kind: Kind
    ) -> None:
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._layers, self._compared = layers, COMPARED[kind]
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
        """``[B]``: squared distances in the latest passes, each in [0, 4], summed over layers.

        Raises:
            RuntimeError: what is compared has not the same size in both.
        """
        ours, theirs = (
            [self._compared(self._seen[whose, layer]) for layer in self._layers]
            for whose in ("student", "teacher")
        )
        self._seen.clear()
        parts = [(own - other).square().sum(dim=1) for own, other in zip(ours, theirs, strict=True)]
        return torch.stack(parts).sum(dim=0)
