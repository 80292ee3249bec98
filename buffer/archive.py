"""A buffer's contents as a file: for checkpoints, and to move a buffer elsewhere.

An uncompressed zip file: ``meta.json`` (counters, parameters, attempts), ``items.npy``
(:data:`ITEM`, oldest first) and ``payloads/<n>``, each the payloads of :data:`CHUNK_ITEMS` items
end to end as ``buffer.codec`` writes them. Nothing in it is ever unpickled, and every payload has
its checksum.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import ValidationError

from buffer.errors import SchemaError
from buffer.params import SamplingParams

FORMAT = 1
CHUNK_ITEMS = 1024
ITEM = np.dtype(
    [
        *(("probe", "u1"), ("level", "u1"), ("behind", "u1"), ("label", "<u2")),
        *(("attempt", "<u4"), ("step", "<u4"), ("bytes", "<u4")),
    ]
)
"""An item: whether it is a probe, its priority level, cohorts begun since its own, predicted class,
version of its newest priority update, length of its payload."""


class Chunk(NamedTuple):
    """Some items."""

    items: NDArray[np.void]
    """``[n]`` of :data:`ITEM`."""
    payloads: list[bytes]
    """``[n]``."""


class Meta(NamedTuple):
    """What a buffer is beside its items."""

    counters: dict[str, float]
    params: SamplingParams
    attempts: dict[str, int]


def write(path: Path, meta: Meta, chunks: Iterable[Chunk]) -> int:
    """Writes an archive so that a reader, or a crash, sees the old one or the new one.

    Returns:
        How many items.
    """
    partial = path.with_name(path.name + ".partial")
    written = [np.zeros(0, dtype=ITEM)]
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for number, chunk in enumerate(chunks):
            written.append(chunk.items)
            archive.writestr(f"payloads/{number}", b"".join(chunk.payloads))
        items = np.concatenate(written)
        with archive.open("items.npy", "w") as file:
            npy.write_array(file, items, allow_pickle=False)
        archive.writestr("meta.json", json.dumps(_plain(meta, [len(part) for part in written[1:]])))
    os.replace(partial, path)
    return len(items)


class Archive:
    """An archive that is read; a context manager.

    Raises:
        SchemaError: the file is none, is damaged, or is of another format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = zipfile.ZipFile(path)
            plain = json.loads(self._file.read("meta.json"))
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']} is not {FORMAT}")
            self._lengths: list[int] = plain["chunks"]
            self.meta = Meta(
                {name: float(value) for name, value in plain["counters"].items()},
                SamplingParams.model_validate(plain["params"]),
                {role: int(attempt) for role, attempt in plain["attempts"].items()},
            )
            with self._file.open("items.npy") as file:
                self.items: NDArray[np.void] = npy.read_array(file, allow_pickle=False)
            if self.items.dtype != ITEM or len(self.items) != sum(self._lengths):
                raise ValueError("its items are not what it says")
        except (OSError, zipfile.BadZipFile) as error:
            raise SchemaError(f"snapshot ({path}) cannot be read: {error}") from error
        except (LookupError, TypeError, ValueError, ValidationError) as error:
            raise SchemaError(f"snapshot ({path}) is not one of ours: {error}") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def chunks(self, wanted: NDArray[np.bool_]) -> Iterator[Chunk]:
        """The wanted items ``[N]``, oldest first, a chunk at a time."""
        start = 0
        for number, length in enumerate(self._lengths):
            rows = slice(start, start + length)
            start += length
            if not wanted[rows].any():
                continue
            items = self.items[rows]
            ends = np.cumsum(items["bytes"].astype(np.int64))
            try:
                data = self._file.read(f"payloads/{number}")
            except (LookupError, OSError, zipfile.BadZipFile) as error:
                raise SchemaError(f"snapshot ({self._path}) is damaged: {error}") from error
            if ends[-1] != len(data):
                raise SchemaError(f"snapshot ({self._path}) is damaged: payloads are cut off")
            bounds = zip((ends - items["bytes"]).tolist(), ends.tolist(), strict=True)
            payloads = [data[begin:end] for begin, end in bounds]
            kept = np.flatnonzero(wanted[rows])
            yield Chunk(items[kept], [payloads[row] for row in kept.tolist()])

    def ranks(self, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """``[N]``: the place of each wanted item among those of its split, the oldest first."""
        probes = self.items["probe"].astype(bool)
        places = np.zeros(len(wanted), dtype=np.int64)
        for split in (~probes, probes):
            rows = np.flatnonzero(wanted & split)
            places[rows[self._by_age(rows)]] = np.arange(len(rows))
        return places

    def newest(self, capacity: int, probe_capacity: int) -> NDArray[np.bool_]:
        """``[N]``: which items fit into a buffer, the newest of each split."""
        probes = self.items["probe"].astype(bool)
        wanted = np.zeros(len(probes), dtype=bool)
        for split, limit in ((~probes, capacity), (probes, probe_capacity)):
            rows = np.flatnonzero(split)
            wanted[rows[self._by_age(rows)][max(0, len(rows) - limit) :]] = True
        return wanted

    def _by_age(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The order of rows from the oldest on; of one cohort as they are in the file."""
        return np.argsort(-self.items["behind"][rows].astype(np.int64), kind="stable")


def _plain(meta: Meta, lengths: list[int]) -> Mapping[str, Any]:
    return {
        "format": FORMAT,
        "counters": meta.counters,
        "params": meta.params.model_dump(mode="json"),
        "attempts": meta.attempts,
        "chunks": lengths,
    }
