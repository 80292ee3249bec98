import json
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from buffer.controller.actor import Controller, NoReward, usable
from buffer.controller.config import ControllerFile
from buffer.controller.metrics import ControllerMetrics
from buffer.errors import BufferUnavailable
from buffer.memory import InMemoryReplayBuffer
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.version import NEVER, Version

Configure = Callable[..., ControllerFile]
Progress = Callable[..., StudentProgress]


class Run:
    """A controller, its buffer, its clock, and a distiller that is played by the test."""

    def __init__(self, config: ControllerFile, progress: Progress, folder: Path) -> None:
        self.config, self._progress = config, progress
        self.replay = InMemoryReplayBuffer(config.buffer)
        self.journal = folder / "run" / "controller.jsonl"
        self.registry = CollectorRegistry()
        self.now = 0.0
        self._steps = 0
        self.controller = self.restart(self.registry)

    def restart(self, registry: CollectorRegistry | None = None) -> Controller:
        self.controller = Controller(
            self.config,
            self.replay,
            journal=self.journal,
            metrics=ControllerMetrics(registry or CollectorRegistry()),
            clock=lambda: self.now,
        )
        return self.controller

    def report(self, *, params: tuple[int, int] | None = None, **values: Any) -> None:
        """The distiller publishes its measurement of the parameters in force."""
        self._steps += 1
        params = params or self.replay.params().version
        self.replay.publish_progress(self._progress(self._steps, params=params, **values))

    def silent(self, **values: Any) -> None:
        """The distiller publishes progress without any probe report."""
        self._steps += 1
        self.replay.publish_progress(self._progress(self._steps, **values))

    def decide(self, count: int = 1, **values: Any) -> None:
        for _ in range(count):
            self.report(**values)
            self.now += self.config.controller.interval_seconds
            assert self.controller.step() is not None

    def records(self, event: str) -> list[dict[str, Any]]:
        lines = self.journal.read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]


@pytest.fixture
def make_run(configure: Configure, progress: Progress, tmp_path: Path) -> Callable[..., Run]:
    def make(**changes: dict[str, Any]) -> Run:
        run = Run(configure(**changes), progress, tmp_path)
        run.silent()
        run.controller.step()
        return run

    return make


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


def values(params: SamplingParams) -> SamplingParams:
    return params.model_copy(update={"version": NEVER})


def test_a_decision_puts_an_arm_in_force_under_a_newer_version(run: Run) -> None:
    run.report()
    run.now = 10.0
    decision = run.controller.step()
    assert decision is not None
    assert decision.params.version == Version(1, 1)
    assert run.replay.params() == decision.params
    assert decision.reward == pytest.approx(math.log(2) / 10, rel=1e-5)


def test_decisions_are_numbered(run: Run) -> None:
    run.decide(3)
    assert run.replay.params().version == Version(1, 3)
    assert run.controller.status()["decisions"] == 3


def test_nothing_is_decided_before_the_interval_has_passed(run: Run) -> None:
    run.report()
    run.now = 9.9
    assert run.controller.step() is None
    run.now = 10.0
    assert run.controller.step() is not None
    run.report()
    assert run.controller.step() is None


def test_the_interval_begins_when_the_student_begins_to_train(
    configure: Configure, progress: Progress, tmp_path: Path
) -> None:
    run = Run(configure(), progress, tmp_path)
    assert run.controller.step() is None
    run.now = 50.0
    run.silent(phase="filling")
    run.controller.step()
    run.report()
    run.now = 59.0
    assert run.controller.step() is None
    run.now = 60.0
    assert run.controller.step() is not None


def test_the_learner_prefers_the_arm_that_earns(make_run: Callable[..., Run]) -> None:
    arms = {"good": {"uniform_share": 0.5}, "bad": {"uniform_share": 1.0}}
    run = make_run(controller={"kwargs": {"arms": arms}})
    chosen = []
    for _ in range(60):
        good = run.replay.params().uniform_share == 0.5
        run.decide(after_kl=0.5 if good else 0.9)
        chosen.append(run.controller.status()["arm"])
    # The game is without noise: 20 decisions are plenty. Chance has a third.
    assert chosen[20:].count("good") > 30


def test_random_visits_every_arm(make_run: Callable[..., Run]) -> None:
    run = make_run(controller={"policy": "random"})
    run.decide(150)
    arms = {record["arm"] for record in run.records("decision")}
    assert arms == set(run.records("start")[0]["arms"])
    assert len(arms) == 7


