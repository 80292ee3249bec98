"""The loss of one generator step of SSD-KD, on images that may already be augmented.

    L = w_bn * L_BN + w_task * mean(phi * CE) - w_adv * mean(KL(teacher || student))

The teacher's forward pass is shared by all terms. w_adv and gamma are the sampling parameters in
force, so that a decision of the controller acts on the next round.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthesizer import terms
from synthesizer.config import SynthesizerTable
from synthesizer.methods import Context
from synthesizer.modulation import modulation, normalize
from synthesizer.statistics import LayerMoments, Recorded, at_least_float32, joined, parted


class Objective(NamedTuple):
    """The loss of one batch."""

    total: Tensor
    """Scalar to minimise."""
    parts: dict[str, Tensor]
    """Scalar of each active term before its weight, detached."""
    moments: list[LayerMoments]
    """Batch moments at each BatchNorm call, detached; empty without the BatchNorm term."""
    modulation: Tensor
    """Scalar: the mean of phi before it is normalised, detached."""


def objective(
    images: Tensor,
    labels: Tensor,
    context: Context,
    table: SynthesizerTable,
    *,
    averages: Sequence[LayerMoments] | None = None,
    momentum: float = 0.0,
) -> Objective:
    """The loss of a batch of images.

    Args:
        images: ``[B, C, H, W]`` in [0, 1].
        labels: ``[B]`` int64: classes asked for; ignored in label mode ``argmax``.
        context: teacher, student, sampling parameters and class counts.
        table: weights and forms of the terms.
        averages: moments of earlier batches, see :func:`blend`.
        momentum: share of ``averages`` in the moments that are matched.
    """
    logits, calls = _teacher_pass(images, context, matched=table.bn_weight > 0)
    weighted: list[tuple[str, float, Tensor]] = []
    if calls:
        blended = blend([call.batch for call in calls], averages, momentum)
        matched = zip(blended, (call.running for call in calls), strict=True)
        weighted.append(("bn", table.bn_weight, terms.batchnorm_moments(matched)))
    phi = _phi(logits, context, table)
    weighted.append(("task", table.task_weight, _task(logits, labels, phi, table)))
    adversarial_weight = context.params.adversarial_weight
    if adversarial_weight > 0 and context.warmed_up and context.student is not None:
        student_logits = at_least_float32(context.student(images))
        masked = table.adversarial_agreement_only
        divergence = terms.adversarial(logits, student_logits, agreement_only=masked)
        weighted.append(("adversarial", -adversarial_weight, divergence.mean()))
    return Objective(
        total=torch.stack([weight * term for _, weight, term in weighted]).sum(),
        parts={name: term.detach() for name, _, term in weighted},
        moments=[LayerMoments(*(m.detach() for m in call.batch)) for call in calls],
        modulation=phi.mean(),
    )


def blend(
    batch: Sequence[LayerMoments], averages: Sequence[LayerMoments] | None, momentum: float
) -> list[LayerMoments]:
    """Moments that are steadier than one batch's: ``momentum * average + (1 - momentum) * batch``.

    Gradient flows through the batch's share only, and shrinks with it by ``1 - momentum``.

    Args:
        batch: moments of the batch in hand, per BatchNorm call.
        averages: moments of earlier batches, without gradient; ``None`` before the first.
        momentum: in [0, 1).

    Returns:
        One entry per call; the batch's own moments before the first average.
    """
    if averages is None or momentum == 0.0:
        return list(batch)
    return parted(joined(averages).lerp(joined(batch), 1.0 - momentum), batch)


def _teacher_pass(
    images: Tensor, context: Context, *, matched: bool
) -> tuple[Tensor, list[Recorded]]:
    if matched:
        logits, calls = context.teacher.forward_with_statistics(images)
        return at_least_float32(logits), calls
    return at_least_float32(context.teacher.logits(images)), []


def _phi(logits: Tensor, context: Context, table: SynthesizerTable) -> Tensor:
    return modulation(
        logits,
        context.class_counts,
        kind=table.diversity,
        exponent=context.params.difficulty_exponent if table.difficulty else None,
    )


def _task(logits: Tensor, labels: Tensor, phi: Tensor, table: SynthesizerTable) -> Tensor:
    if table.label_mode == "argmax":
        labels = logits.detach().argmax(dim=1)
    weights = normalize(phi) if table.normalize_modulation else phi
    return (weights * terms.task(logits, labels)).mean()
