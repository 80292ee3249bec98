"""Moments of what enters each BatchNorm layer, returned instead of hidden in module state.

Hooks on the layers see their inputs, so any model works unmodified.

Letters in shapes: B batch, C channels of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class LayerMoments(NamedTuple):
    """Mean and variance of one layer's input, per channel."""

    mean: Tensor
    """``[C]`` float32."""
    variance: Tensor
    """``[C]`` float32, biased (divided by the number of values, not one less)."""


def joined(moments: Iterable[LayerMoments]) -> Tensor:
    """Those of all layers in one vector, of which what follows is made in one operation each.

    A GPU would spend more time on being told of dozens of small ones than on making them.
    """
    return torch.cat([part for layer in moments for part in layer])


def parted(values: Tensor, like: Sequence[LayerMoments]) -> list[LayerMoments]:
    """The inverse of :func:`joined`, for layers as wide as these."""
    parts = iter(values.split_with_sizes([part.numel() for layer in like for part in layer]))
    return [LayerMoments(*pair) for pair in zip(parts, parts, strict=True)]


class Recorded(NamedTuple):
    """One call of a BatchNorm layer."""

    batch: LayerMoments
    """Of the batch that passed; gradient flows through it."""
    running: LayerMoments
    """Of the teacher's training data, as the layer remembers them."""


def batchnorm_layers(model: nn.Module) -> list[BatchNorm]:
    """The BatchNorm layers that keep running statistics, in order of definition."""
    return [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    ]


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return values.to(_exact(values.dtype))


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Moments(torch.autograd.Function):
    """Mean and biased variance per channel, with their gradient in closed form.

    Why not ``torch.var_mean``: its reduction over all but the channels is not vectorised on CPUs,
    and its backward pass makes three more passes over the activations. The kernels of batch
    normalisation read them where they are, in their own precision, and reckon in float32.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        unused = torch.zeros(inputs.shape[1], dtype=_exact(inputs.dtype), device=inputs.device)
        mean, variance = torch.batch_norm_update_stats(inputs, unused, unused.clone(), 0.0)
        ctx.save_for_backward(inputs, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mean_gradient: Tensor, variance_gradient: Tensor) -> Tensor:
        # d mean / dx = 1 / n and d variance / dx = 2 (x - mean) / n, n values per channel: a batch
        # normalisation again, by 1, with another scale and shift.
        inputs, mean = ctx.saved_tensors
        per_value = inputs.shape[1] / inputs.numel()
        return F.batch_norm(
            inputs,
            mean,
            torch.ones_like(mean),
            2.0 * per_value * variance_gradient,
            per_value * mean_gradient,
            eps=0.0,
        )


def input_moments(inputs: Tensor) -> LayerMoments:
    """Mean and biased variance over all dimensions but the second.

    Args:
        inputs: ``[B, C]`` or ``[B, C, ...]``, any float type; computed in float32 at least.
    """
    mean, variance = _Moments.apply(inputs)  # type: ignore[no-untyped-call]
    return LayerMoments(mean, variance)


@contextmanager
def recording(layers: Sequence[BatchNorm]) -> Iterator[list[Recorded]]:
    """Collects the moments of every call of ``layers`` while the context is open.

    Entries are in order of the calls: a layer called twice is there twice. The hooks are removed
    at the end, whatever happened.
    """
    calls: list[Recorded] = []

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else kwargs["input"]
        calls.append(Recorded(input_moments(inputs), running_moments(layer)))

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def running_moments(layer: nn.Module) -> LayerMoments:
    """What a BatchNorm layer remembers of the teacher's training data."""
    mean, variance = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return LayerMoments(mean, variance)
