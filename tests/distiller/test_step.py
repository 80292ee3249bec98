from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from buffer.errors import ConfigError, Diverged
from buffer.models import build
from distiller.augment import crop_and_flip, mix, to_unit
from distiller.config import DistillerTable
from distiller.hints import Hints
from distiller.losses import kl_divergence, soft_target_loss
from distiller.resident import to_device
from distiller.schedule import learning_rate
from distiller.step import DistillationStep

CPU = torch.device("cpu")


@pytest.fixture
def make_step(make_config):
    def make(*assignments, seed=0, autocast=None, device=CPU, hint_layers=()):
        config = make_config(*assignments)
        torch.manual_seed(seed)
        student = build(config.student).train()
        teacher = build(config.teacher).eval().requires_grad_(False)
        watch = Hints(student.network, teacher.network, hint_layers, kind="attention")
        return DistillationStep(
            student.to(device),
            teacher.to(device),
            config.distiller,
            device=device,
            autocast=autocast,
            generator=torch.Generator(device).manual_seed(seed),
            hints=watch if hint_layers else None,
        )

    return make


def _unaugmented(*more):
    return ("distiller.crop_padding=0", "distiller.flip=false", *more)


def _logits(network, batch):
    """What a network in its present mode says of the stored images."""
    with torch.no_grad():
        return network(torch.from_numpy(batch.images).float() / 255)


def test_priorities_are_raw_weight_times_divergence_at_temperature_one(make_step, make_batch):
    step = make_step(*_unaugmented())
    weights = np.linspace(0.1, 1.5, 16)
    batch = make_batch(weights=weights, weight_mean=2.0)
    kl = kl_divergence(_logits(step.student, batch), _logits(step.teacher, batch)).numpy()
    result = step(batch, learning_rate=0.1)
    np.testing.assert_allclose(result.kl, kl, rtol=1e-5)
    np.testing.assert_allclose(result.priorities, weights * kl, rtol=1e-5)


def test_the_loss_is_weighted_in_proportion_to_the_expected_weight(make_step, make_batch):
    step = make_step(*_unaugmented("distiller.temperature=3"))
    weights = np.linspace(0.1, 1.5, 16)
    batch = make_batch(weights=weights, weight_mean=2.0)
    losses = soft_target_loss(
        _logits(step.student, batch), _logits(step.teacher, batch), temperature=3.0
    )
    expected = float((losses.numpy() * weights / 2.0).mean())
    assert step(batch, learning_rate=0.1).loss == pytest.approx(expected, rel=1e-5)


def test_agreement_is_the_share_of_equal_argmax(make_step, make_batch):
    step = make_step(*_unaugmented())
    batch = make_batch(64)
    ours, theirs = _logits(step.student, batch), _logits(step.teacher, batch)
    expected = (ours.argmax(1) == theirs.argmax(1)).float().mean().item()
    assert step(batch, learning_rate=0.1).agreement == pytest.approx(expected)


def test_repeated_steps_bring_the_student_to_the_teacher(make_step, make_batch):
    step = make_step("distiller.batch_size=64")
    batch = make_batch(64)
    before = step(batch, learning_rate=0.05)
    for _ in range(60):
        after = step(batch, learning_rate=0.05)
    assert after.kl.mean() < 0.5 * before.kl.mean()


def test_the_teacher_never_changes(make_step, make_batch):
    step = make_step()
    before = {name: tensor.clone() for name, tensor in step.teacher.state_dict().items()}
    step(make_batch(), learning_rate=0.1)
    for name, tensor in step.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_rate_of_zero_changes_no_parameter(make_step, make_batch):
    step = make_step()
    before = [parameter.clone() for parameter in step.student.parameters()]
    step(make_batch(), learning_rate=0.0)
    assert all(map(torch.equal, before, step.student.parameters()))


def test_the_teacher_sees_the_augmented_images(make_step, make_batch):
    # All mass of the loss would be elsewhere if the teacher judged the images before the crop.
    step = make_step("distiller.crop_padding=3", seed=4)
    batch = make_batch()
    shown = to_unit(
        crop_and_flip(
            torch.from_numpy(batch.images),
            padding=3,
            flip=False,
            generator=torch.Generator().manual_seed(4),
        )
    )
    with torch.no_grad():
        expected = kl_divergence(step.student(shown), step.teacher(shown)).numpy()
    np.testing.assert_allclose(step(batch, learning_rate=0.1).kl, expected, rtol=1e-5)


def test_hints_are_added_to_each_images_loss(make_step, make_batch):
    losses, batch = {}, make_batch(weights=np.linspace(0.1, 1.9, 16))
    for weight in (None, 1.0, 3.0):
        step = make_step(
            *_unaugmented(),
            *([] if weight is None else [f"distiller.hint_weight={weight}"]),
            hint_layers=[] if weight is None else ["features.0"],
        )
        losses[weight] = step(batch, learning_rate=0.0).loss
    watch = Hints(step.student.network, step.teacher.network, ["features.0"], kind="attention")
    step.student.train()
    with watch, torch.no_grad():
        images = torch.from_numpy(batch.images).float() / 255
        step.student(images), step.teacher(images)
    added = np.mean(batch.weights * watch.losses().numpy())
    assert losses[1.0] - losses[None] == pytest.approx(added, rel=1e-3)
    assert losses[3.0] - losses[None] == pytest.approx(3.0 * added, rel=1e-3)


