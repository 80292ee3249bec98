from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from faulty_replay import FaultyReplay, synthesizer_of
from prometheus_client import CollectorRegistry

from buffer.errors import BufferUnavailable, Diverged
from buffer.sample import Sample
from synthesizer.config import SynthesizerFile
from synthesizer.metrics import SynthesizerMetrics

Configure = Callable[..., SynthesizerFile]


def test_a_refused_permit_is_waited_out_without_work(
    configure: Configure,
) -> None:
    config = configure(buffer={"samples_per_insert": 1.0, "error_buffer": 16.0, "capacity": 32})
    replay = FaultyReplay(config)
    registry = CollectorRegistry()
    worker = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry))
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
    waits = registry.get_sample_value("ssdkd_synthesizer_waits_total")
    assert waits == replay.info().insert_waits == 2
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


def fates(registry: CollectorRegistry) -> dict[str, float | None]:
    """Images by what became of them."""
    return {
        fate: registry.get_sample_value("ssdkd_synthesizer_images_total", {"result": fate})
        for fate in ("committed", "rejected", "abandoned")
    }


def test_images_that_the_buffer_has_already_are_counted_as_rejected(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    registry = CollectorRegistry()
    worker = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry))
    worker.step()
    replay.lost_answers["insert"] = 1
    worker.step()
    assert fates(registry) == {"committed": 16, "rejected": 16, "abandoned": 0}


def test_images_that_the_buffer_will_not_take_are_counted_as_rejected(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    registry = CollectorRegistry()
    worker = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry))
    small = Sample(np.zeros((1, 4, 4), np.uint8), predicted_class=0, confidence=1, disagreement=1)
    replay.insert([small], producer="other", sequence=1)
    with pytest.raises(ValueError, match="could not be drawn into one batch"):
        worker.step()
    assert fates(registry) == {"committed": 0, "rejected": 16, "abandoned": 0}


def test_images_that_a_stop_leaves_undelivered_are_counted_as_abandoned(
    configure: Configure,
) -> None:
    config = configure(buffer={"samples_per_insert": 1.0, "error_buffer": 16.0, "capacity": 32})
    now, registry = [0.0], CollectorRegistry()
    replay = FaultyReplay(config, clock=lambda: now[0])
    worker = synthesizer_of(config, replay, metrics=SynthesizerMetrics(registry))
    while worker.step() > 0:
        pass
    replay.sample(16)
    committed = worker.status().samples

    def the_permit_lapses_and_a_stop_is_ordered() -> None:
        now[0] += 2 * config.buffer.lease_seconds
        other = [sample for sample in replay.deliveries[0][1] if sample.split == "train"]
        replay.insert(other, producer="other", sequence=1)
        worker.stop()

    replay.during_round = the_permit_lapses_and_a_stop_is_ordered
    assert worker.step() == 0
    assert fates(registry) == {"committed": committed, "rejected": 0, "abandoned": 16}


def test_images_that_nobody_was_there_to_take_are_counted_as_abandoned(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    registry = CollectorRegistry()
    metrics = SynthesizerMetrics(registry)
    worker = synthesizer_of(config, replay, metrics=metrics, patience_seconds=0.05)
    replay.faults["insert"] = 1000
    with pytest.raises(BufferUnavailable, match="the line is down"):
        worker.step()
    assert fates(registry) == {"committed": 0, "rejected": 0, "abandoned": 16}


def test_a_fresh_insert_that_is_answered_as_repeated_is_reported(
    config: SynthesizerFile, replay: FaultyReplay, caplog: pytest.LogCaptureFixture
) -> None:
    worker = synthesizer_of(config, replay)
    worker.step()
    assert caplog.records == []
    replay.insert(replay.deliveries[0][1], producer="synthesizer-0", sequence=2)
    assert worker.step() == 0
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        "insert 2 was answered as a repeated one, its 16 samples are not counted"
    )
    assert worker.status().samples == 16
    assert worker.step() == 16


def test_a_round_that_leaves_the_numbers_is_an_error_and_inserts_nothing(
    config: SynthesizerFile, replay: FaultyReplay
) -> None:
    worker = synthesizer_of(config, replay)
    worker.step()
    next(worker.context.teacher.model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="the generator cannot recover"):
        worker.step()
    assert replay.held_permits == set()
    assert len(replay.deliveries) == 1


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
