"""The Lua scripts as typed methods: a file in ``lua/`` and a method for each atomic operation."""

from __future__ import annotations

import json
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from buffer.batches import DEFAULT_ERROR_BUFFER
from buffer.config import BufferTable
from buffer.connection import Connection
from buffer.errors import BufferUnavailable, ProtocolMismatch, SchemaError
from buffer.keys import PROTOCOL, Keys
from buffer.params import SamplingParams
from buffer.version import Version

OPERATIONS = (
    *("init", "reset", "permit", "release", "reserve", "commit", "sample", "discard", "update"),
    *("probe", "set_params", "begin_epoch", "begin_attempt", "info"),
)
LOST = b"SSDKD_LOST"
RESERVE_ROUNDS = 3
PAIR = np.dtype([("slot", "<u4"), ("generation", "<u4")])
DRAW = np.dtype([("slot", "<u4"), ("generation", "<u4"), ("probability", "<f8")])
UPDATE = np.dtype([(name, "<u4") for name in ("incarnation", "slot", "generation", "level")])
Purpose = Literal["draw", "redraw", "look"]
"""Why draws are made: the limiter minds only the first, the second replace some of a first."""
_DRAWN = struct.Struct("<IIIIdd")


@dataclass(frozen=True)
class Limits:
    """What all clients of a buffer must agree on."""

    capacity: int
    probe_capacity: int
    min_size_to_sample: int
    error_buffer: float | None
    lease_seconds: float

    @classmethod
    def of(cls, table: BufferTable) -> Limits:
        """The limits a configuration asks for."""
        return cls(
            capacity=table.capacity,
            probe_capacity=table.probe_capacity,
            min_size_to_sample=table.minimum,
            error_buffer=table.error_buffer,
            lease_seconds=table.lease_seconds,
        )

    def fields(self) -> dict[str, str]:
        """Fields of ``meta``, without those that are left to others."""
        values = {"protocol": PROTOCOL, **vars(self)}
        return {name: f"{value:.17g}" for name, value in values.items() if value is not None}


class Insert(NamedTuple):
    """The name of an insert."""

    producer: str
    epoch: int
    sequence: int


class Reserved(NamedTuple):
    """Slots taken for an insert."""

    incarnation: int
    pairs: NDArray[np.void]
    """``[n]`` of :data:`PAIR`."""


class Refused(NamedTuple):
    """The limiter's no."""

    retry_after_seconds: float
    reason: str


class Misfit(NamedTuple):
    """An array that does not fit the others of its name."""

    name: str
    stored: str


class Drawn(NamedTuple):
    """An answered draw."""

    incarnation: int
    population: int
    params_version: Version
    importance_exponent: float
    weight_mean: float
    """Expected raw importance weight of a draw."""
    draws: NDArray[np.void]
    """``[n]`` of :data:`DRAW`."""


class Picture(NamedTuple):
    """What ``info`` answers."""

    seconds: float
    counters: dict[str, float]
    cells: dict[int, int]

    def totals(self, part: Callable[[int], int]) -> dict[int, int]:
        """Items by a part of their cell's number."""
        counts: Counter[int] = Counter()
        for cell, count in self.cells.items():
            counts[part(cell)] += count
        return dict(counts)


class Scripts:
    """Runs the operations on one shard; initialises it, and does so again if the server lost it.

    Args:
        connection: to the shard's server.
        keys: of the shard.
        limits: which the shard must have.
        params: it starts with, if it is new.
        incarnation: draws the incarnation of a new buffer.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        limits: Limits,
        params: SamplingParams,
        incarnation: Callable[[], int],
    ) -> None:
        self._keys, self._epochs = keys.scripted, keys.epochs
        self._run = {name: connection.script(source(name)) for name in OPERATIONS}
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

    def reset(self) -> None:
        """Empties the buffer and gives it a new incarnation."""
        self._run["reset"](self._keys, self._creation())

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

    def sample(self, draws: int, seed: int, purpose: Purpose = "draw") -> Drawn | Refused:
        """Draws training samples."""
        answer = self._ask("sample", draws, seed, purpose)
        if isinstance(answer, list):
            filling = answer[2] == b"filling"
            reason = "too few samples" if filling else "the limiter lets inserts catch up first"
            return Refused(float(answer[1]), reason)
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

    def begin_attempt(self, role: str) -> int:
        """The next attempt of a role."""
        return int(self._ask("begin_attempt", role))

    def info(self) -> Picture:
        """Counters and cells."""
        seconds, counters, cells = self._ask("info")
        return Picture(
            float(seconds),
            {name.decode(): float(value) for name, value in _pairs(counters)},
            dict(np.frombuffer(cells, dtype="<u4").reshape(-1, 2).tolist()),
        )

    def _creation(self) -> tuple[int, str, str]:
        limits = {"error_buffer": f"{DEFAULT_ERROR_BUFFER:g}", **self._limits.fields()}
        return self._incarnation(), json.dumps(limits), json.dumps(params_fields(self._params))

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


def params_fields(params: SamplingParams) -> dict[str, str]:
    """Sampling parameters as fields of ``params``; numbers keep all their digits."""
    values = params.model_dump(exclude={"version"})
    fields = {name: "" if value is None else f"{value:.17g}" for name, value in values.items()}
    attempt, step = params.version
    return {**fields, "version_attempt": str(attempt), "version_step": str(step)}


def params_of(fields: Mapping[str, str]) -> SamplingParams:
    """The inverse of :func:`params_fields`.

    Raises:
        SchemaError: the fields are not those of sampling parameters.
    """
    try:
        values: dict[str, Any] = {k: float(text) if text else None for k, text in fields.items()}
        version = Version(int(values.pop("version_attempt")), int(values.pop("version_step")))
        return SamplingParams(version=version, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"stored sampling parameters cannot be read: {error}") from error


@cache
def source(operation: str) -> str:
    """The Lua source of an operation, behind what all of them share."""
    folder = resources.files("buffer") / "lua"
    names = ("prelude", operation)
    return "".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)


def _pairs(flat: list[Any]) -> zip[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)
