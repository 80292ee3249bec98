"""Payloads in Redis: written under the name of a reservation, and checked when read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from buffer.batches import schema_of
from buffer.codec import Content, decode, seal
from buffer.connection import MOST_KEYS, Connection
from buffer.errors import ProtocolMismatch, SchemaError
from buffer.keys import PROTOCOL, Keys
from buffer.sample import Identity, Sample


class Payloads:
    """The payloads of one shard. May be used from several threads."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys
        self._expected_bytes = 1
        self._schema: tuple[int, dict[str, str]] = (-1, {})

    def store(self, contents: Sequence[Content], incarnation: int, pairs: NDArray[np.void]) -> None:
        """Writes prepared samples under the names ``[n]`` (``slot``, ``generation``) they got."""
        names = _names(self._keys.shard, incarnation, pairs)
        payloads = [seal(content, name) for content, name in zip(contents, names, strict=True)]
        keys = self._keys.payloads(name.slot for name in names)
        self._connection.store(dict(zip(keys, payloads, strict=True)))

    def read(self, incarnation: int, pairs: NDArray[np.void]) -> list[Sample | None]:
        """The samples ``[n]`` of these names; ``None`` where the payload is another, or damaged."""
        slots, where = np.unique(pairs["slot"], return_inverse=True)
        keys = self._keys.payloads(slots.tolist())
        payloads = self._connection.fetch(keys, expected_bytes=self._expected_bytes)
        schema = self._schema_of(incarnation) if payloads else {}
        decoded = [self._decoded(payload, schema) for payload in payloads]
        found = [decoded[index] for index in where.tolist()]
        names = _names(self._keys.shard, incarnation, pairs)
        return [
            sample if stored == name else None
            for (stored, sample), name in zip(found, names, strict=True)
        ]

    def delete(self) -> None:
        """Deletes the payloads of all slots that the stored buffer has, whatever its limits.

        Raises:
            ProtocolMismatch: another protocol keeps them elsewhere.
        """
        stored = self._connection.fields(self._keys.meta)
        protocol = stored.get("protocol", str(PROTOCOL))
        if protocol != str(PROTOCOL):
            raise ProtocolMismatch(
                f"the server holds a buffer of this name with protocol {protocol}, this client has "
                f"{PROTOCOL} and does not know what to delete there. Use another run.name"
            )
        slots = int(stored.get("capacity", 0)) + int(stored.get("probe_capacity", 0))
        for start in range(0, slots, MOST_KEYS):
            chunk = range(start, min(start + MOST_KEYS, slots))
            self._connection.delete(self._keys.payloads(chunk))

    def _decoded(
        self, payload: bytes | None, schema: Mapping[str, str]
    ) -> tuple[Identity | None, Sample | None]:
        if payload is None:
            return None, None
        self._expected_bytes = len(payload)
        try:
            name, sample = decode(payload)
        except SchemaError:
            return None, None
        fits = all(schema.get(key, form) == form for key, form in schema_of([sample]).items())
        return (name, sample) if fits else (None, None)

    def _schema_of(self, incarnation: int) -> dict[str, str]:
        """Dtype and shape of an incarnation's arrays. They do not change once it holds samples."""
        known, schema = self._schema
        if known != incarnation:
            schema = self._connection.fields(self._keys.schema)
            self._schema = incarnation, schema
        return schema


def _names(shard: int, incarnation: int, pairs: NDArray[np.void]) -> list[Identity]:
    slots, generations = pairs["slot"].tolist(), pairs["generation"].tolist()
    return [
        Identity(shard, incarnation, slot, generation)
        for slot, generation in zip(slots, generations, strict=True)
    ]
