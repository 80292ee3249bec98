"""Distillation losses: one value per sample, never averaged over the batch before it is weighted.

Why weights are divided by their expectation over draws: the learning rate then means the same
whatever the sampling parameters are. Why not by the largest possible weight: it hangs on the single
least probable item (see ``buffer.priorities``). Why not by the batch's largest or mean: a sample's
influence would depend on which others were drawn with it, and the estimate would be biased.

Letters in shapes: B batch, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """KL divergence of the softened student from the softened teacher.

    Computes ``T^2 KL(p || q)``, p and q the teacher's and student's softmax at temperature T
    (Hinton et al. 2015, https://arxiv.org/abs/1503.02531). The factor ``T^2`` keeps gradient
    magnitudes independent of T. Computed in float32 whatever the logits are: at a high temperature
    the differences are below the resolution of 16-bit floats.

    Args:
        student_logits: ``[B, K]`` logits before softmax.
        teacher_logits: ``[B, K]`` logits before softmax; no gradient flows into them.
        temperature: T > 0; 1 recovers the plain KL divergence.

    Returns:
        ``[B]`` loss in nats. Not averaged: the caller applies importance weights.
    """
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    return divergence * temperature**2


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``KL(teacher || student)`` at temperature 1: what priorities and rewards are made of.

    Args:
        student_logits: ``[B, K]`` logits before softmax.
        teacher_logits: ``[B, K]`` logits before softmax.

    Returns:
        ``[B]`` nats, float32, never below 0, without gradient.
    """
    with torch.no_grad():
        # Rounding can leave a tiny negative sum where both agree; a priority must not be negative.
        return soft_target_loss(student_logits, teacher_logits, temperature=1.0).clamp_min(0.0)


def weighted_mean(per_sample: Tensor, weights: Tensor, *, mean: float) -> Tensor:
    """``mean(w_i / E[w] * loss_i)``: the importance-weighted loss of a batch.

    Args:
        per_sample: ``[B]`` loss.
        weights: ``[B]`` raw importance weights, > 0.
        mean: E[w], their expectation over draws; the same on every rank, so that the gradients of
            data-parallel workers have one scale.

    Returns:
        Scalar.
    """
    return (per_sample * (weights / mean)).mean()


def jensen_shannon(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two softmax outputs, ``H(m) - (H(p) + H(q)) / 2``.

    Args:
        logits: ``[B, K]`` before softmax.
        other_logits: ``[B, K]`` before softmax; the order does not matter.

    Returns:
        ``[B]`` bits (base 2), in [0, 1]: 0 for equal, 1 for disjoint distributions.
    """
    log_p = F.log_softmax(logits.double(), dim=1)
    log_q = F.log_softmax(other_logits.double(), dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    p_part = F.kl_div(log_m, log_p, reduction="none", log_target=True).sum(dim=1)
    q_part = F.kl_div(log_m, log_q, reduction="none", log_target=True).sum(dim=1)
    nats = (p_part + q_part) / 2
    return (nats / math.log(2.0)).clamp(0.0, 1.0)
