from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from buffer.models import NormalizedModel
from buffer.params import SamplingParams
from synthesizer import terms
from synthesizer.config import SynthesizerFile, SynthesizerTable
from synthesizer.methods import Context
from synthesizer.modulation import modulation, normalize
from synthesizer.objective import blend, objective
from synthesizer.statistics import LayerMoments

LABELS = torch.arange(12) % 4


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(11))


@pytest.fixture
def table(config: SynthesizerFile) -> SynthesizerTable:
    return config.synthesizer


@pytest.fixture
def fighting(context: Context, student: NormalizedModel) -> Context:
    """A context in which the adversarial term is on."""
    return replace(context, student=student, warmed_up=True)


def test_the_loss_is_the_weighted_sum_of_its_terms(
    images: Tensor, table: SynthesizerTable, fighting: Context
) -> None:
    params = SamplingParams(adversarial_weight=1.7, difficulty_exponent=2.0)
    counts = torch.tensor([5.0, 1.0, 0.0, 2.0])
    context = replace(fighting, params=params, class_counts=counts)
    found = objective(images, LABELS, context, table)
    logits, calls = context.teacher.forward_with_statistics(images)
    assert context.student is not None
    phi = modulation(logits, counts, kind="share", exponent=2.0)
    torch.testing.assert_close(found.modulation, phi.mean())
    weights = normalize(phi)
    parts = {
        "bn": terms.batchnorm_moments((call.batch, call.running) for call in calls),
        "task": (weights * terms.task(logits, LABELS)).mean(),
        "adversarial": terms.adversarial(
            logits, context.student(images), agreement_only=True
        ).mean(),
    }
    assert found.parts.keys() == parts.keys()
    for name, value in parts.items():
        torch.testing.assert_close(found.parts[name], value)
        assert value > 0
    total = 10.0 * parts["bn"] + 0.5 * parts["task"] - 1.7 * parts["adversarial"]
    torch.testing.assert_close(found.total, total)


@pytest.mark.parametrize(("filled", "has_student"), [(False, True), (True, False)])
def test_the_adversarial_term_waits_for_the_warm_up_and_a_student(
    images: Tensor, table: SynthesizerTable, fighting: Context, filled: bool, has_student: bool
) -> None:
    student = fighting.student if has_student else None
    context = replace(fighting, warmed_up=filled, student=student)
    assert "adversarial" not in objective(images, LABELS, context, table).parts
    assert "adversarial" in objective(images, LABELS, fighting, table).parts


def test_the_adversarial_term_compares_with_the_student_not_with_the_teacher(
    images: Tensor, configure: Callable[..., SynthesizerFile], fighting: Context
) -> None:
    table = configure(synthesizer={"adversarial_agreement_only": False}).synthesizer
    value = objective(images, LABELS, fighting, table).parts["adversarial"]
    assert value > 1e-3
    with_teacher = replace(fighting, student=fighting.teacher.model)
    nothing = objective(images, LABELS, with_teacher, table).parts["adversarial"]
    assert nothing.item() == pytest.approx(0.0, abs=1e-6)


def test_without_an_adversarial_weight_the_student_is_not_asked(
    images: Tensor, table: SynthesizerTable, fighting: Context
) -> None:
    asked: list[None] = []
    assert fighting.student is not None
    fighting.student.register_forward_hook(lambda *_: asked.append(None))
    for weight, times in ((0.0, 0), (1e-3, 1)):
        context = replace(fighting, params=SamplingParams(adversarial_weight=weight))
        found = objective(images, LABELS, context, table)
        assert len(asked) == times
        assert ("adversarial" in found.parts) == (times == 1)


def test_a_larger_adversarial_weight_acts_at_once_and_is_subtracted(
    images: Tensor, table: SynthesizerTable, fighting: Context
) -> None:
    weak, strong = (
        objective(
            images, LABELS, replace(fighting, params=SamplingParams(adversarial_weight=w)), table
        )
        for w in (0.0, 3.0)
    )
    torch.testing.assert_close(weak.total - strong.total, 3.0 * strong.parts["adversarial"])


def test_no_gradient_reaches_the_weights_of_teacher_or_student(
    images: Tensor, table: SynthesizerTable, fighting: Context
) -> None:
    images.requires_grad_()
    objective(images, LABELS, fighting, table).total.backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert fighting.student is not None
    for model in (fighting.teacher.model, fighting.student):
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("part", ["bn", "task", "adversarial"])
def test_gradient_of_each_term_agrees_with_finite_differences(
    part: str,
    images: Tensor,
    configure: Callable[..., SynthesizerFile],
    fighting: Context,
) -> None:
    weights = {"bn_weight": float(part == "bn"), "task_weight": float(part == "task")}
    # phi is a detached weight: finite differences would see it, so it is off here.
    table = configure(
        synthesizer={
            **weights,
            "difficulty": False,
            "diversity": "off",
            "adversarial_agreement_only": False,
        }
    ).synthesizer
    params = SamplingParams(adversarial_weight=float(part == "adversarial"))
    context = replace(fighting, params=params)
    assert context.student is not None
    context.teacher.model.double()
    context.student.double()
    point = images[:3].double().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return objective(x, LABELS[:3], context, table).total

    assert torch.autograd.gradcheck(loss, point, fast_mode=True)
    (gradient,) = torch.autograd.grad(loss(point), point)
    assert gradient.abs().max() > 1e-5


def test_argmax_mode_asks_for_what_the_teacher_sees(
    images: Tensor, configure: Callable[..., SynthesizerFile], context: Context
) -> None:
    table = configure(synthesizer={"label_mode": "argmax"}).synthesizer
    target = configure(synthesizer={"label_mode": "target"}).synthesizer
    predicted = context.teacher.logits(images).argmax(dim=1)
    assert not torch.equal(predicted, LABELS)
    found = objective(images, LABELS, context, table).parts["task"]
    torch.testing.assert_close(found, objective(images, predicted, context, target).parts["task"])


def test_without_a_weight_the_batchnorm_term_is_not_computed(
    images: Tensor, configure: Callable[..., SynthesizerFile], context: Context
) -> None:
    table = configure(synthesizer={"bn_weight": 0.0}).synthesizer
    found = objective(images, LABELS, context, table)
    assert found.moments == []
    assert list(found.parts) == ["task"]


def test_blended_moments_weigh_earlier_batches_by_the_momentum() -> None:
    batch = [LayerMoments(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))]
    averages = [LayerMoments(torch.tensor([5.0, 5.0]), torch.tensor([0.0, 1.0]))]
    (found,) = blend(batch, averages, 0.9)
    torch.testing.assert_close(found.mean, torch.tensor([4.6, 4.7]))
    torch.testing.assert_close(found.variance, torch.tensor([0.3, 1.3]))


def test_before_the_first_average_a_batch_counts_alone() -> None:
    batch = [LayerMoments(torch.tensor([1.0]), torch.tensor([3.0]))]
    assert blend(batch, None, 0.9) == batch
    averages = [LayerMoments(torch.tensor([5.0]), torch.tensor([5.0]))]
    assert blend(batch, averages, 0.0) == batch


def test_gradient_flows_through_the_share_of_the_batch_in_hand() -> None:
    mean = torch.tensor([1.0], requires_grad=True)
    averages = [LayerMoments(torch.tensor([5.0]), torch.tensor([5.0]))]
    (found,) = blend([LayerMoments(mean, torch.tensor([3.0]))], averages, 0.9)
    (gradient,) = torch.autograd.grad(found.mean.sum(), mean)
    assert gradient.item() == pytest.approx(0.1)
