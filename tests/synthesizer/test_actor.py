from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_replay import FaultyReplay, synthesizer_of
from prometheus_client import CollectorRegistry

from buffer.errors import ConfigError, ModelError
from buffer.models import NormalizedModel, build, to_bytes
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.version import NEVER, Version
from synthesizer.config import SynthesizerFile
from synthesizer.metrics import SynthesizerMetrics

Configure = Callable[..., SynthesizerFile]


def snapshot(config: SynthesizerFile, seed: int) -> tuple[NormalizedModel, bytes]:
    torch.manual_seed(seed)
    model = build(config.student)
    return model, to_bytes(model)


def test_a_step_inserts_one_batch(config: SynthesizerFile, replay: FaultyReplay) -> None:
    worker = synthesizer_of(config, replay)
    assert worker.step() == 16
    info = replay.info()
    assert (info.size, info.probe_size) == (14, 2)
    assert sum(info.class_counts.values()) == 14
    status = worker.status()
    assert (status.producer, status.rounds, status.samples) == ("synthesizer-0", 1, 16)
    assert status.busy_seconds > 0.0
    assert status.waiting_seconds == 0.0
    assert status.student_version == NEVER
    assert set(status.losses) == {"total", "bn", "task"}


def test_steps_fill_the_buffer_with_growing_sequence_numbers(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    for _ in range(5):
        worker.step()
    sequences = [sequence for sequence, _ in replay.deliveries]
    assert sequences == [1, 2, 3, 4, 5]
    assert replay.info().size == 64
    assert replay.info().inserted == 70


def test_the_warm_up_may_be_shorter_than_the_buffer(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    table = config.synthesizer.model_copy(update={"warm_up_samples": 28})
    worker = synthesizer_of(config.model_copy(update={"synthesizer": table}), replay)
    warmed_up = []
    for _ in range(4):
        worker.step()
        warmed_up.append(worker.context.warmed_up)
    assert warmed_up == [False, False, True, True]  # as of before the step


def test_the_context_follows_the_buffer(config: SynthesizerFile, replay: FaultyReplay) -> None:
    worker = synthesizer_of(config, replay)
    worker.step()
    assert worker.context.class_counts is None
    for inserted in (14, 28, 42, 56):
        worker.step()
        # The context is as of before the step.
        assert worker.context.class_counts is not None
        assert worker.context.class_counts.sum() == inserted
        assert not worker.context.warmed_up
    worker.step()
    counts = worker.context.class_counts
    assert counts is not None
    assert counts.shape == (4,)
    assert counts.sum() == 64
    assert worker.context.warmed_up
    params = SamplingParams(version=Version(1, 1), adversarial_weight=3.0)
    progress = StudentProgress(version=Version(1, 9), elapsed_share=0.5)
    replay.set_params(params)
    replay.publish_progress(progress)
    worker.step()
    assert worker.context.params == params
    assert worker.context.progress == progress


def test_a_newer_student_is_taken_over_and_an_equal_one_is_not_fetched_again(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    images = torch.rand(3, 3, 8, 8)
    first, data = snapshot(config, seed=1)
    replay.publish_student(data, version=Version(1, 10))
    worker.step()
    built = worker.context.student
    assert built is not None
    torch.testing.assert_close(built(images), first.eval()(images))
    assert not built.training
    assert not any(parameter.requires_grad for parameter in built.parameters())
    second, data = snapshot(config, seed=2)
    replay.publish_student(data, version=Version(2, 5))
    worker.step()
    assert worker.context.student is built
    torch.testing.assert_close(built(images), second.eval()(images))
    assert worker.status().student_version == Version(2, 5)
    born = [{sample.born for sample in samples} for _, samples in replay.deliveries]
    assert born == [{Version(1, 10)}, {Version(2, 5)}]
    assert replay.fetch_student(newer_than=worker.status().student_version) is None


@pytest.mark.parametrize("share", [0.125, 0.04])
def test_a_permit_is_asked_for_the_samples_that_will_count(
    share: float, configure: Configure
) -> None:
    config = configure(buffer={"probe_share": share})
    replay = FaultyReplay(config)
    worker, inserted = synthesizer_of(config, replay), [0]
    for _ in range(5):
        worker.step()
        inserted.append(replay.info().inserted)
    assert replay.asked_for == np.diff(inserted).tolist()
    assert min(replay.asked_for) < 16


CHANGES: dict[str, Callable[[SynthesizerFile, FaultyReplay], object]] = {
    "difficulty_exponent": lambda _, replay: replay.set_params(
        SamplingParams(version=Version(1, 1), difficulty_exponent=4.0)
    ),
    "adversarial_weight": lambda _, replay: replay.set_params(
        SamplingParams(version=Version(1, 1), adversarial_weight=4.0)
    ),
    "student": lambda config, replay: replay.publish_student(
        snapshot(config, seed=2)[1], version=Version(1, 2)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_the_buffer_changes_the_next_round(
    change: str, configure: Configure
) -> None:
    config = configure(buffer={"capacity": 28})
    losses: list[list[dict[str, float]]] = []
    for changed in (False, True):
        replay = FaultyReplay(config)
        replay.publish_student(snapshot(config, seed=1)[1], version=Version(1, 1))
        worker, seen = synthesizer_of(config, replay), []
        for number in range(4):
            if changed and number == 3:
                CHANGES[change](config, replay)
            worker.step()
            seen.append(dict(worker.status().losses))
        losses.append(seen)
    assert "adversarial" in losses[0][3]
    assert losses[0][:3] == losses[1][:3]
    assert losses[0][3]["total"] != pytest.approx(losses[1][3]["total"], rel=1e-4)


def test_the_newest_student_decides_the_first_priorities(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    worker.step()
    replay.publish_student(snapshot(config, seed=1)[1], version=Version(1, 10))
    worker.step()
    (_, before), (_, after) = replay.deliveries
    assert {sample.disagreement for sample in before} == {1.0}
    assert len({sample.disagreement for sample in after}) > 10


def test_a_snapshot_of_another_network_is_refused(
    configure: Configure, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(configure(), replay)
    other = configure(student={"kwargs": {"width": 6}})
    replay.publish_student(snapshot(other, seed=1)[1], version=Version(1, 1))
    with pytest.raises(ModelError, match="does not fit"):
        worker.step()
    assert replay.held_permits == set()


def test_equal_seeds_make_equal_images_and_others_do_not(config: SynthesizerFile) -> None:
    images = []
    for seed in (1, 1, 2):
        replay = FaultyReplay(config)
        synthesizer_of(config, replay, seed=seed).step()
        images.append(np.stack([sample.image for sample in replay.deliveries[0][1]]))
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()


def test_without_room_for_probes_none_are_made(configure: Configure) -> None:
    config = configure(buffer={"probe_capacity": 0})
    replay = FaultyReplay(config)
    synthesizer_of(config, replay).step()
    assert replay.info().size == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_work_on_a_gpu_with_student_and_autocast(configure: Configure) -> None:
    config = configure(run={"precision": "bfloat16"})
    replay = FaultyReplay(config)
    worker = synthesizer_of(config, replay, device=torch.device("cuda"))
    replay.publish_student(snapshot(config, seed=1)[1], version=Version(1, 10))
    for _ in range(7):
        assert worker.step() == 16
    assert set(worker.status().losses) == {"total", "bn", "task", "adversarial"}
    assert worker.context.class_counts is not None
    assert worker.context.class_counts.is_cuda


def test_metrics_tell_what_was_done(config: SynthesizerFile, replay: FaultyReplay) -> None:
    registry = CollectorRegistry()
    worker = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry))
    replay.publish_student(snapshot(config, seed=1)[1], version=Version(1, 10))
    replay.publish_progress(StudentProgress(version=Version(1, 25)))
    replay.faults["params"] = 1
    for _ in range(2):
        worker.step()
    status, prefix = worker.status(), "ssdkd_synthesizer_"
    fates = {
        fate: registry.get_sample_value(prefix + "images_total", {"result": fate})
        for fate in ("committed", "rejected", "abandoned")
    }
    assert fates == {"committed": 32, "rejected": 0, "abandoned": 0}
    assert registry.get_sample_value(prefix + "rounds_total") == 2
    assert registry.get_sample_value(prefix + "round_seconds_count") == 2
    spent = registry.get_sample_value(prefix + "round_seconds_sum")
    assert spent is not None
    assert 0 < spent <= status.busy_seconds
    inserted_at = registry.get_sample_value(prefix + "last_insert_timestamp_seconds")
    assert inserted_at == pytest.approx(time.time(), abs=60)
    busy = registry.get_sample_value(prefix + "busy_seconds_total")
    assert busy == pytest.approx(status.busy_seconds)
    waiting = registry.get_sample_value(prefix + "waiting_seconds_total")
    assert waiting == pytest.approx(status.waiting_seconds)
    assert waiting > 0.0
    assert registry.get_sample_value(prefix + "student_lag_steps") == 15
    for term in ("total", "bn", "task"):
        value = registry.get_sample_value(prefix + "loss", {"term": term})
        assert value == status.losses[term]


def test_the_lag_is_what_the_student_learned_since_the_snapshot_that_a_round_used(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    registry = CollectorRegistry()
    worker, lags = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry)), []
    worker.step()
    for number, step in enumerate((10, 30, 35)):
        replay.publish_student(snapshot(config, seed=number)[1], version=Version(1, step))
        replay.publish_progress(StudentProgress(version=Version(1, step)))
        worker.step()
        lags.append(registry.get_sample_value("ssdkd_synthesizer_student_lag_steps"))
    assert lags == [0, 20, 5]


def test_the_newest_round_is_described(config: SynthesizerFile, replay: FaultyReplay) -> None:
    registry = CollectorRegistry()
    worker = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry))

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"ssdkd_synthesizer_{name}")

    worker.step()
    # Before there is a student nobody can disagree with the teacher.
    assert value("disagreement_nats") == 0
    replay.publish_student(snapshot(config, seed=1)[1], version=Version(1, 10))
    worker.step()
    newest = replay.deliveries[-1][1]
    confidences = [sample.confidence for sample in newest]
    assert value("confidence_ratio") == pytest.approx(np.mean(confidences))
    disagreements = [sample.disagreement for sample in newest]
    assert value("disagreement_nats") == pytest.approx(np.mean(disagreements))
    phi = value("modulation")
    assert phi is not None
    assert 0 < phi < 1, "the mean of normalised weights would be 1"


def test_a_term_that_is_switched_off_has_no_value_any_more(configure: Configure) -> None:
    config = configure(buffer={"capacity": 28})
    replay, registry = FaultyReplay(config), CollectorRegistry()
    worker = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry))
    replay.publish_student(snapshot(config, seed=1)[1], version=Version(1, 1))
    values = []
    for number, weight in enumerate((1.0, 1.0, 1.0, 0.0, 1.0)):
        replay.set_params(SamplingParams(version=Version(1, number), adversarial_weight=weight))
        worker.step()
        found = registry.get_sample_value("ssdkd_synthesizer_loss", {"term": "adversarial"})
        values.append(math.nan if found is None else found)
    assert [math.isnan(value) for value in values] == [True, True, False, True, False]


def test_threads_are_set_for_the_process(config: SynthesizerFile, replay: FaultyReplay) -> None:
    before = torch.get_num_threads()
    try:
        synthesizer_of(config, replay, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_impossible_settings_and_missing_weights_are_refused(
    configure: Configure, replay: FaultyReplay, tmp_path: Path
) -> None:
    config = configure(synthesizer={"kwargs": {"inner_steps": 0}})
    with pytest.raises(ConfigError, match=r"synthesizer.kwargs.inner_steps \(0\)"):
        synthesizer_of(config, replay)
    config = configure(teacher={"weights": str(tmp_path / "none.pt")})
    with pytest.raises(ModelError, match="there is no such file"):
        synthesizer_of(config, replay)
