"""Keeps the wanted number of synthesizer actors alive.

A synthesizer that dies is started again under the same name, after a pause that doubles with each
death, because what killed it may do so again. The buffer makes this safe: a half-finished insert of
the dead process is never seen, and its successor inserts under a new epoch.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
MAX_DEATHS = 8
"""Deaths of one actor, without five healthy minutes between them, before it is given up."""
HEALTHY_SECONDS = 300.0
STATUS_SECONDS = 2.0


@dataclass(frozen=True)
class Totals:
    """What all synthesizers did, those that died included up to their last status."""

    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0
    rounds: int = 0
    restarts: int = 0


@dataclass
class _Seat:
    """One wanted actor: whoever sits on it now, and what its predecessors did."""

    actor: Any = None
    run: Any = None
    started: float = 0.0
    deaths: int = 0
    restart_at: float | None = 0.0
    given_up: bool = False
    status: dict[str, Any] = field(default_factory=dict)
    past: list[dict[str, Any]] = field(default_factory=list)


class Actor(Protocol):
    """What the supervisor calls on an actor handle."""

    run: Any
    status: Any
    stop: Any


class Supervisor:
    """Starts actors and watches them from a background thread.

    Args:
        start: creates the actor of a seat's number.
        wanted: how many.
    """

    def __init__(self, start: Callable[[int], Actor], wanted: int) -> None:
        self._start = start
        self._seats = [_Seat() for _ in range(wanted)]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._failure: BaseException | None = None
        self._launched = 0

    def start(self) -> None:
        """Starts all actors and the watch."""
        self._thread.start()

    def stop(self, *, grace_seconds: float = 30.0) -> int:
        """Lets each actor finish its round, up to a grace period, then ends it.

        Returns:
            How many actors ended by themselves.
        """
        self._stopping.set()
        self._thread.join()
        sitting = [seat for seat in self._seats if seat.actor is not None]
        for seat in sitting:
            seat.actor.stop.remote()
        runs = [seat.run for seat in sitting]
        ended = ray.wait(runs, num_returns=len(runs), timeout=grace_seconds)[0] if runs else []
        self._refresh_statuses()
        for seat in sitting:
            ray.kill(seat.actor)
        return len(ended)

    def failure(self) -> BaseException | None:
        """Why no actor is left, if every one was given up; ``None`` while any is alive."""
        return self._failure if all(seat.given_up for seat in self._seats) else None

    def statuses(self) -> list[dict[str, Any]]:
        """The last status of each actor that lives and has given one."""
        return [s.status for s in self._seats if s.actor is not None and s.status]

    def totals(self) -> Totals:
        """Sums over all actors that ever sat."""
        statuses = [s for seat in self._seats for s in (*seat.past, seat.status) if s]
        return Totals(
            busy_seconds=sum(s["busy_seconds"] for s in statuses),
            waiting_seconds=sum(s["waiting_seconds"] for s in statuses),
            rounds=sum(s["rounds"] for s in statuses),
            restarts=max(0, self._launched - len(self._seats)),
        )

    def _watch(self) -> None:
        polled = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            for number, seat in enumerate(self._seats):
                if seat.restart_at is not None and now >= seat.restart_at:
                    self._launch(number, seat)
                elif seat.actor is not None:
                    self._check(number, seat)
            if now - polled > STATUS_SECONDS:
                polled = now
                self._refresh_statuses()
            self._stopping.wait(0.2)

    def _launch(self, number: int, seat: _Seat) -> None:
        seat.started, seat.restart_at = time.monotonic(), None
        try:
            seat.actor = self._start(number)
            seat.run = seat.actor.run.remote()
        except Exception as error:  # a name still taken, a cluster going down: a death like others
            self._bury(number, seat, error)
            return
        self._launched += 1

    def _check(self, number: int, seat: _Seat) -> None:
        done, _ = ray.wait([seat.run], timeout=0)
        if not done:
            return
        try:
            ray.get(seat.run)
            reason: Exception = RuntimeError(f"synthesizer {number} ended without being asked to")
        except ray.exceptions.RayError as error:
            reason = error
        self._bury(number, seat, reason)

    def _bury(self, number: int, seat: _Seat, reason: Exception) -> None:
        if time.monotonic() - seat.started > HEALTHY_SECONDS:
            seat.deaths = 0
        seat.deaths += 1
        seat.past.append(seat.status)
        seat.status = {}
        if seat.actor is not None:
            ray.kill(seat.actor)
        seat.actor = seat.run = None
        if seat.deaths > MAX_DEATHS:
            self._failure, seat.given_up = reason, True
            logger.error("synthesizer %d given up after %d deaths: %s", number, MAX_DEATHS, reason)
            return
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (seat.deaths - 1), LONGEST_PAUSE_SECONDS)
        seat.restart_at = time.monotonic() + pause
        logger.warning("synthesizer %d died, starting it again in %g s: %s", number, pause, reason)

    def _refresh_statuses(self) -> None:
        """Asks all actors at once. A busy, dying or dead one says nothing: its last words stand."""
        asked = {s.actor.status.remote(): s for s in self._seats if s.actor is not None}
        if not asked:
            return
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=STATUS_SECONDS)
        for answer in answered:
            with contextlib.suppress(ray.exceptions.RayError):
                asked[answer].status = ray.get(answer)
