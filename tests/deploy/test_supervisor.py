"""The supervisor with real actors that die in real ways."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import ray

from buffer.errors import BufferUnavailable
from deploy import supervisor as module
from deploy.supervisor import Supervisor
from tests.waiting import until

pytestmark = pytest.mark.integration


class Worker:
    """Counts its rounds until it is told to stop."""

    def __init__(self, fails: Exception | None, deaf: bool) -> None:
        self.fails, self.deaf, self.stopping, self.rounds = fails, deaf, False, 0

    def run(self) -> None:
        while not self.stopping:
            if self.fails:
                raise self.fails
            self.rounds += 1
            time.sleep(0.01)

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        return {
            "busy_seconds": 0.01 * self.rounds,
            "waiting_seconds": 0.0,
            "rounds": self.rounds,
            "pid": os.getpid(),
        }

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self.stopping = not self.deaf


BROKEN = ValueError("this one always fails")


def starter(
    *, fails: Exception | None = None, deaf: bool = False, cpus: int = 0
) -> Callable[[int], Any]:
    options: dict[str, Any] = {"num_cpus": cpus, "concurrency_groups": {"control": 1}}
    return lambda number: ray.remote(**options)(Worker).remote(fails, deaf)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(module, "STATUS_SECONDS", 0.1)
    monkeypatch.setattr(module, "MAX_DEATHS", 2)


def test_a_killed_actor_is_started_again_and_its_work_still_counts() -> None:
    watch = Supervisor(starter(), 2)
    watch.start()
    until(lambda: watch.totals().rounds > 20)
    victim = watch.statuses()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    until(lambda: watch.totals().restarts == 1)
    until(lambda: len({s["pid"] for s in watch.statuses()} - {victim}) == 2)
    before = watch.totals().rounds
    until(lambda: watch.totals().rounds > before)
    assert watch.failure() is None
    watch.stop()
    assert watch.totals().rounds >= before


def test_actors_that_always_fail_are_given_up_with_the_reason() -> None:
    watch = Supervisor(starter(fails=BROKEN), 1)
    watch.start()
    until(lambda: watch.failure() is not None)
    assert "this one always fails" in str(watch.failure())
    watch.stop()


def test_stopping_lets_the_work_in_hand_end() -> None:
    watch = Supervisor(starter(), 1)
    watch.start()
    until(lambda: watch.totals().rounds > 0)
    before = watch.totals().rounds
    assert watch.stop() == 1
    assert watch.totals().rounds >= before


def test_a_dead_actor_is_counted_once_while_nobody_sits_on_its_seat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 60.0)
    watch = Supervisor(starter(), 1)
    watch.start()
    until(lambda: watch.totals().rounds > 20)
    (status,) = watch.statuses()
    os.kill(status["pid"], signal.SIGKILL)
    until(lambda: not watch.statuses())
    rounds = watch.totals().rounds
    assert status["rounds"] <= rounds < 2 * status["rounds"]
    assert watch.totals().restarts == 0
    watch.stop()


def test_an_actor_that_cannot_be_created_is_tried_again() -> None:
    attempts = []
    start = starter()

    def reluctant(number: int) -> Any:
        attempts.append(number)
        if len(attempts) == 1:
            raise ValueError("the name is taken")
        return start(number)

    watch = Supervisor(reluctant, 1)
    watch.start()
    until(lambda: watch.totals().rounds > 0)
    assert len(attempts) == 2
    watch.stop()


def test_one_given_up_actor_does_not_end_the_others() -> None:
    healthy = starter()
    failing = starter(fails=BROKEN)
    deaths = []

    def start(number: int) -> Any:
        if number == 0:
            deaths.append(number)
            return failing(number)
        return healthy(number)

    watch = Supervisor(start, 2)
    watch.start()
    until(lambda: len(deaths) == 3)
    rounds = watch.totals().rounds
    until(lambda: watch.totals().rounds > rounds + 20)
    os.kill(watch.statuses()[-1]["pid"], signal.SIGKILL)
    for _ in range(40):
        assert watch.failure() is None
        time.sleep(0.02)
    until(lambda: bool(watch.statuses()))
    watch.stop()


def test_scaling_up_starts_actors_and_scaling_down_drains_the_last_ones() -> None:
    left: list[int] = []
    watch = Supervisor(starter(), 1, leave=left.append)
    watch.start()
    until(lambda: len(watch.statuses()) == 1)
    watch.scale(3)
    until(lambda: len(watch.statuses()) == 3)
    pids = [status["pid"] for status in watch.statuses()]
    until(lambda: watch.totals().rounds > 50)
    rounds = watch.totals().rounds
    watch.scale(1)
    until(lambda: len(watch.describe()) == 1)
    assert sorted(left) == [1, 2]
    assert [status["pid"] for status in watch.statuses()] == pids[:1]
    assert watch.totals().rounds >= rounds  # what the drained ones did still counts
    assert watch.totals().restarts == 0
    watch.stop()


def test_an_actor_that_does_not_drain_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_SECONDS", 1.0)
    deaf = starter(deaf=True)
    watch = Supervisor(deaf, 2)
    watch.start()
    until(lambda: len(watch.statuses()) == 2)
    last = watch.statuses()[1]["pid"]
    watch.scale(1)
    until(lambda: len(watch.describe()) == 1)
    until(lambda: not psutil.pid_exists(last))
    watch.stop(grace_seconds=0.5)


def test_an_actor_that_does_not_drain_is_ended_though_it_is_wanted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DRAIN_SECONDS", 1.0)
    watch = Supervisor(starter(deaf=True), 2)
    watch.start()
    until(lambda: len(watch.statuses()) == 2)
    last = watch.statuses()[1]["pid"]
    watch.scale(1)
    until(lambda: watch.describe()[-1]["state"] == "draining")
    watch.scale(2)
    until(lambda: [each["state"] for each in watch.describe()] == ["running"] * 2)
    assert watch.statuses()[1]["pid"] != last
    watch.stop(grace_seconds=0.5)


def test_quarantine_ends_when_somebody_says_so_and_not_by_another_number() -> None:
    watch = Supervisor(starter(fails=BROKEN), 1)
    watch.start()
    until(lambda: watch.failure() is not None)
    (described,) = watch.describe()
    assert described["state"] == "quarantine"
    assert "this one always fails" in described["reason"]
    watch.scale(1)
    assert watch.failure() is not None
    assert watch.complete()  # nobody comes who could be waited for
    watch.release()
    assert watch.failure() is None
    until(lambda: watch.failure() is not None)
    watch.stop()


def test_a_buffer_that_is_away_brings_nobody_into_quarantine() -> None:
    watch = Supervisor(starter(fails=BufferUnavailable("Redis is away")), 1)
    watch.start()
    until(lambda: watch.totals().restarts > module.MAX_DEATHS + 1)
    assert watch.failure() is None
    (described,) = watch.describe()
    assert (described["deaths"], described["reason"]) == (0, None)
    watch.stop()


def test_an_actor_that_has_no_room_is_started_when_there_is_some() -> None:
    room: list[int] = []
    start = starter()
    watch = Supervisor(lambda number: start(number) if room else None, 1)
    watch.start()
    until(lambda: [each["state"] for each in watch.describe()] == ["waiting for resources"])
    assert (watch.complete(), watch.homeless()) == (False, 1)
    room.append(1)
    until(lambda: [each["state"] for each in watch.describe()] == ["running"])
    assert (watch.complete(), watch.homeless()) == (True, 0)
    assert watch.totals().restarts == 0
    watch.stop()


def test_an_actor_whose_room_is_needed_goes_and_comes_back() -> None:
    needed: list[int] = []
    start = starter()
    watch = Supervisor(
        lambda number: None if number in needed else start(number),
        2,
        stays=lambda number: number not in needed,
    )
    watch.start()
    until(lambda: len(watch.statuses()) == 2)
    needed.append(1)
    until(
        lambda: [each["state"] for each in watch.describe()] == ["running", "waiting for resources"]
    )
    needed.clear()
    until(lambda: [each["state"] for each in watch.describe()] == ["running"] * 2)
    watch.stop()


def test_what_has_not_begun_can_be_stopped() -> None:
    assert Supervisor(starter(), 1).stop() == 0


def test_an_actor_that_does_not_start_is_not_waited_for() -> None:
    watch = Supervisor(starter(cpus=1000), 2)
    watch.start()
    until(lambda: all(seat.actor for seat in watch._seats.values()))
    assert [each["state"] for each in watch.describe()] == ["starting"] * 2
    watch.scale(1)
    until(lambda: len(watch.describe()) == 1, seconds=10)
    begun = time.monotonic()
    watch.stop(grace_seconds=60)
    assert time.monotonic() - begun < 30
