"""The Lua scripts as typed methods: a file in ``lua/`` and a method for each atomic operation."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from buffer.answers import (
    DRAW,
    GROUP,
    LABEL,
    PAIR,
    RECORD,
    Drawn,
    Dumped,
    Insert,
    Masses,
    Misfit,
    Picture,
    Purpose,
    Refused,
    Reserved,
    Slots,
)
from buffer.batches import DEFAULT_ERROR_BUFFER
from buffer.connection import Connection
from buffer.errors import BufferUnavailable, ProtocolMismatch
from buffer.keys import Keys
from buffer.limits import Limits
from buffer.observer import UNOBSERVED, Observer
from buffer.params import SamplingParams, params_fields, params_of
from buffer.sources import OPERATIONS, source
from buffer.version import Version

"""Files that operations share, besides the prelude."""
LOST = b"SSDKD_LOST"
RESERVE_ROUNDS = 3
_MASSES = struct.Struct("<Iddd")
_DRAWN = struct.Struct("<IIIIdd")


class Scripts:
    """Runs the operations on one shard; initialises it, and does so again if the server lost it.

    Args:
        connection: to the shard's server.
        keys: of the shard.
        limits: which the shard must have.
        params: it starts with, if it is new.
        incarnation: draws the incarnation of a new buffer.
        observer: of all operations.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        limits: Limits,
        params: SamplingParams,
        incarnation: Callable[[], int],
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._keys, self._epochs = keys.scripted, keys.epochs
        self._run = {
            name: observer.timed(name, connection.script(source(name))) for name in OPERATIONS
        }
        self._limits = limits
        self._params = params
        self._incarnation = incarnation

    def init(self) -> None:
        """Creates the buffer, or checks the one that is there.

        Raises:
            ProtocolMismatch: the server holds a buffer with other limits.
        """
        wanted = self._limits.fields()
        found = self._run["init"](self._keys, (*self._creation(), json.dumps(wanted)))
        if not found:
            return
        listed = "; ".join(
            f"{name.decode()} ({wanted[name.decode()]}) is {value.decode()} there"
            for name, value in _pairs(found)
        )
        raise ProtocolMismatch(
            f"the server holds a buffer of this name that differs: {listed}. "
            "Use another run.name, or the same settings"
        )

    def reset(
        self, params: SamplingParams | None = None, counters: str = "", attempts: str = ""
    ) -> int:
        """Empties the buffer and gives it a new incarnation, which it returns.

        All arguments are given if samples are to be loaded, see ``lua/reset.lua``.
        """
        creation = self._creation(params)
        self._run["reset"](self._keys, (*creation, counters, attempts))
        return creation[0]

    def permit(self, producer: str, samples: int) -> float | None:
        """Asks for a permit: ``None`` if granted, else seconds to wait."""
        seconds = self._ask("permit", producer, samples)
        return float(seconds) if seconds else None

    def release(self, producer: str) -> None:
        """Gives a permit back."""
        self._ask("release", producer)

    def reserve(
        self, insert: Insert, samples: int, probes: int, schema: Mapping[str, str]
    ) -> Reserved | Refused | Misfit | Literal["duplicate", "superseded"]:
        """Reserves slots, training samples first."""
        answer = self._in_time("reserve", *insert, samples, probes, json.dumps(schema))
        if answer[0] in (b"duplicate", b"superseded"):
            return "duplicate" if answer[0] == b"duplicate" else "superseded"
        if answer[0] == b"wait":
            return Refused(float(answer[1]), "the limiter lets draws catch up first")
        if answer[0] == b"schema":
            return Misfit(answer[1].decode(), answer[2].decode())
        return Reserved(int(answer[1]), np.frombuffer(answer[2], dtype=PAIR))

    def commit(self, insert: Insert, incarnation: int, cells: NDArray[np.int64]) -> int:
        """Makes reserved samples visible: how many did become so."""
        return int(self._ask("commit", *insert, incarnation, cells.astype("<u4").tobytes()))

    def sample(
        self, points: NDArray[np.float64], purpose: Purpose = "draw", common: bytes = b""
    ) -> Drawn | Refused:
        """Draws a training sample at each point ``[n]``, random in [0, 1), of the distribution.

        ``common`` is what all shards agree on.
        """
        order = np.argsort(points)
        rising = points[order].astype("<f8").tobytes()
        answer = self._drawn(self._ask("sample", rising, purpose, common))
        if isinstance(answer, Refused):
            return answer
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return answer._replace(draws=answer.draws.take(back))

    def slots(self, draws: int, purpose: Purpose, known: tuple[int, int]) -> Slots | Refused:
        """Admits draws; the records that are newer than the known incarnation and changes."""
        answer = self._ask("slots", draws, purpose, *known)
        if answer[0] == b"wait":
            return _refused(answer)
        incarnation, changes, newest, params, records = answer
        return Slots(
            int(incarnation),
            int(changes),
            int(newest),
            {name.decode(): value.decode() for name, value in _pairs(params)},
            np.frombuffer(records, dtype=RECORD) if records else None,
        )

    def masses(self) -> Masses | Refused:
        """What the shard would contribute to a draw."""
        answer = self._ask("masses")
        if isinstance(answer, list):
            return _refused(answer)
        items, slack, uniform, balance = _MASSES.unpack_from(answer)
        labels = np.frombuffer(answer, dtype=LABEL, offset=_MASSES.size)
        return Masses(items, slack, uniform, balance, labels)

    def take(self, samples: int) -> Drawn | Refused:
        """The next training samples in order."""
        return self._drawn(self._ask("take", samples))

    @staticmethod
    def _drawn(answer: Any) -> Drawn | Refused:
        if isinstance(answer, list):
            return _refused(answer)
        incarnation, population, attempt, step, exponent, mean = _DRAWN.unpack_from(answer)
        drawn = np.frombuffer(answer, dtype=DRAW, offset=_DRAWN.size)
        return Drawn(incarnation, population, Version(attempt, step), exponent, mean, drawn)

    def discard(self, incarnation: int, pairs: NDArray[np.void]) -> int:
        """Takes damaged samples out: how many were still there."""
        return int(self._ask("discard", incarnation, pairs.tobytes()))

    def update(self, updates: NDArray[np.void], version: Version) -> tuple[int, int, int]:
        """Sets levels: how many were applied, stale, older."""
        applied, stale, older = self._ask("update", *version, updates.tobytes())
        return applied, stale, older

    def probe(self, n: int) -> Reserved:
        """The newest probe samples."""
        incarnation, packed = self._ask("probe", n)
        return Reserved(int(incarnation), np.frombuffer(packed, dtype=PAIR))

    def set_params(self, params: SamplingParams) -> bool:
        """Puts newer parameters in force."""
        return bool(self._ask("set_params", json.dumps(params_fields(params))))

    def begin_epoch(self, producer: str) -> int:
        """The epoch of a process that inserts under a producer's name."""
        return int(self._run["begin_epoch"]((*self._keys, self._epochs), (producer,)))

    def begin_attempt(self, role: str, above: int = 0) -> int:
        """The next attempt of a role, above a number."""
        return int(self._ask("begin_attempt", role, above))

    def info(self) -> Picture:
        """Counters and groups."""
        seconds, counters, groups = self._ask("info")
        return Picture(
            float(seconds),
            {name.decode(): float(value) for name, value in _pairs(counters)},
            dict(np.frombuffer(groups, dtype=GROUP)[["group", "items"]].tolist()),
        )

    def dump(self) -> Dumped:
        """Everything but the payloads, at one moment."""
        incarnation, newest, counters, params, attempts, records, probes = self._ask("dump")
        return Dumped(
            int(incarnation),
            int(newest),
            {name.decode(): float(value) for name, value in _pairs(counters)},
            params_of({name.decode(): value.decode() for name, value in _pairs(params)}),
            {role.decode(): int(attempt) for role, attempt in _pairs(attempts)},
            np.frombuffer(records, dtype=RECORD),
            np.frombuffer(probes, dtype=RECORD),
        )

    def load(self, incarnation: int, schema: Mapping[str, str], items: NDArray[np.void]) -> int:
        """Puts items ``[n]`` of :data:`LOADED` back: how many."""
        return int(self._ask("load", incarnation, json.dumps(schema), items.tobytes()))

    def _creation(self, params: SamplingParams | None = None) -> tuple[int, str, str]:
        limits = {"error_buffer": f"{DEFAULT_ERROR_BUFFER:g}", **self._limits.fields()}
        return (
            self._incarnation(),
            json.dumps(limits),
            json.dumps(params_fields(params or self._params)),
        )

    def _in_time(self, name: str, *arguments: Any) -> Any:
        """An answer younger than a lease: the slots of an older one may be somebody else's."""
        for _ in range(RESERVE_ROUNDS):
            asked = time.monotonic()
            answer = self._ask(name, *arguments)
            if time.monotonic() - asked <= self._limits.lease_seconds:
                return answer
        raise BufferUnavailable(
            f"buffer.lease_seconds ({self._limits.lease_seconds:g}): the server's answers took "
            f"longer {RESERVE_ROUNDS} times, slots could not be held"
        )

    def _ask(self, name: str, *arguments: Any) -> Any:
        answer = self._run[name](self._keys, arguments)
        if answer == LOST:
            self.init()
            answer = self._run[name](self._keys, arguments)
        return answer


def _refused(answer: list[Any]) -> Refused:
    filling = answer[2] == b"filling"
    reason = "too few samples" if filling else "the limiter lets inserts catch up first"
    return Refused(float(answer[1]), reason)


def _pairs(flat: list[Any]) -> zip[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)
