"""A run at one moment, from a real buffer and what a distiller publishes."""

from __future__ import annotations

from typing import Any

import pytest

from buffer.config import BufferTable
from buffer.errors import BufferUnavailable
from buffer.interface import BufferInfo
from buffer.memory import InMemoryReplayBuffer
from buffer.progress import StudentProgress
from buffer.version import Version
from deploy.outlook import Outlook, State, phase_of
from deploy.supervisor import Totals
from tests.deploy.test_report import samples


class Crew:
    """Synthesizers that are as they are told to be."""

    def __init__(self) -> None:
        self.wanted, self.prepared, self.sums = 2, [1.0], Totals()

    def describe(self) -> list[dict[str, Any]]:
        return [{"state": "running"}] * len(self.prepared) + [{"state": "restarting"}]

    def statuses(self) -> list[dict[str, Any]]:
        return [{"prepared_share": share} for share in self.prepared]

    def totals(self) -> Totals:
        return self.sums


class Leaving(InMemoryReplayBuffer):
    """A real buffer that can go away."""

    away = False

    def info(self) -> BufferInfo:
        if self.away:
            raise BufferUnavailable("gone")
        return super().info()


TABLE = BufferTable(capacity=50, probe_capacity=0, min_size_to_sample=5, samples_per_insert=None)


class Watched:
    def __init__(self) -> None:
        self.replay = Leaving(TABLE, seed=0)
        self.crew, self.now, self.sequence = Crew(), 0.0, 0
        self.outlook = Outlook(self.replay, self.crew, 5, lambda: self.now)

    def insert(self, count: int) -> None:
        self.replay.insert(samples(count), producer="p", sequence=self.sequence)
        self.sequence += 1

    def report(self, step: int, share: float, **fields: Any) -> None:
        fields = {"phase": "distilling", "agreement": 0.5, "kl_mean": 1.25} | fields
        self.replay.publish_progress(
            StudentProgress(version=Version(1, step), elapsed_share=share, **fields)
        )


@pytest.fixture
def run() -> Watched:
    return Watched()


def progress(**fields: Any) -> StudentProgress:
    return StudentProgress(**fields)


@pytest.mark.parametrize(
    ("published", "prepared", "inserted", "phase"),
    [
        (None, [], 0, "starting"),
        (progress(), [], 7, "starting"),
        (None, [0.3, 0.0], 0, "preparing"),
        (None, [0.3, 0.0], 7, "filling"),
        (progress(), [0.3, 1.0], 0, "filling"),
        (progress(phase="distilling", elapsed_share=0.3), [0.5], 7, "distilling"),
        (progress(phase="distilling", elapsed_share=1.0), [1.0], 7, "evaluating"),
        (progress(phase="finished", elapsed_share=1.0), [1.0], 7, "ending"),
    ],
)
def test_the_phase_follows_from_what_both_sides_say(
    published: StudentProgress | None, prepared: list[float], inserted: int, phase: str
) -> None:
    assert phase_of(published, prepared, inserted) == phase


def test_while_filling_the_samples_that_are_missing_are_told(run: Watched) -> None:
    run.insert(3)
    state = run.outlook.look()
    assert (state.phase, state.size, state.size_needed) == ("filling", 3, 5)
    assert (state.synthesizers, state.synthesizers_wanted) == (1, 2)
    assert state.agreement is None
    assert state.inverted_per_second is None, "of a single moment no speed is known"
    assert state.seconds_left is None


def test_preparation_is_told_as_the_mean_of_all(run: Watched) -> None:
    run.crew.prepared = [0.2, 0.6]
    assert run.outlook.look().prepared_share == pytest.approx(0.4)


def test_speed_and_waiting_are_of_the_last_ten_seconds(run: Watched) -> None:
    run.insert(10)
    run.report(0, 0.0)
    for second in range(41):
        run.now = float(second)
        if second > 30:
            run.insert(2)
            run.replay.sample(3)
        work = max(0, second - 30)
        run.crew.sums = Totals(busy_seconds=0.9 * work, waiting_seconds=0.1 * work)
        run.report(second, second / 100, busy_seconds=0.4 * work, waiting_seconds=0.6 * work)
        state = run.outlook.look()
    assert state.inverted_per_second == pytest.approx(2.0)
    assert state.drawn_per_second == pytest.approx(3.0)
    assert state.synthesizer_idle_share == pytest.approx(0.1)
    assert state.distiller_idle_share == pytest.approx(0.6)
    assert state.waiting == "distillers"
    assert state.seconds_left == pytest.approx(60.0)
    assert (state.step, state.agreement, state.kl) == (40, 0.5, 1.25)
    assert (state.inverted, state.drawn) == (30, 30)


def test_a_buffer_that_is_away_is_told_with_what_was_known_last(run: Watched) -> None:
    run.insert(3)
    before = run.outlook.look()
    run.replay.away = True
    assert run.outlook.look() == State(**vars(before) | {"phase": "waiting for the buffer"})


def test_what_has_ended_has_no_speed() -> None:
    running = State(phase="distilling", step=7, seconds_left=3.0, drawn_per_second=2.0, drawn=9)
    assert running.halted("saving") == State(phase="saving", step=7, drawn=9)
