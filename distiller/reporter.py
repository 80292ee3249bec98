"""What rank 0 does by the clock: publishes the student, measures it on probes and on test data."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from buffer.errors import BufferUnavailable
from buffer.interface import Replay
from buffer.models import to_bytes
from buffer.progress import StudentProgress
from buffer.sample import Batch
from buffer.version import Version
from distiller.config import DistillerFile
from distiller.evaluation import EvaluationSet
from distiller.interval import Interval
from distiller.journal import Journal
from distiller.metrics import DistillerMetrics
from distiller.pair import Pair
from distiller.probe import ProbeMeter
from distiller.step import StepResult
from distiller.tally import Budget, Tally

MOST_PROBE_MEMBERS = 512
RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Reporter:
    """Rank 0's duties beside training.

    A buffer that is away ends no training: what it cannot be told is left to the next appointment.
    Only the end is insisted on, since no appointment follows it.

    Args:
        config: intervals, probe set and test data.
        replay: where student and progress are published.
        pair: the networks; the average of the student is what is measured and published.
        tally: what is reported; the accuracy curve is added to it.
        budget: of the run; evaluation is taken out of it.
        attempt: of every version that is published.
        device: where the networks are.
        journal: file for one line per report and evaluation; ``None`` writes nothing.
        metrics: are told what rank 0 alone knows.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: DistillerFile,
        replay: Replay,
        pair: Pair,
        *,
        tally: Tally,
        budget: Budget,
        attempt: int,
        device: torch.device,
        journal: Path | None = None,
        metrics: DistillerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._evaluation = config.distiller, config.evaluation
        self._replay, self._device = replay, device
        self._teacher, self._student = pair.teacher, pair.average.model
        self._tally, self._budget, self._attempt = tally, budget, attempt
        self._metrics, self._clock = metrics, clock
        self._journal = None if journal is None else Journal(journal)
        self._interval = Interval()
        self._rate = 0.0
        self._params_version: Version | None = None
        self._publish_at = clock()
        self._published_step: int | None = None
        self._evaluate_at = 0.0
        self._test = (
            None
            if config.evaluation.data is None
            else EvaluationSet.load(config.evaluation, config.teacher)
        )
        self._probe = ProbeMeter(
            replay,
            self._student,
            members=min(MOST_PROBE_MEMBERS, config.buffer.probe_capacity),
            interval_seconds=config.distiller.probe_seconds,
            device=device,
        )

    def begin(self) -> None:
        """Plans the next evaluation; called when the budget has begun."""
        self._evaluate_at = self._next_evaluation()

    def note(self, batch: Batch, result: StepResult, *, learning_rate: float) -> None:
        """Takes one step into the next report."""
        self._interval.add(batch, result)
        self._rate = learning_rate
        self._metrics.learning_rate.set(learning_rate)
        self._params_version = batch.params_version

    def note_first_step(self) -> None:
        """Records when the first student step was, and what the buffer had been given by then.

        The second stays unknown if the buffer is away just then.
        """
        self._tally.first_step_at_seconds = self._budget.elapsed_seconds
        with _tolerance("the samples inserted before the first step were not counted"):
            self._tally.inserted_at_first_step = self._replay.info().inserted

    def keep_appointments(self) -> None:
        """Does whatever is due."""
        if self._params_version is not None:
            now = self._budget.elapsed_seconds
            with _tolerance("no probe samples could be fetched"):
                self._probe.update(self._params_version, now_seconds=now)
        if self._clock() >= self._publish_at:
            self.publish()
        if self._test is not None and self._evaluate_at <= self._budget.share < 1.0:
            with self._budget.excluded():
                accuracy = self._test.accuracy(self._student, device=self._device)
            self._add_to_curve(accuracy)
            self._evaluate_at = self._next_evaluation()

    def publish(self) -> None:
        """Publishes progress, and the student's weights if they are new."""
        progress = self._progress(finished=False)
        with _tolerance("the student was not published"):
            self._send(progress)
        self._write(progress)
        self._publish_at = self._clock() + self._table.snapshot_seconds

    def finish(self) -> dict[str, Any]:
        """Measures teacher and student, publishes that the training has ended.

        Returns:
            ``teacher_accuracy``, ``student_accuracy``, ``agreement`` and ``loyalty`` in percent
            (``None`` without test data), and the numbers of the tally.

        Raises:
            BufferUnavailable: the buffer stayed away for ``distiller.max_waiting_seconds``.
        """
        scores: dict[str, float | None] = dict.fromkeys(
            ("teacher_accuracy", "student_accuracy", "agreement", "loyalty")
        )
        progress = self._progress(finished=True)
        if self._test is not None:
            with _tolerance("that the test data is looked at was not published"):
                self._replay.publish_progress(progress.model_copy(update={"phase": "distilling"}))
            with self._budget.excluded():
                compared = self._test.compare(self._teacher, self._student, device=self._device)
            scores.update(compared)
            self._add_to_curve(compared["student_accuracy"])
        # The means are of the training's last interval, whatever was measured since.
        seconds = self._tally.evaluation_seconds
        progress = progress.model_copy(update={"evaluation_seconds": seconds})
        self._insist(progress)
        self._write(progress)
        return {**scores, **self._tally.as_metrics()}

    def _send(self, progress: StudentProgress) -> None:
        if progress.version.step != self._published_step:
            self._replay.publish_student(to_bytes(self._student), version=progress.version)
            self._published_step = progress.version.step
        self._replay.publish_progress(progress)

    def _insist(self, progress: StudentProgress) -> None:
        patience = self._table.max_waiting_seconds
        deadline = self._clock() + patience
        while True:
            try:
                self._send(progress)
                return
            except BufferUnavailable as error:
                if self._clock() >= deadline:
                    raise BufferUnavailable(
                        f"max_waiting_seconds ({patience:g}): the trained student could not be "
                        f"published for so long: {error}"
                    ) from error
                logger.warning("the trained student is not published yet: %s", error)
            time.sleep(RETRY_SECONDS)

    def _write(self, progress: StudentProgress) -> None:
        if self._journal is not None:
            self._journal.write(progress, learning_rate=self._rate)

    def _add_to_curve(self, accuracy: float) -> None:
        tally = self._tally
        point = [tally.step, tally.elapsed_seconds, self._budget.share, accuracy]
        tally.curve.append(point)
        self._metrics.accuracy.set(accuracy / 100.0)
        if self._journal is not None:
            self._journal.write_evaluation(Version(self._attempt, tally.step), point)

    def _next_evaluation(self) -> float:
        every = self._evaluation.every_share
        return (int(self._budget.share / every) + 1) * every

    def _progress(self, *, finished: bool) -> StudentProgress:
        """The state of the training; begins a new interval of its means."""
        tally = self._tally
        training = "filling" if tally.step == 0 else "distilling"
        elapsed = tally.elapsed_seconds if finished else self._budget.elapsed_seconds
        return StudentProgress.model_validate(
            {
                "version": Version(self._attempt, tally.step),
                "phase": "finished" if finished else training,
                "elapsed_share": self._budget.share,
                "elapsed_seconds": elapsed,
                "evaluation_seconds": tally.evaluation_seconds,
                "first_step_at_seconds": tally.first_step_at_seconds,
                "inserted_at_first_step": tally.inserted_at_first_step,
                "samples_drawn": tally.samples_drawn,
                "busy_seconds": tally.busy_seconds,
                "waiting_seconds": tally.waiting_seconds,
                "probe": self._probe.report,
                **self._interval.summarise(),
            }
        )


@contextmanager
def _tolerance(consequence: str) -> Iterator[None]:
    """Turns the absence of the buffer into a warning."""
    try:
        yield
    except BufferUnavailable as error:
        logger.warning("%s, the buffer is away: %s", consequence, error)