def test_fixed_renews_the_version_and_never_changes_a_value(
    make_run: Callable[..., Run], start: SamplingParams
) -> None:
    run = make_run(controller={"policy": "fixed"})
    run.decide(5)
    assert run.replay.params().version == Version(1, 5)
    assert values(run.replay.params()) == start
    assert [record["reward"] for record in run.records("decision")] == [
        pytest.approx(math.log(2) / 10, rel=1e-5)
    ] * 5


def test_fixed_keeps_what_it_finds(make_run: Callable[..., Run]) -> None:
    run = make_run(controller={"policy": "fixed"})
    found = SamplingParams(uniform_share=0.75, version=Version(1, 1))
    run.replay.set_params(found)
    run.restart()
    run.decide()
    assert values(run.replay.params()) == values(found)


def test_a_report_of_older_parameters_is_no_reward(run: Run) -> None:
    run.decide()
    run.report(params=(0, 0))
    run.now += 10.0
    assert run.controller.step() is None
    assert "is of the parameters (0, 0), not of (1, 1)" in run.controller.status()["reason"]
    run.report()
    assert run.controller.step() is not None
    assert run.controller.status()["reason"] is None


def test_without_probe_reports_the_arm_is_kept_and_said_so_once_per_interval(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "buffer.controller"):
        for second in range(1, 41):
            run.now = float(second)
            run.silent()
            assert run.controller.step() is None
    # The first interval is due at 10 s; whole overdue intervals end at 20, 30 and 40 s.
    assert len(run.records("kept")) == 3
    assert caplog.text.count("the present parameters stay: no probe report") == 3
    assert run.replay.params().version == NEVER


def test_a_reward_that_is_only_late_is_waited_for_in_silence(run: Run) -> None:
    run.now = 15.0
    assert run.controller.step() is None
    run.report()
    assert run.controller.step() is not None
    assert run.records("kept") == []


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (None, "no probe report: the probe set is off, empty or not measured yet"),
        ({"params": (2, 1)}, r"parameters \(2, 1\), not of \(1, 1\), which are in force"),
        ({"seconds": 0.0}, "the probe report spans 0 s: a rate needs time"),
        ({"after_kl": math.nan}, "KL went from 1 to nan: the student diverged"),
        ({"before_kl": math.inf}, r"KL went from inf to 0\.5: the student diverged"),
    ],
)
def test_a_report_that_is_no_reward_says_why(
    progress: Progress, report: dict[str, Any] | None, message: str
) -> None:
    probe = None if report is None else progress(1, **{"params": (1, 1), **report}).probe
    with pytest.raises(NoReward, match=message):
        usable(probe, Version(1, 1))


def test_a_decision_is_written_down_with_all_that_led_to_it(run: Run) -> None:
    run.decide()
    (record,) = run.records("decision")
    assert record["params"] == run.replay.params().model_dump(mode="json")
    assert record["report"]["after_kl"] == 0.5
    assert record["observation"]["probe_agreement"] == 0.6
    assert sum(record["state"]["counts"]) == 1


def test_a_decision_is_counted(run: Run) -> None:
    run.decide(2)
    arms = run.records("start")[0]["arms"]
    name = "ssdkd_controller_decisions_total"
    counts = [run.registry.get_sample_value(name, {"arm": arm}) for arm in arms]
    assert None not in counts, "an arm that was never chosen counts too"
    assert sum(filter(None, counts)) == 2
    assert run.registry.get_sample_value("ssdkd_controller_decision_seconds_count") == 2
    took = run.registry.get_sample_value("ssdkd_controller_decision_seconds_sum")
    assert took is not None
    assert 0 < took < 60


def test_the_agreement_can_be_the_reward(make_run: Callable[..., Run]) -> None:
    run = make_run(controller={"policy": "fixed", "kwargs": {"reward": "agreement"}})
    run.decide()
    assert run.controller.status()["reward"] == pytest.approx(0.01)


def test_a_restarted_controller_goes_on_from_the_parameters_in_force(run: Run) -> None:
    run.decide(4)
    before, state = run.replay.params(), run.records("decision")[-1]["state"]
    arm = run.controller.status()["arm"]
    run.restart()
    assert run.replay.params() == before
    assert run.controller.status()["arm"] == arm
    assert run.records("start")[-1]["resumed"]
    run.decide()
    assert run.replay.params().version == Version(2, 1)
    learned = run.records("decision")[-1]["state"]["counts"]
    assert sum(learned) == pytest.approx(0.98 * sum(state["counts"]) + 1)


