"""What a training has done so far: the numbers that survive a crash with its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from buffer.config import RunTable
from buffer.progress import StudentProgress


@dataclass
class Tally:
    """Plain numbers only, so that a checkpoint can be read without running code."""

    step: int = 0
    """Student steps."""
    samples_drawn: int = 0
    """Samples trained on, over all workers."""
    busy_seconds: float = 0.0
    """In optimisation steps, summed over workers."""
    waiting_seconds: float = 0.0
    """Waiting for batches, summed over workers."""
    evaluation_seconds: float = 0.0
    """On test data; not part of the budget."""
    elapsed_seconds: float = 0.0
    """At the last student step, evaluation excluded."""
    first_share: float | None = None
    """Share of the budget that was spent at the first student step."""
    first_step_at_seconds: float | None = None
    """``elapsed_seconds`` at the first student step."""
    inserted_at_first_step: int | None = None
    """Samples inserted before the first student step."""
    curve: list[list[float]] = field(default_factory=list)
    """``[step, elapsed_seconds, elapsed_share, accuracy]`` of each evaluation; percent."""

    def as_dict(self) -> dict[str, Any]:
        """Numbers and lists by name."""
        return asdict(self)

    def as_metrics(self) -> dict[str, Any]:
        """The same as a training's result, under names that stand for themselves."""
        values = self.as_dict()
        del values["first_share"]
        return {"student_steps": values.pop("step"), **values}

    def update(self, values: Mapping[str, Any]) -> None:
        """Takes over what :meth:`as_dict` gave."""
        for known in fields(self):
            setattr(self, known.name, values[known.name])


class Origin(NamedTuple):
    """Where a training begins in the life of its buffer, which others may have used before."""

    seconds: float = 0.0
    """Age of the buffer when the training's clock began, by the server's clock: all attempts of one
    training count from it, on whatever node they run."""
    attempt: int = 0
    """Newest attempt that earlier trainings published: nothing of theirs is taken over."""


class Budget:
    """How much of a training's budget is spent.

    Args:
        run: its ``seconds`` or ``steps`` is the budget.
        tally: where steps and evaluation time are counted.
        clock: monotonic seconds.
    """

    def __init__(
        self, run: RunTable, tally: Tally, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._tally = tally
        self._clock = clock
        self._zero = clock()

    def begin(self, *, already_seconds: float) -> None:
        """Says how old the training is now; an earlier attempt's time counts, if it is longer."""
        spent = self._tally.elapsed_seconds + self._tally.evaluation_seconds
        self._zero = self._clock() - max(already_seconds, spent)

    def recall(self, previous: StudentProgress) -> None:
        """Takes from the last report what a crash lost because no checkpoint knew of it yet.

        Args:
            previous: of an earlier attempt of the same training.
        """
        tally, first_step_at = self._tally, previous.first_step_at_seconds
        tally.elapsed_seconds = max(tally.elapsed_seconds, previous.elapsed_seconds)
        tally.evaluation_seconds = max(tally.evaluation_seconds, previous.evaluation_seconds)
        if tally.first_share is None and first_step_at is not None:
            tally.first_share = self.share_at(first_step_at)
            tally.first_step_at_seconds = first_step_at
            tally.inserted_at_first_step = previous.inserted_at_first_step

    @property
    def elapsed_seconds(self) -> float:
        """Wall time spent, evaluation excluded."""
        return self._clock() - self._zero - self._tally.evaluation_seconds

    @property
    def share(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        if self._run.steps is not None:
            return min(1.0, self._tally.step / self._run.steps)
        assert self._run.seconds is not None
        return min(1.0, max(0.0, self.elapsed_seconds / self._run.seconds))

    def share_at(self, elapsed_seconds: float) -> float:
        """Share that the filling had spent if the first student step was at such a time."""
        return 0.0 if self._run.seconds is None else min(1.0, elapsed_seconds / self._run.seconds)

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """What happens within is evaluation: it does not spend the budget."""
        started = self._clock()
        try:
            yield
        finally:
            self._tally.evaluation_seconds += self._clock() - started