def test_teacher_and_student_see_the_same_crops(make_step, make_batch):
    step = make_step("distiller.crop_padding=3", seed=4)
    batch = make_batch()
    seen = []
    for network in (step.student, step.teacher):
        network.register_forward_hook(lambda _, given, __: seen.append(given[0].clone()))
    step(batch, learning_rate=0.1, crop=(4, 6))
    stored = torch.from_numpy(batch.images)
    crops = to_unit(
        crop_and_flip(
            stored,
            padding=0,
            flip=False,
            generator=torch.Generator().manual_seed(4),
            size=(4, 6),
        )
    )
    assert crops.shape == (16, 1, 4, 6)
    assert len(seen) == 2
    for shown in seen:
        torch.testing.assert_close(shown, crops)


def test_teacher_and_student_see_the_same_blends(make_step, make_batch):
    step = make_step(*_unaugmented("distiller.mixup=1"), seed=4)
    batch = make_batch()
    seen = []
    for network in (step.student, step.teacher):
        network.register_forward_hook(lambda _, given, __: seen.append(given[0].clone()))
    step(batch, learning_rate=0.1)
    images = to_unit(torch.from_numpy(batch.images))
    blends = mix(images, share=1.0, generator=torch.Generator().manual_seed(4))
    assert len(seen) == 2
    for shown in seen:
        torch.testing.assert_close(shown, blends)
    assert (blends - images).abs().mean() > 0.01


def test_cached_logits_take_the_teachers_place(make_step, make_batch):
    settings = _unaugmented("distiller.teacher_logits=cached")
    logits = np.random.default_rng(1).normal(size=(16, 10)).astype(np.float32)
    step = make_step(*settings)
    batch = make_batch(logits=logits)
    expected = kl_divergence(_logits(step.student, batch), torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(step(batch, learning_rate=0.1).kl, expected, rtol=1e-5)


def test_samples_without_the_logits_to_be_cached_are_refused(make_step, make_batch):
    step = make_step(*_unaugmented("distiller.teacher_logits=cached"))
    with pytest.raises(ConfigError, match=r"teacher_logits \(cached\): the drawn samples carry no"):
        step(make_batch(), learning_rate=0.1)
    with pytest.raises(ConfigError, match="there is nothing to learn from; set recompute"):
        step.check(make_batch())


def test_half_precision_changes_little(make_step, make_batch):
    batch = make_batch(64)
    exact = make_step(*_unaugmented())(batch, learning_rate=0.1)
    half = make_step(*_unaugmented(), autocast=torch.bfloat16)(batch, learning_rate=0.1)
    assert half.kl.dtype == np.float32
    assert half.kl.mean() == pytest.approx(exact.kl.mean(), rel=0.05)
    assert not np.array_equal(half.kl, exact.kl)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_measures_what_a_cpu_does(make_step, make_batch):
    here = make_step(*_unaugmented())
    step = make_step(*_unaugmented(), device=torch.device("cuda"))
    batch = make_batch(64)
    expected, result = here(batch, learning_rate=0.1), step(batch, learning_rate=0.1)
    np.testing.assert_allclose(result.kl, expected.kl, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_is_refused_and_changes_nothing(make_step, make_batch):
    step = make_step()
    with torch.no_grad():
        step.teacher.network.linear.bias[0] = math.nan
    before = [parameter.clone() for parameter in step.student.parameters()]
    with pytest.raises(Diverged, match=r"distiller\.learning_rate \(0\.05\): the loss is nan at"):
        step(make_batch(), learning_rate=0.02)
    assert all(map(torch.equal, before, step.student.parameters()))


def test_read_only_arrays_become_tensors():
    array = np.arange(3)
    array.setflags(write=False)
    assert to_device(array, CPU).tolist() == [0, 1, 2]


def _table(**settings):
    return DistillerTable(learning_rate=0.4, **settings)


def test_the_cosine_goes_from_peak_to_zero_over_the_budget():
    rates = [learning_rate(_table(), share) for share in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([0.4, 0.2, 0.0])


def test_the_cosine_starts_at_the_peak_however_long_the_filling_took():
    rates = [learning_rate(_table(), share, first_share=0.6) for share in (0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.4, 0.2, 0.0])


def test_a_constant_rate_stays_at_its_peak():
    table = _table(schedule="constant")
    assert [learning_rate(table, share) for share in (0.0, 0.7, 1.0)] == [0.4] * 3


def test_the_warm_up_rises_linearly_from_the_first_step():
    table = _table(schedule="constant", warmup_share=0.2)
    rates = [learning_rate(table, share, first_share=0.3) for share in (0.3, 0.4, 0.5, 0.9)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_a_first_step_at_the_very_end_has_a_rate():
    assert learning_rate(_table(), 1.0, first_share=1.0) == pytest.approx(0.0)
