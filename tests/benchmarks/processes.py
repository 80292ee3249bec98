"""What a command and all that it starts take of a machine. Linux."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from contextlib import suppress

import psutil

MEBIBYTE = 2**20


class Processes:
    """Processor time as it was at the last :meth:`look`, of those too that have ended since.

    Args:
        pid: of the command.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[int, tuple[str, float]] = {}
        self._gpu_busy: list[float] = []
        self.gpu_peak_mebibytes: float | None = None
        """Of the memory of all GPUs at any :meth:`look_at_gpus`; ``None``: there was none."""
        self.peak_mebibytes = 0.0
        """Of memory at any :meth:`weigh`; a page that several processes share counts once."""

    def look(self) -> None:
        """Reads the clocks of all processes that are there."""
        for process in self._alive():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                line = " ".join(process.cmdline())
                self._seen[process.pid] = line, times.user + times.system

    def weigh(self) -> None:
        """Reads the memory of all processes that are there, which costs far more than clocks."""
        mebibytes = 0.0
        for process in self._alive():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                mebibytes += process.memory_full_info().pss / MEBIBYTE
        self.peak_mebibytes = max(self.peak_mebibytes, mebibytes)

    def look_at_gpus(self) -> None:
        """Asks the machine's GPUs how busy and how full they are, whoever keeps them so."""
        if (program := shutil.which("nvidia-smi")) is None:
            return
        query = "--query-gpu=utilization.gpu,memory.used"
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
        )
        with suppress(ValueError):  # a part of a GPU does not say
            rows = [[float(cell) for cell in row.split(",")] for row in answer.stdout.splitlines()]
            busy, used = [row[0] for row in rows], sum(row[1] for row in rows)
            self._gpu_busy += busy
            if rows:
                self.gpu_peak_mebibytes = max(self.gpu_peak_mebibytes or 0.0, used)

    @property
    def gpu_utilization(self) -> float | None:
        """Mean over every :meth:`look_at_gpus`, percent; ``None``: there was none to look at."""
        return statistics.mean(self._gpu_busy) if self._gpu_busy else None

    def seconds(self, *names: str) -> float:
        """Of the processes whose command line has one of these names; an empty one is in all."""
        seen = list(self._seen.values())
        return sum(spent for line, spent in seen if any(name in line for name in names))

    def _alive(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []
