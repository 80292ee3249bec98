from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from buffer.errors import Diverged, Interrupted, ModelError, Starved
from buffer.memory import InMemoryReplayBuffer
from buffer.models import build, from_bytes
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.version import NEVER, Version
from distiller import checkpoint
from distiller.metrics import DistillerMetrics
from distiller.networks import digits_cnn
from distiller.schedule import learning_rate
from distiller.tally import Origin
from distiller.trainer import Trainer

ARCHIVE_SIZE = 40


@pytest.fixture
def make_replay(make_samples):
    def make(config, *, probes=16):
        replay = InMemoryReplayBuffer(config.buffer, seed=0)
        replay.insert(make_samples(64), producer="p", sequence=0)
        if probes:
            members = make_samples(probes, seed=5, split="probe")
            replay.insert(members, producer="p", sequence=1)
        return replay

    return make


@pytest.fixture
def test_data(tmp_path, make_samples):
    samples = make_samples(ARCHIVE_SIZE, seed=7)
    path = tmp_path / "test.npz"
    np.savez(
        path,
        images=np.stack([sample.image[0] for sample in samples]),
        labels=np.array([sample.predicted_class for sample in samples]),
    )
    return f"evaluation.data={path}"


def _never():
    raise AssertionError("no checkpoint was due")


def _run(config, replay, *, attempt=1, save=_never, **settings):
    with Trainer(config, replay, attempt=attempt, **settings) as trainer:
        return trainer, trainer.run(save)


def test_a_budget_of_steps_is_spent_exactly(make_config, make_replay):
    config = make_config("run.steps=7")
    replay = make_replay(config)
    _, metrics = _run(config, replay)
    assert metrics["student_steps"] == 7
    assert metrics["samples_drawn"] == 7 * 16
    assert replay.info().updates.applied > 0
    assert metrics["inserted_at_first_step"] == 64
    assert 0 < metrics["first_step_at_seconds"] <= metrics["elapsed_seconds"]
    assert metrics["busy_seconds"] > 0
    assert metrics["student_accuracy"] is None


def test_a_budget_of_seconds_ends_the_training(make_config, make_replay):
    config = make_config("run.steps=null", "run.seconds=2")
    _, metrics = _run(config, make_replay(config))
    assert metrics["student_steps"] >= 1
    assert metrics["elapsed_seconds"] == pytest.approx(2.0, abs=0.5)


def test_crops_grow_with_the_budget(make_config, make_replay):
    config = make_config("run.steps=10", "distiller.first_crop=0.5", "distiller.whole_from=0.7")
    trainer = Trainer(config, make_replay(config, probes=0), attempt=1)
    sizes = []
    trainer.pair.student.register_forward_hook(
        lambda _, given, __: sizes.append(tuple(given[0].shape[2:]))
    )
    with trainer:
        trainer.run(_never)
    # To the nearest multiple of 4 pixels; a step's share is that of the steps before it.
    assert sizes == [(4, 4)] * 4 + [(8, 8)] * 6


def test_hints_are_followed_where_they_are_asked_for(make_config, make_replay, make_batch):
    losses = []
    for layers in ("[]", "[features.0]"):
        config = make_config(f"distiller.hint_layers={layers}", "student.kwargs={width: 4}")
        trainer = Trainer(config, make_replay(config), attempt=1)
        losses.append(trainer.step(make_batch(), learning_rate=0.0).loss)
    assert losses[1] > losses[0]


def test_the_end_is_published_with_the_final_student(make_config, make_replay):
    config = make_config("run.steps=5")
    replay = make_replay(config)
    trainer, _ = _run(config, replay, attempt=3)
    progress = replay.progress()
    assert progress.version == Version(3, 5)
    assert progress.phase == "finished"
    assert progress.elapsed_share == 1.0
    version, weights = replay.fetch_student(newer_than=NEVER)
    assert version == Version(3, 5)
    published, own = from_bytes(weights), trainer.pair.weights()
    assert all(torch.equal(published[name], own[name]) for name in own)


def test_the_student_learns_what_the_teacher_says(make_config, make_replay, test_data):
    config = make_config("run.steps=150", test_data, "distiller.batch_size=32")
    _, metrics = _run(config, make_replay(config))
    untrained = make_config("run.steps=1", "distiller.learning_rate=1e-9", test_data)
    _, before = _run(untrained, make_replay(untrained))
    assert metrics["teacher_accuracy"] == 100.0
    assert metrics["student_accuracy"] > before["student_accuracy"] + 10
    assert metrics["student_accuracy"] == metrics["agreement"]
    assert metrics["loyalty"] > before["loyalty"]


def test_what_is_measured_is_the_average_and_not_the_student_that_is_trained(
    make_config, make_replay, test_data
):
    config = make_config(
        "run.steps=20",
        test_data,
        "student.kwargs.width=4",
        "evaluation.every_share=0.5",
        "distiller.average_steps=1000000000",
        "distiller.probe_seconds=0.001",
    )
    replay = make_replay(config)
    trainer = Trainer(config, replay, attempt=1)
    # As if the student had been its teacher for many steps: these few move the average by nothing.
    trainer.pair.average.model.load_state_dict(trainer.pair.teacher.state_dict())
    trainer.pair.average.taken = 10**9
    with trainer:
        metrics = trainer.run(_never)
    assert metrics["student_accuracy"] == metrics["agreement"] == 100.0
    assert [point[-1] for point in metrics["curve"]] == [100.0, 100.0]
    assert replay.progress().probe.after_kl == pytest.approx(0.0, abs=1e-5)
    assert replay.progress().agreement < 0.9


def test_a_loss_that_is_not_finite_leaves_the_average_what_it_was(
    make_config, make_replay, make_batch
):
    config = make_config()
    trainer = Trainer(config, make_replay(config), attempt=1)
    trainer.train_step(make_batch(), 0.1)
    before = {name: tensor.clone() for name, tensor in trainer.pair.weights().items()}
    with torch.no_grad():
        trainer.pair.student.network.linear.bias.fill_(float("nan"))
    with pytest.raises(Diverged):
        trainer.train_step(make_batch(), 0.1)
    assert all(torch.equal(trainer.pair.weights()[name], tensor) for name, tensor in before.items())


def test_the_curve_has_a_point_for_every_share_and_the_end(make_config, make_replay, test_data):
    config = make_config("run.steps=20", "evaluation.every_share=0.25", test_data)
    _, metrics = _run(config, make_replay(config))
    assert [(step, share) for step, _, share, _ in metrics["curve"]] == [
        (5, 0.25),
        (10, 0.5),
        (15, 0.75),
        (20, 1.0),
    ]
    assert metrics["curve"][-1][3] == metrics["student_accuracy"]
    assert metrics["evaluation_seconds"] > 0


def test_every_evaluation_is_left_out_of_the_budget(make_config, make_replay, test_data):
    ticks = itertools.count()  # each look at the clock takes a second
    config = make_config("run.steps=20", "evaluation.every_share=0.25", test_data)
    replay = make_replay(config)
    _, metrics = _run(config, replay, save=lambda: None, clock=lambda: float(next(ticks)))
    assert metrics["evaluation_seconds"] == len(metrics["curve"]) == 4


def test_test_data_never_touches_the_training(make_config, make_replay, test_data):
    def trained(*more):
        config = make_config("run.steps=12", "buffer.priority_exponent=0", *more)
        trainer, _ = _run(config, make_replay(config))
        return trainer.pair.student.network.state_dict()

    without, measured = trained(), trained(test_data, "evaluation.every_share=0.1")
    assert all(torch.equal(without[name], measured[name]) for name in without)


def test_each_attempt_draws_and_crops_anew_from_one_initialisation(make_config, make_replay):
    def trained(attempt, steps):
        config = make_config(f"run.steps={steps}", "distiller.learning_rate=1e-9")
        trainer, _ = _run(config, make_replay(config), attempt=attempt)
        return trainer.pair.student.network.features[1].running_mean

    assert torch.equal(trained(1, 2), trained(1, 2))
    assert not torch.equal(trained(1, 2), trained(2, 2))


