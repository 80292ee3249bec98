"""The files in which processes keep their metrics, on a disk that may be full.

``prometheus_client`` maps files with holes into memory: on a full disk the system kills whoever
first writes into a hole, by SIGBUS. No metric is worth a service, so room is taken before it is
used, and where there is none a process goes on in memory, unseen.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

FIRST_BYTES = 1 << 16
"""Of a new file; it doubles when it is full."""
_HEAD = struct.Struct("i4x")
_OVERHEAD_BYTES = 28
"""At most, of an entry beside its key: length, padding, value, time."""

logger = logging.getLogger(__name__)


def take_room() -> None:
    """Has the metrics that this process makes from here on kept as described above."""
    values.MmapedDict = MetricFile  # type: ignore[attr-defined]


class MetricFile(MmapedDict):
    """A file whose blocks are there before they are written to; memory if they cannot be had."""

    _f: Any
    _m: mmap.mmap

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            if not os.path.exists(filename):
                _create(Path(filename))
        except OSError as error:
            _warn(filename, error)
            self._f, self._fname = None, filename
            self._positions: dict[str, int] = {}
            self._m, self._capacity = mmap.mmap(-1, FIRST_BYTES), FIRST_BYTES
            self._used = _HEAD.size
            self._m[: _HEAD.size] = _HEAD.pack(self._used)
        else:
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed, capacity = self._used + len(key.encode()) + _OVERHEAD_BYTES, self._capacity
        while needed > capacity:
            capacity *= 2
        if capacity > self._capacity:
            self._grow(capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self, capacity: int) -> None:
        """Takes the room on the disk, for the parent class to map; or maps as much memory."""
        if self._f is not None:
            try:
                with open(self._fname, "ab") as file:
                    file.write(bytes(capacity - self._capacity))
                return
            except OSError as error:
                _warn(self._fname, error)
                self._f.close()
                self._f = None
        larger = mmap.mmap(-1, capacity)
        larger[: self._capacity] = self._m[:]
        self._m, self._capacity = larger, capacity


def _create(path: Path) -> None:
    """Under another name first: whoever reads a file finds a whole one."""
    new = path.with_suffix(".new")
    try:
        new.write_bytes(bytes(FIRST_BYTES))
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _warn(filename: str, error: OSError) -> None:
    logger.warning("no room for metrics, what is new in %s is not exported: %s", filename, error)
