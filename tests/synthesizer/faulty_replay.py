"""A real in-memory buffer behind a line that can break."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from buffer.errors import BufferUnavailable
from buffer.interface import InsertResult, Permit
from buffer.memory import InMemoryReplayBuffer
from buffer.params import SamplingParams
from buffer.sample import Sample
from synthesizer.actor import Synthesizer
from synthesizer.config import SynthesizerFile


class FaultyReplay(InMemoryReplayBuffer):
    """A real buffer behind a bad line, which keeps what it was sent."""

    def __init__(self, config: SynthesizerFile, **kwargs: Any) -> None:
        super().__init__(config.buffer, **kwargs)
        self.faults: Counter[str] = Counter()
        """Calls that will fail before they reach the buffer, by name."""
        self.lost_answers: Counter[str] = Counter()
        """Calls that will be done, but whose answer is lost."""
        self.deliveries: list[tuple[int, list[Sample]]] = []
        self.held_permits: set[str] = set()
        self.asked_for: list[int] = []
        """Samples of each permit asked for."""
        self.during_round: Callable[[], None] | None = None
        """Called once, after the next permit and before its insert."""

    def request_permit(self, n: int, *, producer: str) -> Permit:
        self.asked_for.append(n)
        permit = super().request_permit(n, producer=producer)
        if permit.granted:
            self.held_permits.add(producer)
        return permit

    def insert(self, samples: Sequence[Sample], *, producer: str, sequence: int) -> InsertResult:
        self._maybe_fail("insert", self.faults)
        self.deliveries.append((sequence, list(samples)))
        result = super().insert(samples, producer=producer, sequence=sequence)
        self.held_permits.discard(producer)
        self._maybe_fail("insert", self.lost_answers)
        return result

    def params(self) -> SamplingParams:
        self._maybe_fail("params", self.faults)
        if self.during_round is not None:
            call, self.during_round = self.during_round, None
            call()
        return super().params()

    def release_permit(self, *, producer: str) -> None:
        self._maybe_fail("release_permit", self.faults)
        super().release_permit(producer=producer)
        self.held_permits.discard(producer)

    def _maybe_fail(self, name: str, faults: Counter[str]) -> None:
        if faults[name] > 0:
            faults[name] -= 1
            raise BufferUnavailable("the line is down")


def synthesizer_of(
    config: SynthesizerFile, replay: InMemoryReplayBuffer, **kwargs: Any
) -> Synthesizer:
    """A synthesizer on the CPU; ``kwargs`` replace its settings."""
    settings = {"producer": "synthesizer-0", "device": torch.device("cpu"), "seed": 1, **kwargs}
    return Synthesizer(config, replay, **settings)
