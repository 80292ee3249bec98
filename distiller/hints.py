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
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distiller.config import HintKind


def features(activation: Tensor) -> Tensor:
    """What a layer says: its activations, ``[B, ...]``."""
    return activation


def attention(activation: Tensor) -> Tensor:
    """Where a layer is active: ``[B, H, W]`` sums of squares over channels.

    Args:
        activation: ``[B, C, H, W]``.

    Raises:
        RuntimeError: it has another number of dimensions.
    """
    if activation.dim() != 4:
        raise RuntimeError(f"{tuple(activation.shape)} is not [batch, channels, height, width]")
    return activation.square().sum(dim=1)


COMPARED: dict[HintKind, Callable[[Tensor], Tensor]] = {
    "features": features,
    "attention": attention,
}
"""What is compared of a layer, by kind."""


SHORTEST = 1e-15
"""Lengths below this are none: their product would be lost in float32."""


def distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """``[B]``: squared distances in [0, 4] but for rounding, once every row has the length 1.

    ``|a / |a| - b / |b||^2 = 2 - 2 cos(a, b)``, whose right side takes fewer passes over the
    activations: a third of the time, or less. A row that is as good as zero is at right angles to
    every other.

    Args:
        ours: ``[B, ...]``.
        theirs: of the same shape.

    Raises:
        RuntimeError: it is not; as many numbers in another order mean something else.
    """
    if ours.shape != theirs.shape:
        shapes = f"{tuple(ours.shape)} for the student, {tuple(theirs.shape)} for the teacher"
        raise RuntimeError(f"{shapes}, the batch included")
    # Images' channels last, as they lie in memory: another order would take copies.
    last = 1 if ours.dim() == 4 else -1
    own, other = (each.movedim(last, -1).flatten(1).float() for each in (ours, theirs))
    length, other_length = (torch.linalg.vector_norm(each, dim=1) for each in (own, other))
    something = torch.minimum(length, other_length) > SHORTEST
    cosine = torch.linalg.vecdot(own, other) / torch.where(something, length * other_length, 1.0)
    distance: Tensor = 2.0 - 2.0 * cosine
    return distance


class Hints:
    """Watches layers of both networks, which have the same names in both.

    A context, around one pass of each: what other passes do is neither seen nor kept.

    Args:
        student: its activations carry gradients.
        teacher: frozen.
        layers: names of submodules whose outputs are activations ``[B, C, H, W]``.
        kind: what of them is compared.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, layers: Sequence[str], *, kind: HintKind
    ) -> None:
        self._layers, self._compared = layers, COMPARED[kind]
        self._watched = {
            (whose, layer): network.get_submodule(layer)
            for whose, network in (("student", student), ("teacher", teacher))
            for layer in layers
        }
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._seen.clear()
        self._hooks = [
            module.register_forward_hook(partial(self._keep, place))
            for place, module in self._watched.items()
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(
        self, place: tuple[str, str], _module: nn.Module, _given: object, output: Tensor
    ) -> None:
        self._seen[place] = output

    def losses(self) -> Tensor:
        """``[B]``: :func:`distances` in the passes that were watched, summed over layers.

        Raises:
            KeyError: a layer was not called.
            RuntimeError: what is compared has not the same shape in both.
        """
        ours, theirs = (
            [self._compared(self._seen[whose, layer]) for layer in self._layers]
            for whose in ("student", "teacher")
        )
        self._seen.clear()
        return torch.stack([distances(*pair) for pair in zip(ours, theirs, strict=True)]).sum(dim=0)
