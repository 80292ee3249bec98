"""Notes what a run does while it goes on, from a background thread, for those who show it.

What is worth noting ends no run: a buffer that is away is noted as such, and a sink that fails (a
full disk, a server that is gone) is logged and asked again next time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from buffer.errors import BufferUnavailable, SsdkdError
from buffer.interface import BufferInfo, Replay
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from deploy.config import PipelineConfig
from deploy.detached import Tolerated
from deploy.journals import Tail
from deploy.pictures import draw
from deploy.sink import Sink, Snapshot, Synthesizers
from deploy.supervisor import Supervisor, Totals
from distiller.service import JOURNAL

THINNING = 30
"""A run has pictures taken whenever it has become this part of itself longer, if that is longer
than ``monitoring.pictures_seconds``: at 30 seconds a day makes about 170 of them, not 2,880."""

logger = logging.getLogger(__name__)

_Known = tuple[BufferInfo | None, SamplingParams | None, StudentProgress | None]


class Recorder:
    """Has a run noted by sinks for as long as it is entered; see ``monitoring.interval_seconds``.

    Args:
        config: the tables ``monitoring`` and ``teacher``.
        replay: the run's buffer.
        supervisor: of its synthesizers.
        totals: of all synthesizers of the run, those of pipelines before included.
        out: folder of the outputs, where the distiller's journal is.
        sinks: who takes what is noted; closed at the end.
        elapsed_seconds: how old the run is already.
    """

    def __init__(
        self,
        config: PipelineConfig,
        replay: Replay,
        supervisor: Supervisor,
        totals: Callable[[], Totals],
        out: Path,
        sinks: Sequence[Sink],
        *,
        elapsed_seconds: float = 0.0,
    ) -> None:
        self._table, self._spec, self._replay = config.monitoring, config.teacher, replay
        self._supervisor, self._totals = supervisor, totals
        self._sinks = [Tolerated(sink) for sink in sinks]
        self._reports = Tail(out / JOURNAL)
        self._learning_rate: float | None = None
        self._accuracy: float | None = None
        self._began = time.monotonic() - elapsed_seconds
        self._pictures_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._record, name="recorder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _record(self) -> None:
        interval = self._table.interval_seconds
        if interval is not None:
            while not self._ended.wait(interval):
                self._note(last=False)
            self._note(last=True)
        for sink in self._sinks:
            sink.close()

    def _note(self, *, last: bool) -> None:
        try:
            snapshot = self._snapshot()
            for sink in self._sinks:
                sink.note(snapshot)
            if self._pictures_are_due(snapshot, last=last):
                self._show(snapshot)
        except Exception:  # whoever only watches must not take what is watched with it
            logger.exception("the run is not recorded just now")

    def _snapshot(self) -> Snapshot:
        known: _Known = (None, None, None)
        try:
            known = self._replay.info(), self._replay.params(), self._replay.progress()
        except SsdkdError as error:
            logger.debug("the run is recorded without its buffer: %s", error)
        buffer, params, progress = known
        for report in self._reports.read():
            self._learning_rate = report.get("learning_rate", self._learning_rate)
            self._accuracy = report.get("student_accuracy", self._accuracy)
        states = Counter(seat["state"] for seat in self._supervisor.describe())
        return Snapshot(
            time=time.time(),
            elapsed_seconds=time.monotonic() - self._began,
            synthesizers=Synthesizers(self._supervisor.wanted, dict(states), self._totals()),
            buffer=buffer,
            params=params,
            progress=progress,
            learning_rate=self._learning_rate,
            student_accuracy=self._accuracy,
        )

    def _pictures_are_due(self, snapshot: Snapshot, *, last: bool) -> bool:
        if self._table.pictures_seconds is None:
            return False
        return last or snapshot.elapsed_seconds >= self._pictures_at

    def _show(self, snapshot: Snapshot) -> None:
        try:
            pictures = draw(self._replay, self._spec, snapshot)
        except BufferUnavailable as error:
            logger.debug("no pictures, the buffer is away: %s", error)
            return
        if pictures is None:
            return
        elapsed = snapshot.elapsed_seconds
        self._pictures_at = elapsed + max(self._table.pictures_seconds or 0.0, elapsed / THINNING)
        for sink in self._sinks:
            sink.show(pictures)
