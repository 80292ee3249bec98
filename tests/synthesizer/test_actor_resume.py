"""A synthesizer that is killed, stopped or broken, and what its successor knows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_methods
import torch
from faulty_replay import FaultyReplay, synthesizer_of
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from tiny_methods import STEPS, TrainsFirst

from buffer.errors import Diverged
from synthesizer.actor import Synthesizer
from synthesizer.config import SynthesizerFile
from synthesizer.metrics import SynthesizerMetrics

Configure = Callable[..., SynthesizerFile]


class Killed(BaseException):
    """Ends a process at once, as far as a test can."""


@pytest.fixture
def eager(configure: Configure) -> SynthesizerFile:
    """Saves after each round."""
    return configure(synthesizer={"checkpoint_seconds": 1e-9})


@pytest.fixture
def long(configure: Configure) -> SynthesizerFile:
    """Prepares for long, and saves at each report."""
    table = {"method": "tiny_methods:TrainsFirst", "kwargs": {}, "checkpoint_seconds": 1e-9}
    return configure(synthesizer=table)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "synthesizer-0.pt"


def generator_of(worker: Synthesizer) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = worker._inverter.method.state_dict()["generator"]
    return {name: tensor.clone() for name, tensor in state.items()}


def images_of(replay: FaultyReplay) -> list[NDArray[np.uint8]]:
    return [np.stack([sample.image for sample in samples]) for _, samples in replay.deliveries]


def test_a_successor_goes_on_with_what_was_learned_but_makes_other_images(
    eager: SynthesizerFile, path: Path
) -> None:
    replay = FaultyReplay(eager)
    worker = synthesizer_of(eager, replay, seed=1, checkpoint=path)
    for _ in range(3):
        worker.step()
    learned, saved = generator_of(worker), path.read_bytes()
    worker.step()
    path.write_bytes(saved)  # killed before this round was saved too
    successor = synthesizer_of(eager, replay, seed=2, checkpoint=path)
    successor._prepare_once()
    assert all(torch.equal(learned[n], t) for n, t in generator_of(successor).items())
    successor.step()
    *_, last, first_of_successor = images_of(replay)
    assert (last != first_of_successor).mean() > 0.1


def test_a_round_in_which_the_numbers_are_left_costs_what_was_learned(
    eager: SynthesizerFile, path: Path
) -> None:
    worker = synthesizer_of(eager, FaultyReplay(eager), checkpoint=path)
    worker.step()
    assert path.exists()
    next(worker.context.teacher.model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged):
        worker.run()
    assert not path.exists()


def test_a_synthesizer_that_is_stopped_saves_what_it_has_learned(
    config: SynthesizerFile, path: Path
) -> None:
    replay = FaultyReplay(config)
    worker = synthesizer_of(config, replay, checkpoint=path)
    worker.step()
    assert not path.exists()  # not due for a minute
    replay.during_round = worker.stop
    worker.run()
    successor = synthesizer_of(config, replay, checkpoint=path)
    successor._prepare_once()
    learned = generator_of(worker)
    assert all(torch.equal(learned[n], t) for n, t in generator_of(successor).items())


def test_a_long_preparation_is_seen_from_outside(
    long: SynthesizerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    worker = synthesizer_of(long, FaultyReplay(long), metrics=SynthesizerMetrics(registry))
    seen: list[float] = []
    monkeypatch.setattr(
        TrainsFirst, "during_step", lambda step: seen.append(worker.status().prepared_share)
    )
    assert worker.step() == 16
    assert seen == pytest.approx([step / STEPS for step in range(STEPS)])
    assert worker.status().prepared_share == 1.0
    assert registry.get_sample_value("ssdkd_synthesizer_prepared_ratio") == 1.0
    busy = registry.get_sample_value("ssdkd_synthesizer_busy_seconds_total")
    assert busy == pytest.approx(worker.status().busy_seconds)


def test_a_long_preparation_ends_when_it_is_told_to_and_a_successor_goes_on(
    long: SynthesizerFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, steps = FaultyReplay(long), list[int]()
    worker = synthesizer_of(long, replay, checkpoint=path)

    def look(step: int) -> None:
        steps.append(step)
        if len(steps) == 4:
            worker.stop()

    monkeypatch.setattr(TrainsFirst, "during_step", look)
    thread = threading.Thread(target=worker.run)
    thread.start()
    thread.join(30.0)
    assert not thread.is_alive()
    assert worker.status().prepared_share == pytest.approx(0.4)
    assert replay.deliveries == []
    assert synthesizer_of(long, replay, checkpoint=path).step() == 16
    assert steps == list(range(1, STEPS + 1))


def test_a_preparation_that_was_killed_is_resumed_from_its_last_report(
    long: SynthesizerFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def look(step: int) -> None:
        steps.append(step)
        if len(steps) == 6:
            raise Killed

    monkeypatch.setattr(tiny_methods.TrainsFirst, "during_step", look)
    replay = FaultyReplay(long)
    with pytest.raises(Killed):
        synthesizer_of(long, replay, checkpoint=path).step()
    assert synthesizer_of(long, replay, checkpoint=path).step() == 16
    assert steps == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]


def test_a_state_of_another_teacher_is_not_taken_over(
    eager: SynthesizerFile, configure: Configure, path: Path, caplog: Any
) -> None:
    synthesizer_of(eager, FaultyReplay(eager), checkpoint=path).step()
    other = configure(teacher={"mean": [0.4, 0.4, 0.4]})
    worker = synthesizer_of(other, FaultyReplay(other), checkpoint=path)
    assert worker.step() == 16
    assert "is of another method or teacher" in caplog.text
