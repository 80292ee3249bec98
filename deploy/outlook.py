"""What a run is doing, for whoever watches it: its phase, how fast it goes, who waits for whom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from buffer.errors import SsdkdError
from deploy.rates import Mark, Marks, Seconds, per_second, seconds_left, starved, waiting_share

if TYPE_CHECKING:
    from buffer.interface import BufferInfo, Replay
    from buffer.progress import StudentProgress

WINDOW_SECONDS = 10.0
"""Rates and shares of waiting are of the last so many seconds."""
LEFT_SECONDS = 60.0
"""The same of what the time that is left is estimated from."""


class Totals(Protocol):
    """What all synthesizers did."""

    @property
    def busy_seconds(self) -> float: ...  # noqa: D102
    @property
    def waiting_seconds(self) -> float: ...  # noqa: D102


class Synthesizers(Protocol):
    """What is asked of whoever keeps the synthesizers alive."""

    @property
    def wanted(self) -> int:
        """How many there should be."""

    def describe(self) -> list[dict[str, Any]]:
        """What each is doing."""

    def statuses(self) -> list[dict[str, Any]]:
        """What each has said last."""

    def totals(self) -> Totals:
        """What all did so far."""


@dataclass(frozen=True)
class State:
    """A run at one moment. Shares are in [0, 1]; what is not known is ``None``."""

    phase: str = "checking"
    """``checking`` (the configuration), ``preparing the teacher``, ``starting``, ``preparing``
    (what the method learns before its first image), ``filling``, ``distilling``, ``evaluating``,
    ``ending``, ``saving``, or ``waiting for the buffer``."""
    elapsed_seconds: float = 0.0
    """Since the command began."""
    elapsed_share: float = 0.0
    """Of the budget."""
    seconds_left: float | None = None
    """Until the budget is spent, by the speed of the last minute; evaluation comes on top."""
    prepared_share: float | None = None
    """How far the method's preparation is, while that is the phase."""
    size: int = 0
    """Samples in the buffer."""
    size_needed: int = 0
    """Before the first draw."""
    step: int = 0
    """Of the student."""
    inverted: int = 0
    """Samples ever inserted into the buffer."""
    drawn: int = 0
    """Draws that the buffer has answered."""
    inverted_per_second: float | None = None
    """Over the last ten seconds, like all that follows but for the last two."""
    drawn_per_second: float | None = None
    synthesizer_idle_share: float | None = None
    """Of the synthesizers' time: waiting to insert."""
    distiller_idle_share: float | None = None
    """Of the distillers' time: waiting for samples."""
    waiting: str | None = None
    """``synthesizers`` or ``distillers`` if that side waits much, and much longer."""
    agreement: float | None = None
    """Of student and teacher on drawn samples, as last reported."""
    kl: float | None = None
    """KL(teacher || student) on drawn samples in nats, likewise."""
    synthesizers: int = 0
    """At work."""
    synthesizers_wanted: int = 0

    def halted(self, phase: str) -> State:
        """The same in another phase, in which nobody works on it."""
        return replace(
            self,
            phase=phase,
            seconds_left=None,
            inverted_per_second=None,
            drawn_per_second=None,
            synthesizer_idle_share=None,
            distiller_idle_share=None,
            waiting=None,
        )


class Outlook:
    """Looks at a run, and remembers enough to tell its speed.

    Args:
        replay: its buffer.
        synthesizers: see :class:`Synthesizers`.
        minimum: samples that the buffer needs before the first draw.
        clock: seconds.
    """

    def __init__(
        self,
        replay: Replay,
        synthesizers: Synthesizers,
        minimum: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replay, self._synthesizers, self._minimum = replay, synthesizers, minimum
        self._clock = clock
        self._marks = Marks(LEFT_SECONDS)
        self._last = State()

    def look(self) -> State:
        """The run now; ``elapsed_seconds`` is left to the caller."""
        try:
            info, progress = self._replay.info(), self._replay.progress()
        except SsdkdError:
            return replace(self._last, phase="waiting for the buffer")
        totals = self._synthesizers.totals()
        share, busy, waiting = (
            (0.0, 0.0, 0.0)
            if progress is None
            else (progress.elapsed_share, progress.busy_seconds, progress.waiting_seconds)
        )
        self._marks.add(
            Mark(
                at=self._clock(),
                inverted=info.inserted,
                drawn=info.sampled,
                elapsed_share=share,
                synthesizers=Seconds(totals.busy_seconds, totals.waiting_seconds),
                distillers=Seconds(busy, waiting),
            )
        )
        self._last = replace(self._now(info, progress), **self._speed())
        return self._last

    def _now(self, info: BufferInfo, progress: StudentProgress | None) -> State:
        prepared = [status["prepared_share"] for status in self._synthesizers.statuses()]
        seats = self._synthesizers.describe()
        phase = phase_of(progress, prepared, info.inserted)
        trained = progress is not None and progress.phase != "filling"
        return State(
            phase=phase,
            elapsed_share=0.0 if progress is None else progress.elapsed_share,
            prepared_share=sum(prepared) / len(prepared) if phase == "preparing" else None,
            size=info.size,
            size_needed=self._minimum,
            step=0 if progress is None else progress.version.step,
            inverted=info.inserted,
            drawn=info.sampled,
            agreement=progress.agreement if progress and trained else None,
            kl=progress.kl_mean if progress and trained else None,
            synthesizers=sum(seat["state"] == "running" for seat in seats),
            synthesizers_wanted=self._synthesizers.wanted,
        )

    def _speed(self) -> dict[str, Any]:
        before, now = self._marks.over(WINDOW_SECONDS)
        synthesizers = waiting_share(before.synthesizers, now.synthesizers)
        distillers = waiting_share(before.distillers, now.distillers)
        return {
            "inverted_per_second": per_second(now.inverted - before.inverted, before, now),
            "drawn_per_second": per_second(now.drawn - before.drawn, before, now),
            "synthesizer_idle_share": synthesizers,
            "distiller_idle_share": distillers,
            "waiting": starved(synthesizers, distillers),
            "seconds_left": seconds_left(*self._marks.over(LEFT_SECONDS)),
        }


def phase_of(progress: StudentProgress | None, prepared: list[float], inserted: int) -> str:
    """What a run is doing.

    Args:
        progress: as the distiller has published it last.
        prepared: how far the preparation of each synthesizer at work is, in [0, 1].
        inserted: samples ever inserted, which is known sooner.
    """
    if progress is not None and progress.phase == "finished":
        return "ending"
    if progress is not None and progress.phase == "distilling":
        return "distilling" if progress.elapsed_share < 1.0 else "evaluating"
    if not prepared:
        return "starting"
    return "filling" if inserted or max(prepared) >= 1.0 else "preparing"
