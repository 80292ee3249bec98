"""Loss terms of model inversion: pure functions, one value per sample where a sample has one.

Letters in shapes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from synthesizer.statistics import LayerMoments, joined


def batchnorm_moments(pairs: Iterable[tuple[LayerMoments, LayerMoments]]) -> Tensor:
    """Distance of batch moments from the moments that the teacher was trained with.

    Computes ``sum_l ||mu_l - mean_l||_2 + ||var_l - runvar_l||_2`` over BatchNorm layers l, the
    feature term of DeepInversion (Yin et al. 2020, https://arxiv.org/abs/1912.08795, eq. 4).

    Args:
        pairs: (batch moments, running moments) of each layer, ``[C_l]`` each.

    Returns:
        A scalar >= 0; 0 for no layers. Not averaged over layers.
    """
    layers = list(pairs)
    if not layers:
        return torch.zeros(())
    batch, running = zip(*layers, strict=True)
    squares = (joined(batch) - joined(running)).square()
    rows = _rows(tuple(part.numel() for layer in batch for part in layer), squares.device)
    sums = squares.new_zeros(2 * len(batch)).index_add(0, rows, squares)
    nothing = sums == 0.0  # where the root's slope is infinite
    return sums.masked_fill(nothing, 1.0).sqrt().masked_fill(nothing, 0.0).sum()


@lru_cache(maxsize=8)
def _rows(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """0 as often as the first size says, then 1 as often as the second, and so on."""
    with torch.inference_mode(False):  # whatever the first caller's: others differentiate
        return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)


def task(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the teacher's output against labels.

    Args:
        teacher_logits: ``[B, K]`` before softmax.
        labels: ``[B]`` int64 in [0, K): the classes asked for, or the teacher's own argmax.

    Returns:
        ``[B]`` in nats. Not averaged: the caller modulates it.
    """
    return F.cross_entropy(teacher_logits, labels, reduction="none")


def disagreement(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """``KL(teacher || student)`` of the softmax outputs at temperature 1.

    Args:
        teacher_logits: ``[B, K]`` before softmax.
        student_logits: ``[B, K]`` before softmax.

    Returns:
        ``[B]`` in nats, >= 0 up to rounding. Gradient flows into both arguments.
    """
    teacher = F.log_softmax(teacher_logits, dim=1)
    student = F.log_softmax(student_logits, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def adversarial(teacher_logits: Tensor, student_logits: Tensor, *, agreement_only: bool) -> Tensor:
    """What the generator seeks: images on which student and teacher differ.

    ``KL(teacher || student)`` at temperature 1; the caller *subtracts* it. Without the mask the
    generator also finds images that fool the student entirely, often outside the data
    (Fast-DFKD, Fang et al. 2022, https://arxiv.org/abs/2112.06253).

    Args:
        teacher_logits: ``[B, K]`` before softmax.
        student_logits: ``[B, K]`` before softmax, of the *student*: with the teacher's own the
            term is 0 by construction.
        agreement_only: samples whose argmax differ count 0.

    Returns:
        ``[B]`` in nats. Gradient flows into both arguments, to reach the image; freeze the weights.
    """
    divergence = disagreement(teacher_logits, student_logits)
    if not agreement_only:
        return divergence
    agree = teacher_logits.argmax(dim=1) == student_logits.argmax(dim=1)
    return divergence * agree
