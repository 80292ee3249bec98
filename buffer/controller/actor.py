"""The controller: observes the run, decides, sets parameters. A plain class, stepped without Ray.

Each decision gives the parameters in force a new version, also one that keeps all values: the
distiller measures the probe set before and after each version, so without a new one the next reward
would be that of two intervals. For the same reason the policy ``fixed`` renews the version, never a
value: its log then holds rewards that can be compared with those of the others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from buffer.controller.arms import choose, in_force
from buffer.controller.config import ControllerFile, settings
from buffer.controller.journal import Journal
from buffer.controller.metrics import ControllerMetrics
from buffer.controller.policy import build, observe, reward
from buffer.errors import BufferUnavailable
from buffer.interface import Replay
from buffer.params import SamplingParams, start_params
from buffer.progress import ProbeReport, StudentProgress
from buffer.version import Version

logger = logging.getLogger(__name__)

POLLS_PER_INTERVAL = 20
LONGEST_POLL_SECONDS = 1.0


class NoReward(Exception):
    """What the parameters in force earned is not known."""


@dataclass(frozen=True)
class Decision:
    """What one step decided."""

    arm: str
    params: SamplingParams
    """In force from now on."""
    reward: float
    """What the parameters before them earned, per second."""


class Controller:
    """Sets the sampling parameters, one decision per interval.

    :meth:`status` and :meth:`stop` may be called from other threads.

    Args:
        config: the run, validated.
        replay: the buffer whose parameters are set.
        journal: file of decisions and rewards; a restarted controller goes on from it.
        metrics: defaults to metrics on a registry of its own.
        clock: seconds; the interval is measured with it.
    """

    def __init__(
        self,
        config: ControllerFile,
        replay: Replay,
        *,
        journal: Path | None = None,
        metrics: ControllerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._replay, self._clock = config, replay, clock
        self._settings = settings(config.controller)
        self._metrics = metrics or ControllerMetrics(CollectorRegistry())
        self._journal = Journal(journal)
        self._stopping = threading.Event()
        self._interval_began = self._reminded = clock()
        self._decisions = 0
        self._reward: float | None = None
        self._reason: str | None = "the student does not train yet"
        self._pending: SamplingParams | None = None
        self._earlier_end = _end(replay.progress())
        self._attempt = replay.begin_attempt("controller")
        self._take_over(replay.params())

    def run(self) -> None:
        """Steps until :meth:`stop`, the end of the training, or a newer controller."""
        interval = self._config.controller.interval_seconds
        poll = min(interval / POLLS_PER_INTERVAL, LONGEST_POLL_SECONDS)
        reachable = True
        while not self._stopping.wait(poll):
            try:
                self.step()
                reachable = True
            except BufferUnavailable as error:
                if reachable:
                    logger.warning("no decisions until the buffer is back: %s", error)
                reachable = False

    def stop(self) -> None:
        """Ends :meth:`run`."""
        self._stopping.set()

    def status(self) -> dict[str, Any]:
        """What was decided last; ``reason`` says why the present arm is kept, if it is."""
        return {
            "policy": self._config.controller.policy,
            "attempt": self._attempt,
            "decisions": self._decisions,
            "arm": None if self._arm is None else self._arms[self._arm].name,
            "reward": self._reward,
            "reason": self._reason,
        }

    def step(self) -> Decision | None:
        """Looks at the buffer; decides if the interval has passed and its reward is known.

        Raises:
            BufferUnavailable: the buffer cannot be reached; stepping again later is safe.
        """
        if self._pending is not None:
            self._publish(self._pending)
        progress = self._replay.progress()
        if _end(progress) not in (None, self._earlier_end):
            self.stop()
        if progress is None or progress.phase != "distilling":
            self._interval_began = self._clock()
            return None
        if self._clock() < self._interval_began + self._config.controller.interval_seconds:
            return None
        params = self._replay.params()
        if params.version.attempt > self._attempt:
            self._give_way(params.version)
            return None
        try:
            report = usable(progress.probe, params.version)
        except NoReward as reason:
            self._keep(str(reason))
            return None
        with self._metrics.decision_seconds.time():
            return self._decide(progress, report)

    def _take_over(self, params: SamplingParams) -> None:
        """Goes on from the parameters in force, and from what was learned if that is known."""
        table, policy = self._config.buffer, self._config.controller.policy
        point = self._journal.resume_point(params, policy=policy)
        self._start = params if policy == "fixed" else start_params(table)
        self._arms = choose(self._settings, self._start, uniform=table.selector == "uniform")
        self._arm = in_force(self._arms, self._start, params)
        generator = np.random.default_rng([self._config.run.seed, self._attempt])
        self._policy = build(self._settings, arms=len(self._arms), generator=generator)
        named = {arm.name: dict(arm.changes) for arm in self._arms}
        interval = self._config.controller.interval_seconds
        self._metrics.begin(named, interval_seconds=interval)
        resumed = point is not None and point.arms == named
        if point is not None and resumed:
            self._policy.load_state_dict(point.state)
        self._journal.write(
            "start",
            attempt=self._attempt,
            policy=policy,
            resumed=resumed,
            params=self._start.model_dump(mode="json"),
            arms=named,
        )

    def _decide(self, progress: StudentProgress, report: ProbeReport) -> Decision:
        observation = observe(self._replay.info(), progress, classes=self._config.teacher.classes)
        earned = reward(report, self._settings.reward)
        known = None if self._arm is None else earned
        self._arm = self._policy.decide(observation, self._arm or 0, known)
        arm = self._arms[self._arm]
        self._decisions += 1
        params = arm.applied(self._start, Version(self._attempt, self._decisions))
        decision = Decision(arm.name, params, earned)
        self._note(decision, report, asdict(observation))
        self._publish(params)
        return decision

    def _note(self, decision: Decision, report: ProbeReport, observation: dict[str, Any]) -> None:
        """Writes a decision down, before it acts: a successor must find what it finds in force."""
        self._reward, self._reason, self._interval_began = decision.reward, None, self._clock()
        self._metrics.observe_decision(decision.arm, reward=decision.reward)
        self._journal.write(
            "decision",
            arm=decision.arm,
            params=decision.params.model_dump(mode="json"),
            reward=decision.reward,
            report=report.model_dump(mode="json"),
            observation=observation,
            state=self._policy.state_dict(),
        )
        logger.info("reward %.3g per second, next arm %s", decision.reward, decision.arm)

    def _publish(self, params: SamplingParams) -> None:
        """Puts a decision in force. Repeated by the next step if the answer is lost."""
        self._pending = params
        accepted = self._replay.set_params(params)
        newest = params.version if accepted else self._replay.params().version
        self._pending = None
        if newest != params.version:
            self._give_way(newest)

    def _give_way(self, newest: Version) -> None:
        self._reason = f"a newer controller (attempt {newest.attempt}) has taken over"
        logger.warning("%s: this one (attempt %d) ends", self._reason, self._attempt)
        self.stop()

    def _keep(self, reason: str) -> None:
        """Keeps the present arm; says so for each whole interval that this lasts."""
        self._reason = reason
        interval, now = self._config.controller.interval_seconds, self._clock()
        if now >= max(self._interval_began + interval, self._reminded) + interval:
            self._reminded = now
            self._journal.write("kept", reason=reason)
            logger.warning("no decision, the present parameters stay: %s", reason)


def usable(report: ProbeReport | None, version: Version) -> ProbeReport:
    """The report, if it is of the parameters in force and can be turned into a reward.

    Raises:
        NoReward: saying why not.
    """
    if report is None:
        raise NoReward("no probe report: the probe set is off, empty or not measured yet")
    if report.params_version != version:
        raise NoReward(
            f"the newest probe report is of the parameters {tuple(report.params_version)}, "
            f"not of {tuple(version)}, which are in force"
        )
    if report.seconds <= 0:
        raise NoReward(f"the probe report spans {report.seconds:g} s: a rate needs time")
    if not (math.isfinite(report.before_kl) and math.isfinite(report.after_kl)):
        raise NoReward(
            f"the probe's KL went from {report.before_kl:g} to {report.after_kl:g}: "
            "the student diverged"
        )
    return report


def _end(progress: StudentProgress | None) -> Version | None:
    """When the training ended, if it has."""
    finished = progress is not None and progress.phase == "finished"
    return progress.version if progress is not None and finished else None
