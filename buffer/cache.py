"""Samples this process has fetched. They are immutable: equal identities, equal samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from buffer.columns import Columns, same_names


class PayloadCache:
    """Samples of one shard by identity, in a bounded number of rows: slot modulo rows.

    Args:
        most_bytes: of memory; 0 caches nothing.
        slots: of the shard; more rows than these are never needed.
    """

    def __init__(self, most_bytes: int, slots: int) -> None:
        self._most_bytes = most_bytes
        self._slots = slots
        self._columns: Columns | None = None
        self._incarnation = -1
        self.hits = 0
        self.misses = 0

    def find(self, names: NDArray[np.void]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The rows ``[n]`` where samples of these identities would be, and which ``[n]`` are."""
        if self._columns is None:
            self.misses += len(names)
            nothing = np.zeros(len(names), dtype=bool)
            return nothing.astype(np.intp), nothing
        rows = self._rows(names)
        found = same_names(self._columns.headers.take(rows)["identity"], names)
        hits = int(np.count_nonzero(found))
        self.hits += hits
        self.misses += len(names) - hits
        return rows, found

    def at(self, rows: NDArray[np.intp]) -> Columns:
        """A copy of rows that were found."""
        assert self._columns is not None
        return self._columns.at(rows)

    def keep(self, samples: Columns) -> None:
        """Remembers samples, in place of others if need be."""
        incarnation = int(samples.headers["identity"]["incarnation"][0])
        if self._columns is None or (
            incarnation != self._incarnation and not self._columns.fits(samples)
        ):
            each = sum(
                values[0].nbytes
                for values in (samples.headers, samples.images, *samples.targets.values())
            )
            rows = min(self._slots, self._most_bytes // each)
            if rows == 0:
                return
            self._columns, self._incarnation = Columns.empty(rows, like=samples), incarnation
        if self._columns.fits(samples):
            self._columns.put(self._rows(samples.headers["identity"]), samples)

    def _rows(self, names: NDArray[np.void]) -> NDArray[np.intp]:
        assert self._columns is not None
        rows: NDArray[np.intp] = names["slot"].astype(np.intp) % len(self._columns.headers)
        return rows
