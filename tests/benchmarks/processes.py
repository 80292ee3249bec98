"""What a command and all that it starts take of a machine."""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Thread

import psutil

LOOK_SECONDS = 1.0
MEBIBYTE = 2**20


class Processes:
    """Watches a command from a thread until it has ended. Linux.

    Args:
        pid: of the command.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[int, tuple[str, float]] = {}
        self.peak_mebibytes = 0.0
        """Of memory, each page counted once however many processes share it."""
        Thread(target=self._watch, daemon=True).start()

    def seconds(self, *names: str) -> float:
        """Of processor time, of the processes whose command line has one of these names."""
        seen = list(self._seen.values())
        return sum(spent for line, spent in seen if any(name in line for name in names))

    def _watch(self) -> None:
        while self._root.is_running() and self._root.status() != psutil.STATUS_ZOMBIE:
            with suppress(psutil.NoSuchProcess):
                self._look()
            time.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        memory = 0
        for process in (self._root, *self._root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                line = " ".join(process.cmdline())
                self._seen[process.pid] = line, times.user + times.system
                memory += process.memory_full_info().pss
        self.peak_mebibytes = max(self.peak_mebibytes, memory / MEBIBYTE)
