"""Keeps the wanted number of synthesizer actors alive.

A synthesizer that dies is started again under the same name, after a pause that doubles with each
death, because what killed it may do so again. One that keeps dying is put in quarantine until
somebody has it tried again; a buffer that was away for too long brings nobody there: how long it
may be away is the training's to say. One that is not wanted any more drains: it finishes its round,
or gives its permit back. The buffer makes all this safe: a half-finished insert of a dead process
is never seen, and its successor inserts under a new epoch.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from buffer.errors import BufferUnavailable
from buffer.logs import brief
from deploy.seat import Seat

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
MAX_DEATHS = 8
"""Deaths of one actor, without five healthy minutes between them, before its quarantine."""
HEALTHY_SECONDS = 300.0
STATUS_SECONDS = 2.0
ROOM_SECONDS = 0.5
"""Between two looks whether there is room for an actor."""
DRAIN_SECONDS = 60.0
"""An actor that is not wanted any more may take so long for the round in hand."""


@dataclass(frozen=True)
class Totals:
    """What all synthesizers did, those that died included up to their last status."""

    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0
    rounds: int = 0
    restarts: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.busy_seconds + other.busy_seconds,
            self.waiting_seconds + other.waiting_seconds,
            self.rounds + other.rounds,
            self.restarts + other.restarts,
        )


class Actor(Protocol):
    """What the supervisor calls on an actor handle."""

    run: Any
    status: Any
    stop: Any


class Supervisor:
    """Starts actors and watches them from a background thread.

    Args:
        start: creates the actor of a seat's number; ``None`` as long as there is no room for it.
        wanted: how many, until :meth:`scale` says otherwise.
        stays: whether there still is room for the actor of a number.
        leave: frees what is reserved for the actor of a number that is not wanted any more.
    """

    def __init__(
        self,
        start: Callable[[int], Actor | None],
        wanted: int,
        *,
        stays: Callable[[int], bool] = lambda number: True,
        leave: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._start, self._stays, self._leave = start, stays, leave
        self._lock = threading.Lock()
        self._wanted = wanted
        self._seats: dict[int, Seat] = {number: Seat() for number in range(wanted)}
        self._past: list[dict[str, Any]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._restarts = 0

    def start(self) -> None:
        """Starts all actors and the watch."""
        self._thread.start()

    @property
    def wanted(self) -> int:
        """How many actors there should be."""
        return self._wanted

    def scale(self, wanted: int) -> None:
        """Asks for another number of actors; those with the highest numbers leave, after draining.

        Those in quarantine stay there.
        """
        with self._lock:
            if wanted != self._wanted:
                logger.info("synthesizers: %d wanted, %d so far", wanted, self._wanted)
            self._wanted = wanted

    def release(self) -> None:
        """Has actors in quarantine tried again."""
        with self._lock:
            for seat in self._seats.values():
                if seat.quarantine is not None:
                    seat.quarantine, seat.deaths, seat.restart_at = None, 0, 0.0

    def stop(self, *, grace_seconds: float = 30.0) -> int:
        """Lets each actor finish its round, up to a grace period, then ends it.

        Returns:
            How many actors ended by themselves.
        """
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        sitting = {n: seat for n, seat in self._seats.items() if seat.actor is not None}
        for seat in sitting.values():
            seat.actor.stop.remote()
        runs = [seat.run for seat in sitting.values() if seat.status]
        ended = ray.wait(runs, num_returns=len(runs), timeout=grace_seconds)[0] if runs else []
        self._refresh_statuses()
        for seat in sitting.values():
            ray.kill(seat.actor)
        for number in self._seats:
            self._leave(number)
        return len(ended)

    def failure(self) -> BaseException | None:
        """Why no actor is left, if all are in quarantine; ``None`` while any may live."""
        with self._lock:
            reasons = [seat.quarantine for seat in self._seats.values()]
        return reasons[-1] if reasons and all(reasons) else None

    def complete(self) -> bool:
        """Whether all who are wanted are at work, but for those in quarantine."""
        with self._lock:
            seats = [self._seats.get(number) for number in range(self._wanted)]
        return all(seat and (seat.status or seat.quarantine) for seat in seats)

    def homeless(self) -> int:
        """How many of those who are wanted have no room."""
        with self._lock:
            return sum(seat.homeless for n, seat in self._seats.items() if n < self._wanted)

    def statuses(self) -> list[dict[str, Any]]:
        """The last status of each actor that lives and has given one."""
        with self._lock:
            return [s.status for s in self._seats.values() if s.actor is not None and s.status]

    def describe(self) -> list[dict[str, Any]]:
        """What each actor is doing, as plain data."""
        with self._lock:
            return [seat.describe(number) for number, seat in sorted(self._seats.items())]

    def totals(self) -> Totals:
        """Sums over all actors that ever sat."""
        with self._lock:
            statuses = [*self._past, *(seat.status for seat in self._seats.values() if seat.status)]
        return Totals(
            busy_seconds=sum(s["busy_seconds"] for s in statuses),
            waiting_seconds=sum(s["waiting_seconds"] for s in statuses),
            rounds=sum(s["rounds"] for s in statuses),
            restarts=self._restarts,
        )

    def _watch(self) -> None:
        polled = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            with self._lock:
                self._seat_the_wanted(now)
                for number, seat in list(self._seats.items()):
                    if seat.restart_at is not None and now >= seat.restart_at:
                        self._launch(number, seat)
                    elif seat.actor is not None and self._stays(number):
                        self._check(number, seat)
                    elif seat.actor is not None:
                        self._evict(number, seat)
            if now - polled > STATUS_SECONDS:
                polled = now
                self._refresh_statuses()
            self._stopping.wait(0.2)

    def _seat_the_wanted(self, now: float) -> None:
        """Adds seats that are missing; has those that are too many drain."""
        for number in range(self._wanted):
            self._seats.setdefault(number, Seat())
        for number, seat in list(self._seats.items()):
            if seat.drained_by is not None:  # whether or not it is wanted again by now
                if now > seat.drained_by:
                    logger.warning(
                        "synthesizer %d did not drain in time: its round is lost", number
                    )
                    self._vacate(number)
            elif number < self._wanted:
                continue
            elif seat.actor is None or not seat.status:  # it has nothing in hand
                self._vacate(number)
            else:
                seat.drained_by = now + DRAIN_SECONDS
                seat.actor.stop.remote()

    def _vacate(self, number: int) -> None:
        seat = self._seats.pop(number)
        if seat.status:
            self._past.append(seat.status)
        if seat.actor is not None:
            ray.kill(seat.actor)
        self._leave(number)

    def _evict(self, number: int, seat: Seat) -> None:
        logger.warning("synthesizer %d makes room for the training", number)
        self._vacate(number)
        self._seats[number] = Seat(homeless=True, deaths=seat.deaths)

    def _launch(self, number: int, seat: Seat) -> None:
        again, now = seat.started > 0.0, time.monotonic()
        try:
            seat.actor = self._start(number)
            seat.homeless = seat.actor is None
            if seat.homeless:
                seat.restart_at = now + ROOM_SECONDS
                return
            seat.run = seat.actor.run.remote()
        except Exception as error:  # a name still taken, a cluster going down: a death like others
            seat.started = now
            self._bury(number, seat, error)
            return
        seat.started, seat.restart_at = now, None
        self._restarts += again

    def _check(self, number: int, seat: Seat) -> None:
        done, _ = ray.wait([seat.run], timeout=0)
        if not done:
            return
        if seat.drained_by is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                seat.status = ray.get(seat.actor.status.remote(), timeout=STATUS_SECONDS)
            self._vacate(number)
            return
        try:
            ray.get(seat.run)
            reason: Exception = RuntimeError(f"synthesizer {number} ended without being asked to")
        except ray.exceptions.RayError as error:
            reason = error
        self._bury(number, seat, reason)

    def _bury(self, number: int, seat: Seat, reason: Exception) -> None:
        if time.monotonic() - seat.started > HEALTHY_SECONDS:
            seat.deaths = 0
        seat.deaths += not isinstance(getattr(reason, "cause", None), BufferUnavailable)
        if seat.status:
            self._past.append(seat.status)
        seat.status = {}
        if seat.actor is not None:
            ray.kill(seat.actor)
        seat.actor = seat.run = None
        if seat.deaths > MAX_DEATHS:
            seat.quarantine = reason
            why = brief(reason)
            logger.error("synthesizer %d is in quarantine, it died again: %s", number, why)
            return
        pause = min(FIRST_PAUSE_SECONDS * 2 ** max(0, seat.deaths - 1), LONGEST_PAUSE_SECONDS)
        seat.restart_at = time.monotonic() + pause
        why = brief(reason)
        logger.warning("synthesizer %d died, starting it again in %g s: %s", number, pause, why)

    def _refresh_statuses(self) -> None:
        """Asks all actors at once. A busy, dying or dead one says nothing: its last words stand."""
        with self._lock:
            sitting = [seat for seat in self._seats.values() if seat.actor is not None]
            asked = {seat.actor.status.remote(): (seat, seat.actor) for seat in sitting}
        if not asked:
            return
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=STATUS_SECONDS)
        for answer in answered:
            seat, actor = asked[answer]
            with contextlib.suppress(ray.exceptions.RayError):
                status = ray.get(answer)
                with self._lock:
                    if seat.actor is actor:
                        seat.status = status