def test_a_restarted_controller_without_its_journal_recognises_the_arm(
    make_run: Callable[..., Run],
) -> None:
    arms = {"flat": {"uniform_share": 1 / 3}, "even": {"label_balance": 0.7}}
    run = make_run(controller={"policy": "random", "kwargs": {"arms": arms}})
    seen = set()
    for _ in range(20):
        run.decide()
        seen.add(arm := run.controller.status()["arm"])
        run.journal.unlink()
        assert run.restart().status()["arm"] == arm
    assert seen == {"start", "flat", "even"}


def test_arms_stay_changes_to_the_first_start_values(run: Run) -> None:
    for _ in range(20):
        run.decide()
        run.restart()
    starts = [record["params"] for record in run.records("start")]
    assert all(params == starts[0] for params in starts)


def test_parameters_of_no_arm_earn_nothing_for_an_arm(run: Run) -> None:
    run.replay.set_params(SamplingParams(uniform_share=0.123, version=Version(1, 1)))
    run.restart()
    assert run.controller.status()["arm"] is None
    run.decide()
    assert sum(run.records("decision")[-1]["state"]["counts"]) == 0


def test_what_another_policy_or_other_arms_learned_is_not_believed(
    run: Run, configure: Configure
) -> None:
    run.decide(3)
    kwargs = {"arms": {"flat": {"uniform_share": 0.9}}}
    run.config = configure(controller={"kwargs": kwargs})
    run.restart()
    assert not run.records("start")[-1]["resumed"]
    run.config = configure(controller={"policy": "random"})
    run.restart()
    assert not run.records("start")[-1]["resumed"]


def test_an_older_controller_gives_way_to_a_newer_one(run: Run) -> None:
    older = run.controller
    run.restart()
    run.decide()
    run.report()
    run.now += 10.0
    in_force = run.replay.params()
    assert older.step() is None
    assert "a newer controller (attempt 2) has taken over" in older.status()["reason"]
    assert run.replay.params() == in_force
    older.run()


class LosesAnswers(InMemoryReplayBuffer):
    """Each change of parameters arrives, its first answer does not."""

    lost = False

    def set_params(self, params: SamplingParams) -> bool:
        accepted = super().set_params(params)
        self.lost = not self.lost
        if self.lost:
            raise BufferUnavailable("connection reset")
        return accepted


def test_a_decision_whose_answer_was_lost_is_not_made_twice(run: Run) -> None:
    run.replay = LosesAnswers(run.config.buffer)
    run.restart()
    run.report()
    run.now += 10.0
    with pytest.raises(BufferUnavailable):
        run.controller.step()
    assert run.replay.params().version == Version(1, 1)
    run.report()
    assert run.controller.step() is None
    assert len(run.records("decision")) == 1
    assert run.controller.status()["decisions"] == 1
    run.now += 10.0
    with pytest.raises(BufferUnavailable):
        run.controller.step()
    assert run.replay.params().version == Version(1, 2)


class Away(InMemoryReplayBuffer):
    """Cannot be reached until told so."""

    away = False

    def progress(self) -> StudentProgress | None:
        if self.away:
            raise BufferUnavailable("connection refused")
        return super().progress()


def started(controller: Controller) -> threading.Thread:
    thread = threading.Thread(target=controller.run, daemon=True)
    thread.start()
    return thread


def test_the_loop_survives_a_buffer_that_is_away(
    configure: Configure, progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(controller={"interval_seconds": 0.02})
    replay = Away(config.buffer)
    controller = Controller(config, replay)
    replay.publish_progress(progress(1, params=(0, 0)))
    replay.away = True
    thread = started(controller)
    wait_until(lambda: "no decisions until the buffer is back" in caplog.text)
    replay.away = False
    wait_until(lambda: controller.status()["decisions"] > 0)
    controller.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert caplog.text.count("no decisions until") == 1


def test_the_loop_ends_with_the_training(configure: Configure, progress: Progress) -> None:
    config = configure(controller={"interval_seconds": 0.02})
    replay = InMemoryReplayBuffer(config.buffer)
    replay.publish_progress(progress(1, phase="finished"))
    controller = Controller(config, replay)
    thread = started(controller)
    # That end was of an earlier attempt: this loop goes on.
    thread.join(0.2)
    assert thread.is_alive()
    replay.publish_progress(progress(2, phase="finished"))
    thread.join(10)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("waited for 10 s")
