"""What the workers of one training settle together before each step.

Why all of it goes through one exchange: a rank that stops, saves, fails or weighs its samples on
its own leaves the others waiting in a collective, or lets the copies of the student drift apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from buffer.errors import (
    ConfigError,
    Diverged,
    Interrupted,
    ModelError,
    ProtocolMismatch,
    SsdkdError,
    Starved,
)
from distiller.ranks import Ranks

LASTING = (ConfigError, Diverged, Interrupted, ModelError, ProtocolMismatch, Starved)
"""Errors that starting again would not mend."""


class Standing(NamedTuple):
    """What a rank tells the others; numbers only. The first three count if they are rank 0's."""

    share: float
    """Share of the budget that is spent."""
    end: float
    """1 if the training was asked to end early."""
    save: float
    """1 if a checkpoint is due."""
    ready: float
    """1 if the rank has a batch."""
    weight_mean: float
    """Of the rank's batch; 0 without one."""
    busy_seconds: float
    """In optimisation steps, since the rank was started."""
    waiting_seconds: float
    """Waiting for batches, since the rank was started."""


class Orders(NamedTuple):
    """What all ranks do next; the same on each of them."""

    share: float
    """Share of the budget that is spent, by rank 0's clock."""
    save: bool
    """A checkpoint is due."""
    stop: bool
    """The budget is spent."""
    end: bool
    """The training was asked to end early."""
    ready: bool
    """Every rank has a batch."""
    weight_mean: float
    """What every rank divides its importance weights by: the mean over the ranks.

    Gradients are averaged over ranks, and batches that were drawn at different times come with
    different means: dividing each by its own would weigh the samples of one rank more."""
    busy_seconds: float
    """Summed over ranks."""
    waiting_seconds: float
    """Summed over ranks."""


class Agreement:
    """The exchange between the ranks, and the failure that the next one makes known.

    Args:
        ranks: this worker's place among the workers.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._failure: SsdkdError | None = None

    @contextmanager
    def failures_kept(self) -> Iterator[None]:
        """Keeps a lasting error for the next exchange, which raises it on every rank."""
        try:
            yield
        except LASTING as error:
            self._failure = self._failure or error

    def reach(self, own: Standing) -> Orders:
        """One exchange. All ranks must call it equally often.

        Args:
            own: this rank's standing.

        Raises:
            SsdkdError: one of :data:`LASTING`: that of the first rank that has failed.
        """
        rows = self._ranks.gather([*own, self._failure is not None])
        if any(row[-1] for row in rows):
            error = self._ranks.first_error(self._failure)
            assert error is not None
            raise error
        everyone = [Standing(*row[:-1]) for row in rows]
        lead = everyone[0]
        return Orders(
            share=lead.share,
            save=bool(lead.save),
            stop=lead.share >= 1.0,
            end=bool(lead.end),
            ready=all(one.ready for one in everyone),
            weight_mean=sum(one.weight_mean for one in everyone) / len(everyone),
            busy_seconds=sum(one.busy_seconds for one in everyone),
            waiting_seconds=sum(one.waiting_seconds for one in everyone),
        )
