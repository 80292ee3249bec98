from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from buffer.errors import BufferUnavailable, ConfigError, ModelError
from buffer.interface import InsertResult, Permit
from buffer.memory import InMemoryReplayBuffer
from buffer.models import NormalizedModel, build, to_bytes
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.sample import Sample
from buffer.version import NEVER, Version
from synthesizer import actor as actor_module
from synthesizer.actor import Synthesizer
from synthesizer.config import SynthesizerFile
from synthesizer.metrics import SynthesizerMetrics

Configure = Callable[..., SynthesizerFile]


class FaultyReplay(InMemoryReplayBuffer):
    """A real buffer behind a bad line, which keeps what it was sent."""

    def __init__(self, config: SynthesizerFile, **kwargs: Any) -> None:
        super().__init__(config.buffer, **kwargs)
        self.faults: Counter[str] = Counter()
        """Calls that will fail before they reach the buffer, by name."""
        self.lost_answers: Counter[str] = Counter()
        """Calls that will be done, but whose answer is lost."""
        self.deliveries: list[tuple[int, list[Sample]]] = []
        self.held_permits: set[str] = set()
        self.during_round: Callable[[], None] | None = None
        """Called once, after the next permit and before its insert."""

    def request_permit(self, n: int, *, producer: str) -> Permit:
        permit = super().request_permit(n, producer=producer)
        if permit.granted:
            self.held_permits.add(producer)
        return permit

    def insert(self, samples: Sequence[Sample], *, producer: str, sequence: int) -> InsertResult:
        self._maybe_fail("insert", self.faults)
        self.deliveries.append((sequence, list(samples)))
        result = super().insert(samples, producer=producer, sequence=sequence)
        self.held_permits.discard(producer)
        self._maybe_fail("insert", self.lost_answers)
        return result

    def params(self) -> SamplingParams:
        self._maybe_fail("params", self.faults)
        if self.during_round is not None:
            call, self.during_round = self.during_round, None
            call()
        return super().params()

    def release_permit(self, *, producer: str) -> None:
        self._maybe_fail("release_permit", self.faults)
        super().release_permit(producer=producer)
        self.held_permits.discard(producer)

    def _maybe_fail(self, name: str, faults: Counter[str]) -> None:
        if faults[name] > 0:
            faults[name] -= 1
            raise BufferUnavailable("the line is down")


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "FIRST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def replay(config: SynthesizerFile) -> FaultyReplay:
    return FaultyReplay(config)


def synthesizer_of(
    config: SynthesizerFile, replay: InMemoryReplayBuffer, **kwargs: Any
) -> Synthesizer:
    settings = {"producer": "synthesizer-0", "device": torch.device("cpu"), "seed": 1, **kwargs}
    return Synthesizer(config, replay, **settings)


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


def test_the_context_follows_the_buffer(config: SynthesizerFile, replay: FaultyReplay) -> None:
    worker = synthesizer_of(config, replay)
    worker.step()
    assert worker.context.class_counts is None
    assert not worker.context.filled_once
    for _ in range(5):
        worker.step()
    counts = worker.context.class_counts
    assert counts is not None
    assert counts.shape == (4,)
    assert counts.sum() == 64
    assert worker.context.filled_once
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


def test_a_refused_permit_is_waited_out_without_work(
    configure: Configure,
) -> None:
    config = configure(buffer={"samples_per_insert": 1.0, "error_buffer": 16.0, "capacity": 32})
    replay = FaultyReplay(config)
    worker = synthesizer_of(config, replay)
    while worker.step() > 0:
        assert worker.status().rounds < 10
    before = worker.status()
    assert replay.info().insert_waits == 1
    assert worker.step() == 0
    after = worker.status()
    assert after.rounds == before.rounds
    assert after.busy_seconds == before.busy_seconds
    # Three quarters of the limiter's answer of 0.05 s at least.
    assert after.waiting_seconds - before.waiting_seconds > 0.03
    replay.sample(32)
    assert worker.step() == 16


