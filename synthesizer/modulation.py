"""phi of SSD-KD: how much the task term of each sample counts, to balance what enters the buffer.

``phi(x) = (1 - share of buffered samples of the same predicted class) * (1 - confidence)^gamma``.
The two factors are the paper's (Liu et al. 2024, https://arxiv.org/abs/2406.07876, figure 2); their
formula is our reading of it, since the public record is silent. phi is a weight: no gradient
flows through it.

Letters in shapes: B batch, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Diversity = Literal["share", "stretched", "off"]


def diversity(class_counts: Tensor | None, predicted: Tensor, *, kind: Diversity) -> Tensor:
    """First factor: the more buffered samples of its class, the less a sample counts.

    Args:
        class_counts: ``[K]`` buffered samples per predicted class; ``None`` for an empty buffer.
        predicted: ``[B]`` the teacher's argmax.
        kind: ``share`` gives ``1 - count / |R|`` (0.99 everywhere for 100 balanced classes);
            ``stretched`` gives ``1 - count / max count``, 0 for the commonest class (ours);
            ``off`` gives 1.

    Returns:
        ``[B]`` float32 in [0, 1]; 1 for an empty buffer.
    """
    if class_counts is None or kind == "off":
        return torch.ones(predicted.shape, device=predicted.device)
    counts = class_counts.float()
    whole = counts.sum() if kind == "share" else counts.max()
    return (1.0 - counts / whole.clamp_min(1.0))[predicted]


def difficulty(confidence: Tensor, *, exponent: float) -> Tensor:
    """Second factor, ``(1 - confidence)^exponent``: what the teacher is sure of counts little.

    Args:
        confidence: ``[B]`` the teacher's largest softmax value, in (0, 1].
        exponent: gamma >= 0; at 0 confidence is ignored.

    Returns:
        ``[B]`` in [0, 1].
    """
    return (1.0 - confidence).clamp_min(0.0).pow(exponent)


def normalize(weights: Tensor) -> Tensor:
    """Divides by the batch mean, so that weights balance a batch without weakening its loss.

    Args:
        weights: ``[B]`` >= 0.

    Returns:
        ``[B]`` of mean 1; ones where all are 0, for then no sample is preferred.
    """
    mean = weights.mean()
    return torch.where(mean > 0, weights / mean, torch.ones_like(weights))


def modulation(
    teacher_logits: Tensor,
    class_counts: Tensor | None,
    *,
    kind: Diversity,
    exponent: float | None,
) -> Tensor:
    """The modulating function phi, for a batch.

    Args:
        teacher_logits: ``[B, K]`` before softmax.
        class_counts: ``[K]``, or ``None`` for an empty buffer.
        kind: form of the first factor.
        exponent: gamma of the second factor; ``None`` leaves the factor out.

    Returns:
        ``[B]`` float32 in [0, 1], detached. Not normalised.
    """
    confidence, predicted = F.softmax(teacher_logits.detach().float(), dim=1).max(dim=1)
    weights = diversity(class_counts, predicted, kind=kind)
    if exponent is None:
        return weights
    return weights * difficulty(confidence, exponent=exponent)
