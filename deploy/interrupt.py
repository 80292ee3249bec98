"""Signals that end a run early, noted instead of obeyed."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Notes SIGINT and SIGTERM while it is open, instead of dying of them."""

    def __init__(self) -> None:
        self._noted = threading.Event()

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._in_main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals; once more after Ray has started, which takes them for itself."""
        if self._in_main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def is_set(self) -> bool:
        """A signal came."""
        return self._noted.is_set()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.set()

    @staticmethod
    def _in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()