def test_a_permit_that_lapsed_during_the_round_does_not_cost_the_round(
    configure: Configure,
) -> None:
    config = configure(buffer={"samples_per_insert": 1.0, "error_buffer": 16.0, "capacity": 32})
    now = [0.0]
    replay = FaultyReplay(config, clock=lambda: now[0])
    worker = synthesizer_of(config, replay)
    while worker.step() > 0:
        pass
    replay.sample(16)
    rounds = worker.status().rounds

    def lease_ends_and_another_inserts() -> None:
        now[0] += 2 * config.buffer.lease_seconds
        other = [sample for sample in replay.deliveries[0][1] if sample.split == "train"]
        replay.insert(other, producer="other", sequence=1)
        threading.Timer(0.15, lambda: replay.sample(32)).start()

    replay.during_round = lease_ends_and_another_inserts
    assert worker.step() == 16
    assert worker.status().rounds == rounds + 1
    assert worker.status().waiting_seconds > 0.0


def test_a_short_absence_of_the_buffer_is_survived(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    replay.faults.update(params=2, insert=2)
    assert worker.step() == 16
    assert replay.info().size == 14
    assert worker.status().waiting_seconds > 0.0
    assert sum(replay.faults.values()) == 0


def test_an_insert_whose_answer_was_lost_is_not_doubled(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    replay.lost_answers["insert"] = 1
    assert worker.step() == 0
    assert [sequence for sequence, _ in replay.deliveries] == [1, 1]
    assert replay.info().inserted == 14
    assert replay.info().duplicates == 1


def test_a_long_absence_ends_in_an_error_and_the_permit_lapses(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay, patience_seconds=0.1)
    worker.step()
    replay.faults.update(params=1000, release_permit=1)
    with pytest.raises(BufferUnavailable, match="the line is down"):
        worker.step()
    assert replay.held_permits == {"synthesizer-0"}


def test_a_round_that_fails_gives_its_permit_back(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    worker.step()
    worker.context.teacher.model.network = torch.nn.Flatten()
    worker.context.teacher.layers = []
    with pytest.raises(IndexError):
        worker.step()
    assert replay.held_permits == set()


def test_run_ends_when_it_is_stopped(config: SynthesizerFile, replay: FaultyReplay) -> None:
    worker = synthesizer_of(config, replay)
    thread = threading.Thread(target=worker.run)
    thread.start()
    while worker.status().rounds < 3:
        assert thread.is_alive()
        time.sleep(0.001)
    worker.stop()
    thread.join(10.0)
    assert not thread.is_alive()
    assert replay.held_permits == set()
    assert len(replay.deliveries) == worker.status().rounds >= 3


def test_a_stopped_synthesizer_starts_no_round(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    worker.stop()
    assert worker.step() == 0
    assert replay.held_permits == set()
    assert replay.deliveries == []


def test_a_buffer_that_goes_before_its_producers_is_no_failure(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    worker.step()
    replay.faults["params"] = 1000
    thread = threading.Timer(0.1, worker.stop)
    thread.start()
    worker.run()
    thread.join()
    assert replay.faults["params"] < 1000


def test_a_buffer_that_stays_away_ends_the_run(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay, patience_seconds=0.05)
    replay.faults["params"] = 1000
    with pytest.raises(BufferUnavailable, match="the line is down"):
        worker.run()


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
    assert registry.get_sample_value(prefix + "images_total") == 32
    assert registry.get_sample_value(prefix + "rounds_total") == 2
    busy = registry.get_sample_value(prefix + "busy_seconds_total")
    assert busy == pytest.approx(status.busy_seconds)
    waiting = registry.get_sample_value(prefix + "waiting_seconds_total")
    assert waiting == pytest.approx(status.waiting_seconds)
    assert waiting > 0.0
    assert registry.get_sample_value(prefix + "student_lag_steps") == 15
    for term in ("total", "bn", "task"):
        value = registry.get_sample_value(prefix + "loss", {"term": term})
        assert value == status.losses[term]


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
