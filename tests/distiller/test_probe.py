from __future__ import annotations

import pytest
import torch

from buffer.config import BufferTable
from buffer.memory import InMemoryReplayBuffer
from buffer.models import build
from buffer.version import Version
from distiller.losses import kl_divergence
from distiller.probe import ProbeMeter

TABLE = BufferTable(capacity=8, min_size_to_sample=8, probe_capacity=12)
FIRST, SECOND = Version(1, 1), Version(1, 2)


@pytest.fixture
def replay(make_samples):
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    replay.insert(make_samples(12, split="probe"), producer="p", sequence=0)
    return replay


@pytest.fixture
def student(make_config):
    torch.manual_seed(0)
    return build(make_config().student).train()


@pytest.fixture
def meter(replay, student):
    return ProbeMeter(
        replay, student, members=12, interval_seconds=10.0, device=torch.device("cpu")
    )


def _train_a_bit(student):
    with torch.no_grad():
        student.network.linear.weight.add_(0.5)
        student.network.linear.bias.add_(torch.arange(10.0))


def _expected(student, samples):
    images = torch.stack([torch.from_numpy(sample.image) for sample in samples]).float() / 255
    theirs = torch.stack([torch.from_numpy(sample.targets["logits"]) for sample in samples])
    with torch.no_grad():
        ours = student.eval()(images)
    student.train()
    agreement = (ours.argmax(1) == theirs.argmax(1)).float().mean().item()
    return kl_divergence(ours, theirs).mean().item(), agreement


def test_the_same_members_are_measured_before_and_after(meter, replay, student, make_samples):
    members = make_samples(12, split="probe")
    before = _expected(student, members)
    meter.update(FIRST, now_seconds=100.0)
    assert meter.report is None
    replay.insert(make_samples(12, seed=9, split="probe"), producer="p", sequence=1)
    _train_a_bit(student)
    after = _expected(student, members)
    meter.update(FIRST, now_seconds=112.0)
    report = meter.report
    assert (report.params_version, report.members, report.seconds) == (FIRST, 12, 12.0)
    assert (report.before_kl, report.before_agreement) == pytest.approx(before, abs=1e-5)
    assert (report.after_kl, report.after_agreement) == pytest.approx(after, abs=1e-5)
    assert report.before_kl != pytest.approx(report.after_kl, abs=1e-3)


def test_nothing_is_measured_before_it_is_time(meter, student):
    meter.update(FIRST, now_seconds=100.0)
    meter.update(FIRST, now_seconds=109.9)
    assert meter.report is None
    meter.update(FIRST, now_seconds=110.0)
    first = meter.report
    meter.update(FIRST, now_seconds=119.0)
    assert meter.report is first
    meter.update(FIRST, now_seconds=120.0)
    assert meter.report.seconds == 20.0


def test_new_parameters_begin_with_fresh_members(meter, replay, student, make_samples):
    meter.update(FIRST, now_seconds=0.0)
    meter.update(FIRST, now_seconds=10.0)
    fresh = make_samples(12, seed=9, split="probe")
    replay.insert(fresh, producer="p", sequence=1)
    meter.update(SECOND, now_seconds=11.0)
    assert meter.report.params_version == FIRST
    meter.update(SECOND, now_seconds=21.0)
    assert meter.report.params_version == SECOND
    assert meter.report.before_kl == pytest.approx(_expected(student, fresh)[0], abs=1e-5)


def test_the_student_is_left_in_training_with_its_statistics(meter, student):
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    meter.update(FIRST, now_seconds=0.0)
    meter.update(FIRST, now_seconds=10.0)
    assert meter.report is not None
    assert student.training
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_empty_probe_set_is_asked_again_after_the_interval(student, make_samples):
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    meter = ProbeMeter(
        replay, student, members=12, interval_seconds=10.0, device=torch.device("cpu")
    )
    meter.update(FIRST, now_seconds=0.0)
    replay.insert(make_samples(12, split="probe"), producer="p", sequence=0)
    meter.update(FIRST, now_seconds=5.0)
    meter.update(FIRST, now_seconds=10.0)
    meter.update(FIRST, now_seconds=20.0)
    assert meter.report.seconds == 10.0


def test_without_members_nothing_is_asked(student):
    replay = InMemoryReplayBuffer(TABLE.model_copy(update={"probe_capacity": 0}), seed=0)
    meter = ProbeMeter(
        replay, student, members=0, interval_seconds=10.0, device=torch.device("cpu")
    )
    for now in (0.0, 10.0, 20.0):
        meter.update(FIRST, now_seconds=now)
    assert meter.report is None
