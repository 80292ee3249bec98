"""What a synthesizer has learned, in a file: its successor goes on from there.

Why a file and not the buffer: a generator with its optimiser is larger than all images of a small
buffer together (28 MB against 15 MB for CIFAR-10), it would be in the server's memory once for
each synthesizer, and nobody but the successor reads it. Where no file can be written the successor
begins anew, which costs some rounds and nothing else.

Tensors and plain values only, read without running code from the file.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

State = dict[str, Any]


class Checkpoint:
    """A file that is replaced every so often.

    Args:
        path: the file; ``None`` keeps nothing.
        subject: whose state it is, method and teacher; the state of another is not taken over.
        interval_seconds: between replacements.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        subject: str,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._subject = path, subject
        self._interval_seconds, self._clock = interval_seconds, clock
        self._due = clock() + interval_seconds

    def load(self) -> State | None:
        """The state that was saved last; ``None`` if there is none that can be used."""
        if self._path is None or not self._path.exists():
            return None
        try:
            saved = torch.load(self._path, map_location="cpu", weights_only=True)
            subject, state = saved["subject"], saved["state"]
        except (
            OSError,
            RuntimeError,
            EOFError,
            KeyError,
            TypeError,
            pickle.UnpicklingError,
        ) as why:
            logger.warning("%s cannot be read, what was learned is lost: %s", self._path, why)
            return None
        if subject != self._subject:
            logger.warning("%s is of another method or teacher and is not used", self._path)
            return None
        logger.info("going on from %s", self._path)
        loaded: State = state
        return loaded

    def save_when_due(self, state: Callable[[], State]) -> None:
        """Saves what ``state`` returns, if the interval has passed."""
        if self._path is not None and self._clock() >= self._due:
            self.save(state())

    def save(self, state: State) -> None:
        """Replaces the file, so that a reader, or a crash, sees the old one or the new one.

        Args:
            state: tensors, numbers, strings, ``None`` and containers of them.
        """
        if self._path is None:
            return
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"subject": self._subject, "state": state}, partial)
            os.replace(partial, self._path)
        except (OSError, RuntimeError) as why:  # torch has a RuntimeError for a full disk
            logger.warning("%s cannot be written, a successor begins anew: %s", self._path, why)
        self._due = self._clock() + self._interval_seconds

    def forget(self) -> None:
        """Removes the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
