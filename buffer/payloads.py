"""Payloads in Redis: written under the name of a reservation, and checked when read."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from buffer.cache import PayloadCache
from buffer.codec import Prepared, seal
from buffer.columns import Columns, combine, read, same_names
from buffer.connection import MOST_KEYS, Connection
from buffer.errors import ProtocolMismatch
from buffer.keys import PROTOCOL, Keys
from buffer.observer import UNOBSERVED, Observer


class Payloads:
    """The payloads of one shard. May be used from several threads.

    Args:
        connection: to the shard's server.
        keys: of the shard.
        cache: of what was read.
        observer: of what is written and read.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        cache: PayloadCache,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._connection = connection
        self._store = observer.timed("store", connection.store)
        self._get = observer.timed("fetch", connection.fetch)
        self._observer = observer
        self._keys = keys
        self._cache = cache
        self._lock = threading.Lock()
        self._expected_bytes = 1
        self._schema: tuple[int, dict[str, str]] = (-1, {})

    def store(self, prepared: Prepared, names: NDArray[np.void]) -> None:
        """Writes prepared samples under the identities ``[n]`` they got."""
        self._write(names, seal(prepared, names))

    def read(self, names: NDArray[np.void]) -> tuple[Columns | None, NDArray[np.bool_]]:
        """The samples of these identities ``[n]``, and which ``[n]`` are intact.

        Rows that are not (gone, damaged, or of another shape) hold anything; if none is intact,
        there are no samples.
        """
        with self._lock:
            rows, cached = self._cache.find(names)
            hits = self._cache.at(rows[cached]) if cached.any() else None
        missing = np.flatnonzero(~cached)
        fetched = self._fetch(names.take(missing)) if missing.size else []
        with self._lock:
            for _, samples in fetched:
                self._cache.keep(samples)
        pieces = [(missing[found], samples) for found, samples in fetched]
        if hits is not None:
            pieces.append((np.flatnonzero(cached), hits))
        intact = cached.copy()
        for found, _ in pieces:
            intact[found] = True
        return combine(pieces, len(names)), intact

    def raw(self, names: NDArray[np.void]) -> list[bytes | None]:
        """The payloads of these identities ``[n]`` as they are; ``None`` for what is not intact."""
        payloads = self._payloads(names)
        found: list[bytes | None] = [None] * len(payloads)
        for rows, samples in read(payloads):
            for row, name in zip(rows.tolist(), samples.headers["identity"], strict=True):
                found[row] = payloads[row] if name == names[row] else None
        return found

    def keep(self, names: NDArray[np.void], payloads: Sequence[bytes]) -> dict[str, str]:
        """Writes payloads that have these names ``[n]`` already; dtypes and shapes in them."""
        self._write(names, payloads)
        schema: dict[str, str] = {}
        for _, samples in read(payloads):
            schema |= samples.schema()
        return schema

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

    def _fetch(self, names: NDArray[np.void]) -> list[tuple[NDArray[np.intp], Columns]]:
        """The samples that are there under these identities ``[n]``, and which they are."""
        payloads = self._payloads(names)
        schema = self._schema_of(int(names["incarnation"][0]))
        found = []
        for rows, samples in read(payloads):
            right = same_names(samples.headers["identity"], names.take(rows))
            fits = all(schema.get(key, form) == form for key, form in samples.schema().items())
            if fits and right.all():
                found.append((rows, samples))
            elif fits and right.any():
                found.append((rows[right], samples.at(np.flatnonzero(right))))
        return found

    def _write(self, names: NDArray[np.void], payloads: Sequence[bytes]) -> None:
        keys = self._keys.payloads(names["slot"].tolist())
        self._store(dict(zip(keys, payloads, strict=True)))
        self._observer.moved("in", payloads)

    def _payloads(self, names: NDArray[np.void]) -> list[bytes | None]:
        """What is stored at the slots of names ``[n]``; the next chunks are of a size that fits."""
        keys = self._keys.payloads(names["slot"].tolist())
        payloads = self._get(keys, expected_bytes=self._expected_bytes)
        self._observer.moved("out", payloads)
        if payloads and payloads[0]:
            self._expected_bytes = len(payloads[0])
        return payloads

    def _schema_of(self, incarnation: int) -> dict[str, str]:
        """Dtype and shape of an incarnation's arrays. They do not change once it holds samples."""
        known, schema = self._schema
        if known != incarnation:
            schema = self._connection.fields(self._keys.schema)
            self._schema = incarnation, schema
        return schema
