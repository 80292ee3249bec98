"""What the contenders of ``rivals.py`` have in common: the items, the work, the way to ask for it.

Each runs in a process and an environment of its own, so nothing is imported here but numpy.
Commands come as lines on stdin: ``versions``, ``fill ITEMS``, ``remark``, and ``sample``,
``update`` or ``insert`` with how many calls to time and how many to make before, untimed. Answers
go as lines of JSON to stdout. All draw in proportion to priority^0.6 and evict the oldest item.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from abc import ABC, abstractmethod
from importlib.metadata import version
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

BATCH = 256
ALPHA, BETA = 0.6, 0.4
SHAPE, CLASSES = (3, 32, 32), 10
CHUNK = 1000
"""Items of an insert while the buffer is filled."""


class Items(NamedTuple):
    """N items. The first logit is the logarithm of the first priority: draws are judged by it."""

    images: np.ndarray
    """``[N, 3, 32, 32]`` uint8."""
    labels: np.ndarray
    """``[N]``."""
    logits: np.ndarray
    """``[N, 10]`` float32."""
    priorities: np.ndarray
    """``[N]``."""


class Drawn(NamedTuple):
    """A batch of B ready for training, with what updates and importance weights need."""

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    names: np.ndarray
    """``[B]``: what an update calls the items."""
    odds: np.ndarray
    """``[B]``: their probabilities, or the importance weights themselves."""


def random_items(rng: np.random.Generator, n: int) -> Items:
    """Items of log-normal priorities."""
    priorities = rng.lognormal(size=n)
    logits = rng.normal(size=(n, CLASSES)).astype(np.float32)
    logits[:, 0] = np.log(priorities)
    images = rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return Items(images, rng.integers(0, CLASSES, n), logits, priorities)


class Contender(ABC):
    """A replay buffer."""

    packages: tuple[str, ...]
    """Whose versions matter."""

    @abstractmethod
    def open(self, capacity: int) -> None:
        """Begins anew, empty."""

    @abstractmethod
    def prepare(self, items: Items) -> Any:
        """Items in the form in which this buffer takes them."""

    @abstractmethod
    def insert(self, prepared: Any) -> None:
        """Stores what was prepared; returns when it can be drawn."""

    @abstractmethod
    def sample(self) -> Drawn:
        """Draws a batch."""

    @abstractmethod
    def update(self, names: np.ndarray, priorities: np.ndarray) -> None:
        """Gives items new priorities."""

    def warm(self, items: int) -> None:  # noqa: B027 - most have nothing to warm
        """Fills what the client remembers."""

    def versions(self) -> str:
        """Of everything that matters."""
        packages = [f"{name} {version(name)}" for name in self.packages]
        return ", ".join([*packages, f"Python {platform.python_version()}"])

    def remark(self) -> str:
        """What a reader of the figures should know, at their end."""
        return ""


class Stage:
    """A contender and what it works on."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._rng = np.random.default_rng(0)

    def fill(self, items: int) -> None:
        """A full buffer, seen to draw as it should."""
        contender, rng = self._contender, self._rng
        contender.open(items)
        for begin in range(0, items, CHUNK):
            contender.insert(contender.prepare(random_items(rng, min(CHUNK, items - begin))))
        self._check([contender.sample() for _ in range(20)])
        contender.warm(items)
        self._batches = cycle([contender.prepare(random_items(rng, BATCH)) for _ in range(8)])
        self._priorities = cycle(rng.lognormal(size=(8, BATCH)))
        names = np.concatenate([contender.sample().names for _ in range(4)])
        self._names = rng.permutation(np.unique(names))[:BATCH]
        assert len(self._names) == BATCH

    def time(self, operation: str, timed: int, untimed: int) -> list[float]:
        """Seconds of each timed call."""
        call = {"sample": self._contender.sample, "update": self._update, "insert": self._insert}
        for _ in range(untimed):
            call[operation]()
        seconds = []
        for _ in range(timed):
            begun = time.perf_counter()
            call[operation]()
            seconds.append(time.perf_counter() - begun)
        return seconds

    def _update(self) -> None:
        self._contender.update(self._names, next(self._priorities))

    def _insert(self) -> None:
        self._contender.insert(next(self._batches))

    def _check(self, drawn: list[Drawn]) -> None:
        images, labels, logits, names, odds = drawn[0]
        assert images.shape == (BATCH, *SHAPE)
        assert images.dtype == np.uint8
        assert logits.shape == (BATCH, CLASSES)
        assert logits.dtype == np.float32
        assert [len(each) for each in (labels, names, odds)] == [BATCH] * 3
        # Mass ~ exp(0.6 z) moves a standard normal z by 0.6.
        mean = np.mean([batch.logits[:, 0].mean() for batch in drawn])
        assert abs(mean - ALPHA) < 0.1, f"draws are not by priority^{ALPHA}: {mean}"


def serve(contender: Contender) -> None:
    """Does as it is told until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    stage = Stage(contender)
    for line in sys.stdin:
        command, *numbers = line.split()
        answer: Any = None
        if command == "versions":
            answer = contender.versions()
        elif command == "remark":
            answer = contender.remark()
        elif command == "fill":
            stage.fill(int(numbers[0]))
        else:
            answer = stage.time(command, int(numbers[0]), int(numbers[1]))
        print(json.dumps(answer), file=answers, flush=True)