def test_a_budget_that_ends_before_the_first_batch_is_an_error(make_config):
    config = make_config("run.steps=null", "run.seconds=0.3")
    replay = InMemoryReplayBuffer(config.buffer, seed=0)
    trainer = Trainer(config, replay, attempt=1)
    with (
        trainer,
        pytest.raises(
            Starved, match=r"run\.seconds \(0\.3\): the budget ended .* holds 0 samples, and 32 are"
        ),
    ):
        trainer.run(_never)
    assert replay.progress().phase == "filling"
    assert replay.fetch_student(newer_than=NEVER)[0] == Version(1, 0)


def test_a_starved_loader_ends_the_training(make_config):
    config = make_config("distiller.max_waiting_seconds=0.1")
    trainer = Trainer(config, InMemoryReplayBuffer(config.buffer, seed=0), attempt=1)
    with trainer, pytest.raises(Starved, match=r"max_waiting_seconds \(0\.1\)"):
        trainer.run(_never)


def test_reports_are_written_and_published_while_training(make_config, make_replay, tmp_path):
    config = make_config(
        "run.steps=40", "distiller.snapshot_seconds=0.001", "distiller.probe_seconds=0.001"
    )
    replay = make_replay(config)
    journal = tmp_path / "metrics.jsonl"
    _run(config, replay, journal=journal)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) > 20
    assert [line["version"] for line in lines] == sorted(line["version"] for line in lines)
    assert lines[0]["phase"] == "filling"
    assert lines[-1]["phase"] == "finished"
    training = [line for line in lines if line["phase"] == "distilling"]
    assert all(line["kl_mean"] > 0 for line in training)
    assert training[-1]["probe"]["members"] == 16
    assert training[0]["learning_rate"] > training[-1]["learning_rate"]


def test_evaluations_are_written_when_they_are_made(make_config, make_replay, test_data, tmp_path):
    settings = ("run.steps=20", "evaluation.every_share=0.25", "distiller.checkpoint_seconds=1e-9")
    config = make_config(*settings, test_data)
    journal, seen = tmp_path / "metrics.jsonl", []

    def evaluations():
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        return [line for line in lines if line.get("event") == "evaluation"]

    with Trainer(config, make_replay(config), attempt=3, journal=journal) as trainer:
        metrics = trainer.run(save=lambda: seen.append((trainer.tally.step, len(evaluations()))))
    assert dict(seen)[4] == 0
    assert dict(seen)[5] == 1
    assert dict(seen)[19] == 3
    fields = ("step", "elapsed_seconds", "elapsed_share", "student_accuracy")
    assert [[line[field] for field in fields] for line in evaluations()] == metrics["curve"]
    assert [line["version"] for line in evaluations()] == [[3, step] for step in (5, 10, 15, 20)]
    last = json.loads(journal.read_text().splitlines()[-1])
    assert last["phase"] == "finished"


def test_the_rate_follows_the_budget(make_config, make_replay, make_batch):
    config = make_config("run.steps=100")
    trainer = Trainer(config, make_replay(config), attempt=1)
    trainer.train_step(make_batch(), 0.2)
    trainer.train_step(make_batch(), 0.6)
    rate = trainer.step.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(learning_rate(config.distiller, 0.6, first_share=0.2))


def test_new_parameters_are_noticed_from_the_batches(make_config, make_replay):
    config = make_config("run.steps=60", "distiller.probe_seconds=0.001")
    replay = make_replay(config)
    assert replay.set_params(SamplingParams(version=Version(4, 2)))
    _run(config, replay)
    assert replay.progress().probe.params_version == Version(4, 2)


def test_checkpoints_are_due_by_the_clock_but_not_before_the_first_step(make_config, make_replay):
    config = make_config("run.steps=10", "distiller.checkpoint_seconds=1e-9")
    saved = []
    with Trainer(config, make_replay(config), attempt=1) as trainer:
        trainer.run(save=lambda: saved.append(trainer.tally.step))
    assert saved == list(range(1, 10))


