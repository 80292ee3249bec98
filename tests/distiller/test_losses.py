from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distiller.losses import jensen_shannon, kl_divergence, soft_target_loss, weighted_mean


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 7, generator=generator) * 3 for _ in range(2)]


def test_soft_target_loss_is_the_divergence_of_the_softened_student(logits):
    student, teacher = logits
    p, q = F.softmax(teacher / 4, dim=1), F.softmax(student / 4, dim=1)
    expected = 16 * (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(soft_target_loss(student, teacher, temperature=4.0), expected)


def test_soft_target_loss_is_zero_where_student_and_teacher_agree(logits):
    teacher = logits[1]
    # A constant added to all logits changes no probability.
    loss = soft_target_loss(teacher + 2.0, teacher, temperature=20.0)
    torch.testing.assert_close(loss, torch.zeros(5), atol=1e-4, rtol=0)


def test_gradient_of_the_soft_target_loss_is_the_difference_of_probabilities(logits):
    student, teacher = logits
    student.requires_grad_()
    soft_target_loss(student, teacher, temperature=4.0).sum().backward()
    expected = 4 * (F.softmax(student / 4, dim=1) - F.softmax(teacher / 4, dim=1))
    torch.testing.assert_close(student.grad, expected.detach())


def test_no_gradient_flows_into_the_teacher(logits):
    student, teacher = (tensor.requires_grad_() for tensor in logits)
    soft_target_loss(student, teacher, temperature=2.0).sum().backward()
    assert teacher.grad is None


def test_half_precision_logits_are_compared_in_float32(logits):
    student, teacher = (tensor.bfloat16() for tensor in logits)
    loss = soft_target_loss(student, teacher, temperature=20.0)
    assert loss.dtype == torch.float32
    expected = soft_target_loss(student.double(), teacher.double(), temperature=20.0)
    torch.testing.assert_close(loss, expected.float(), atol=1e-4, rtol=1e-4)


def test_divergence_is_the_loss_at_temperature_one_without_gradient(logits):
    student, teacher = logits
    student.requires_grad_()
    kl = kl_divergence(student, teacher)
    assert not kl.requires_grad
    torch.testing.assert_close(kl, soft_target_loss(student, teacher, temperature=1.0).detach())


def test_divergence_is_never_negative():
    logits = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0)) * 10
    assert kl_divergence(logits + 1e-6, logits).min() >= 0


def test_weighted_mean_divides_by_the_expected_weight_not_by_the_batch():
    loss = weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.25]), mean=2.0)
    assert loss.item() == pytest.approx((1.0 * 0.25 + 3.0 * 0.125) / 2)


def test_weights_that_are_all_expected_give_a_plain_mean():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert weighted_mean(losses, torch.full((3,), 0.7), mean=0.7).item() == pytest.approx(3.0)


def test_jensen_shannon_of_equal_outputs_is_zero(logits):
    torch.testing.assert_close(
        jensen_shannon(logits[0], logits[0]), torch.zeros(5).double(), atol=1e-9, rtol=0
    )


def test_jensen_shannon_of_disjoint_outputs_is_one_bit():
    one_hot = torch.eye(2) * 200.0
    assert jensen_shannon(one_hot, one_hot.flip(0)).tolist() == pytest.approx([1.0, 1.0])


def test_jensen_shannon_is_symmetric_and_matches_its_entropies(logits):
    ours, theirs = logits
    p, q = F.softmax(ours.double(), dim=1), F.softmax(theirs.double(), dim=1)

    def entropy(x):
        return -(x * x.log()).sum(dim=1) / math.log(2)

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    torch.testing.assert_close(jensen_shannon(ours, theirs), expected)
    torch.testing.assert_close(jensen_shannon(theirs, ours), expected)
