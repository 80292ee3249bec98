from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from synthesizer.statistics import LayerMoments
from synthesizer.terms import adversarial, batchnorm_moments, disagreement, task


def logits(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(6, 5, generator=rng, dtype=dtype)


def moments(seed: int, channels: int) -> LayerMoments:
    rng = torch.Generator().manual_seed(seed)
    return LayerMoments(
        torch.randn(channels, generator=rng, dtype=torch.float64),
        torch.rand(channels, generator=rng, dtype=torch.float64),
    )


def test_batchnorm_term_is_the_sum_of_two_norms_per_layer() -> None:
    pairs = [(moments(1, 3), moments(2, 3)), (moments(3, 7), moments(4, 7))]
    expected = sum(
        math.sqrt(sum((a - b) ** 2 for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)))
        for batch, running in pairs
        for ours, theirs in zip(batch, running, strict=True)
    )
    assert batchnorm_moments(pairs).item() == pytest.approx(expected)


def test_batchnorm_term_has_the_gradient_of_finite_differences() -> None:
    running, batch = moments(1, 4), moments(2, 4)

    def term(mean: Tensor, variance: Tensor) -> Tensor:
        return batchnorm_moments([(LayerMoments(mean, variance), running)])

    assert torch.autograd.gradcheck(term, [m.requires_grad_() for m in batch])


def test_batchnorm_term_of_equal_moments_is_zero_with_a_finite_gradient() -> None:
    running = moments(1, 4)
    batch = LayerMoments(*(m.clone().requires_grad_() for m in running))
    term = batchnorm_moments([(batch, running)])
    term.backward()
    assert term.item() == 0.0
    assert batch.mean.grad is not None
    assert batch.mean.grad.isfinite().all()


def test_batchnorm_term_of_no_layers_is_zero() -> None:
    assert batchnorm_moments([]).item() == 0.0


def test_task_is_the_negative_log_probability_of_the_label_per_sample() -> None:
    outputs, labels = logits(1), torch.tensor([0, 1, 2, 3, 4, 0])
    expected = -log_softmax(outputs.numpy(), axis=1)[np.arange(6), labels.numpy()]
    np.testing.assert_allclose(task(outputs, labels), expected)
    outputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: task(x, labels), outputs)


def test_disagreement_is_kl_of_teacher_from_student_per_sample() -> None:
    teacher, student = log_softmax(logits(1), axis=1), log_softmax(logits(2), axis=1)
    expected = (np.exp(teacher) * (teacher - student)).sum(axis=1)
    np.testing.assert_allclose(disagreement(logits(1), logits(2)), expected)


def test_disagreement_is_not_symmetric_and_zero_only_for_equal_outputs() -> None:
    there, back = disagreement(logits(1), logits(2)), disagreement(logits(2), logits(1))
    assert (there - back).abs().min() > 1e-3
    assert there.min() > 1e-3
    shifted = logits(1) + 4.0
    torch.testing.assert_close(disagreement(logits(1), shifted), torch.zeros(6).double())


def test_disagreement_stays_finite_for_certain_and_opposite_outputs() -> None:
    teacher = torch.tensor([[200.0, -200.0]], requires_grad=True)
    student = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    value = disagreement(teacher, student)
    value.sum().backward()
    assert value.item() == pytest.approx(400.0)
    assert teacher.grad is not None
    assert student.grad is not None
    assert teacher.grad.isfinite().all()
    assert student.grad.isfinite().all()


def test_adversarial_gradient_agrees_with_finite_differences_in_both_networks() -> None:
    teacher, student = logits(1).requires_grad_(), logits(2).requires_grad_()

    def term(t: Tensor, s: Tensor) -> Tensor:
        return adversarial(t, s, agreement_only=False)

    assert torch.autograd.gradcheck(term, (teacher, student))


def test_adversarial_counts_only_samples_where_both_agree() -> None:
    teacher, student = logits(1), logits(2)
    agree = teacher.argmax(1) == student.argmax(1)
    assert 0 < agree.sum() < len(agree)
    whole = adversarial(teacher, student, agreement_only=False)
    masked = adversarial(teacher, student, agreement_only=True)
    torch.testing.assert_close(masked[agree], whole[agree])
    assert (masked[~agree] == 0).all()
    assert (whole[~agree] > 0).all()