def test_metrics_are_counted(make_config, make_replay):
    registry = CollectorRegistry()
    config = make_config("run.steps=4")
    _run(config, make_replay(config), metrics=DistillerMetrics(registry))
    assert registry.get_sample_value("ssdkd_distiller_samples_total") == 64


def test_the_learning_rate_and_the_accuracy_are_exported(make_config, make_replay, test_data):
    config, registry = make_config("run.steps=4", test_data), CollectorRegistry()
    _, metrics = _run(config, make_replay(config), metrics=DistillerMetrics(registry))
    last = learning_rate(config.distiller, 0.75)
    rate = registry.get_sample_value("ssdkd_distiller_learning_rate")
    assert rate == pytest.approx(last)
    accuracy = registry.get_sample_value("ssdkd_distiller_accuracy_ratio")
    assert accuracy == metrics["student_accuracy"] / 100


def _resumed(config, replay, state, student, **settings):
    trainer = Trainer(config, replay, **settings)
    trainer.load_state_dict(student, state)
    return trainer


def test_a_training_goes_on_where_its_checkpoint_was_taken(make_config, make_replay, tmp_path):
    config = make_config("run.steps=10")
    first, _ = _run(config, make_replay(config))
    checkpoint.save(tmp_path, first.pair.weights(), first.state_dict())
    student, state = checkpoint.load(tmp_path)
    longer = make_config("run.steps=14")
    replay = make_replay(longer)
    second = _resumed(longer, replay, state, student, attempt=2)
    for name, tensor in first.pair.student.network.state_dict().items():
        assert torch.equal(second.pair.student.network.state_dict()[name], tensor), name
    for name, tensor in first.pair.weights().items():
        assert torch.equal(second.pair.weights()[name], tensor), name
    assert any(not torch.equal(state["trained"][name], student[name]) for name in student)
    momenta = [s["momentum_buffer"] for s in second.step.optimizer.state.values()]
    expected = [s["momentum_buffer"] for s in first.step.optimizer.state.values()]
    assert momenta
    assert all(map(torch.equal, momenta, expected))
    with second:
        metrics = second.run(_never)
    assert metrics["student_steps"] == 14
    assert metrics["samples_drawn"] == 14 * 16
    assert metrics["busy_seconds"] > first.tally.busy_seconds
    assert metrics["first_step_at_seconds"] == first.tally.first_step_at_seconds
    assert replay.progress().version == Version(2, 14)


def test_the_next_step_after_a_checkpoint_is_the_one_that_was_next(
    make_config, make_replay, make_batch, tmp_path
):
    config = make_config("run.steps=10")
    first = Trainer(config, make_replay(config), attempt=1)
    first.train_step(make_batch(seed=1), 0.1)
    checkpoint.save(tmp_path, first.pair.weights(), first.state_dict())
    student, state = checkpoint.load(tmp_path)
    second = _resumed(config, make_replay(config), state, student, attempt=2)
    expected = first.train_step(make_batch(seed=2), 0.2)
    result = second.train_step(make_batch(seed=2), 0.2)
    np.testing.assert_array_equal(result.kl, expected.kl)
    assert result.loss == expected.loss
    for ours, theirs in zip(
        second.pair.student.parameters(), first.pair.student.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_settings_may_differ_after_a_checkpoint(make_config, make_replay, make_batch):
    config = make_config("distiller.weight_decay=0.1", "distiller.momentum=0.5")
    first = Trainer(config, make_replay(config), attempt=1)
    first.train_step(make_batch(), 0.1)
    other = make_config("distiller.weight_decay=0.2", "distiller.momentum=0.6")
    student = first.pair.weights()
    second = _resumed(other, make_replay(other), first.state_dict(), student, attempt=2)
    (group,) = second.step.optimizer.param_groups
    assert (group["weight_decay"], group["momentum"]) == (0.2, 0.6)


def test_a_checkpoint_of_another_kind_of_device_is_no_obstacle(make_config, make_replay):
    config = make_config()
    first = Trainer(config, make_replay(config), attempt=1)
    # A GPU's generator is a seed and an offset.
    state = first.state_dict() | {"augmentation": torch.zeros(16, dtype=torch.uint8)}
    _resumed(config, make_replay(config), state, first.pair.weights(), attempt=2)


def test_time_spent_before_a_crash_counts(make_config, make_replay):
    config = make_config("run.steps=null", "run.seconds=100")
    trainer = Trainer(config, make_replay(config), attempt=2)
    trainer.tally.elapsed_seconds, trainer.tally.evaluation_seconds = 60.0, 5.0
    with trainer:
        assert trainer.budget.share == pytest.approx(0.6, abs=0.05)


def test_evaluation_that_no_checkpoint_knows_of_is_not_spent(make_config, make_replay, test_data):
    config = make_config("run.steps=2", test_data)
    replay = make_replay(config)
    _, metrics = _run(config, replay)
    trainer = Trainer(config, replay, attempt=2)
    with trainer:
        assert trainer.tally.evaluation_seconds == metrics["evaluation_seconds"] > 0


def test_a_crash_before_the_first_checkpoint_does_not_move_the_first_step(
    make_config, make_replay, make_batch
):
    now = 1000.0
    config = make_config("run.steps=null", "run.seconds=100")
    replay = InMemoryReplayBuffer(config.buffer, seed=0, clock=lambda: now)
    replay.publish_progress(
        StudentProgress(
            version=Version(1, 9), first_step_at_seconds=20.0, inserted_at_first_step=33
        )
    )
    now += 60.0
    trainer = Trainer(config, replay, attempt=2, clock=lambda: now)
    with trainer:
        assert trainer.tally.first_step_at_seconds == 20.0
        assert trainer.tally.inserted_at_first_step == 33
        assert trainer.budget.share == pytest.approx(0.6)
        trainer.train_step(make_batch(), trainer.budget.share)
    rate = trainer.step.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(learning_rate(config.distiller, 0.6, first_share=0.2))
    assert trainer.tally.first_step_at_seconds == 20.0


def test_a_training_on_a_used_buffer_begins_with_nothing_of_the_earlier_one(
    make_config, make_samples
):
    config = make_config("run.steps=null", "run.seconds=100")
    now = 1000.0
    replay = InMemoryReplayBuffer(config.buffer, seed=0, clock=lambda: now)
    replay.insert(make_samples(64), producer="p", sequence=0)
    replay.publish_progress(
        StudentProgress(
            version=Version(3, 400),
            phase="finished",
            elapsed_seconds=90.0,
            evaluation_seconds=7.0,
            first_step_at_seconds=20.0,
            inserted_at_first_step=33,
        )
    )
    now += 500.0
    origin = Origin(replay.info().seconds, 3)
    now += 2.0  # the worker takes a while to start
    trainer = Trainer(config, replay, attempt=4, origin=origin, clock=lambda: now)
    with trainer:
        assert trainer.budget.elapsed_seconds == pytest.approx(2.0)
        assert trainer.tally.evaluation_seconds == 0.0
        assert trainer.tally.first_share is None
        assert trainer.tally.first_step_at_seconds is None


def test_a_restarted_worker_counts_from_where_its_own_training_began(make_config, make_samples):
    config = make_config("run.steps=null", "run.seconds=100")
    now = 1000.0
    replay = InMemoryReplayBuffer(config.buffer, seed=0, clock=lambda: now)
    replay.insert(make_samples(64), producer="p", sequence=0)
    now += 500.0
    origin = Origin(replay.info().seconds, 3)
    replay.publish_progress(StudentProgress(version=Version(4, 9), first_step_at_seconds=20.0))
    now += 60.0
    trainer = Trainer(config, replay, attempt=5, origin=origin, clock=lambda: now)
    with trainer:
        assert trainer.budget.share == pytest.approx(0.6)
        assert trainer.tally.first_share == pytest.approx(0.2)


def test_a_resumed_training_goes_on_with_the_time_of_its_checkpoint_alone(make_config):
    config = make_config("run.steps=null", "run.seconds=100")
    now = 1000.0
    replay = InMemoryReplayBuffer(config.buffer, seed=0, clock=lambda: now)
    replay.publish_progress(StudentProgress(version=Version(1, 90), elapsed_seconds=55.0))
    now += 3600.0
    trainer = Trainer(
        config, replay, attempt=2, origin=Origin(replay.info().seconds, 1), clock=lambda: now
    )
    trainer.tally.elapsed_seconds = 40.0
    with trainer:
        assert trainer.budget.elapsed_seconds == pytest.approx(40.0)


def test_a_training_that_is_asked_to_end_saves_and_publishes_the_student_of_that_step(
    make_config, make_replay
):
    config, saved = make_config("run.steps=100000", "distiller.snapshot_seconds=1000"), []
    replay = make_replay(config)
    trainer = Trainer(config, replay, attempt=1, end_asked=lambda: trainer.tally.step >= 7)
    with trainer, pytest.raises(Interrupted, match="asked to end after 7 student steps; the stud"):
        trainer.run(save=lambda: saved.append(trainer.tally.step))
    assert saved == [7]
    assert replay.progress().version == Version(1, 7)
    assert replay.progress().phase == "distilling"
    version, weights = replay.fetch_student(newer_than=NEVER)
    assert version == Version(1, 7)
    published, own = from_bytes(weights), trainer.pair.weights()
    assert all(torch.equal(published[name], own[name]) for name in own)


def test_a_training_that_is_asked_to_end_before_its_first_step_saves_nothing(make_config):
    config = make_config()
    replay = InMemoryReplayBuffer(config.buffer, seed=0)
    trainer = Trainer(config, replay, attempt=1, end_asked=lambda: True)
    with trainer, pytest.raises(Interrupted, match="before the first student step; there is no st"):
        trainer.run(_never)
    assert replay.fetch_student(newer_than=NEVER)[0] == Version(1, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_checkpoint_holds_the_random_state_of_the_gpu(make_config, make_replay, tmp_path):
    config, device = make_config(), torch.device("cuda")
    first = Trainer(config, make_replay(config), attempt=1, device=device)
    checkpoint.save(tmp_path, first.pair.weights(), first.state_dict())
    expected = torch.rand(3, device=device)
    student, state = checkpoint.load(tmp_path)
    _resumed(config, make_replay(config), state, student, attempt=2, device=device)
    assert torch.equal(torch.rand(3, device=device), expected)


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_a_training_with_crops_blends_and_hints_goes_on(kind, make_config, make_replay, tmp_path):
    config = make_config(
        "distiller.mixup=0.5", "distiller.hint_layers=[features.0]", "student.kwargs={width: 4}"
    )
    replay, device = make_replay(config), torch.device(kind)
    first = Trainer(config, replay, attempt=1, device=device)
    first.step(replay.sample(16), learning_rate=0.1, crop=(4, 4))
    checkpoint.save(tmp_path, first.pair.weights(), first.state_dict())
    student, state = checkpoint.load(tmp_path)
    second = _resumed(config, replay, state, student, attempt=2, device=device)
    batch = replay.sample(16)
    expected, result = (each.step(batch, learning_rate=0.1) for each in (first, second))
    np.testing.assert_allclose(result.kl, expected.kl, rtol=1e-4, atol=1e-5)
    assert result.loss == pytest.approx(expected.loss, rel=1e-4)
    assert {each.device.type for each in second.pair.student.parameters()} == {kind}
    for ours, theirs in zip(
        first.pair.student.parameters(), second.pair.student.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_another_student_is_refused(make_config, make_replay):
    config = make_config()
    trainer = Trainer(config, make_replay(config), attempt=2)
    with pytest.raises(ModelError, match="the checkpoint does not fit DigitsCNN"):
        trainer.load_state_dict(digits_cnn(3).state_dict(), trainer.state_dict())


def test_the_published_student_can_be_built_from_its_specification(make_config, make_replay):
    config = make_config("run.steps=3")
    replay = make_replay(config)
    trainer, _ = _run(config, replay)
    _, weights = replay.fetch_student(newer_than=NEVER)
    rebuilt = build(config.student, weights=from_bytes(weights)).eval()
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(rebuilt(images), trainer.pair.average.model(images))
