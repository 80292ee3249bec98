"""Random operations on both replay buffers: the obvious one says what the real one must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from buffer.errors import RateLimited
from buffer.interface import Replay
from buffer.memory import InMemoryReplayBuffer
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.version import Version

Make = Callable[..., Any]
Samples = Callable[..., list[Sample]]
OPERATIONS = 250


class Twins:
    """Does the same to both buffers, and compares what they answer."""

    def __init__(
        self, memory: InMemoryReplayBuffer, real: ReplayBuffer, make_samples: Samples, seed: int
    ) -> None:
        self.pair: tuple[Replay, Replay] = (memory, real)
        self.generator = np.random.default_rng(seed)
        self.make_samples = make_samples
        self.sequences = {"a": 0, "b": 0, "c": 0}
        self.known: list[tuple[int, int]] = []
        self.decisions = 0
        self.compared = 0

    def number(self, low: int, high: int) -> int:
        return int(self.generator.integers(low, high))

    def producer(self) -> str:
        return str(self.generator.choice(["a", "b", "c"]))

    def both(self, call: Callable[[Replay], Any]) -> Any:
        """The answer of both, or the reason of their refusal."""
        answers = []
        for replay in self.pair:
            try:
                answers.append(call(replay))
            except RateLimited as refusal:
                answers.append((str(refusal), refusal.retry_after_seconds))
        assert answers[0] == answers[1]
        return answers[0]

    def insert(self) -> None:
        producer = self.producer()
        self.sequences[producer] += self.number(0, 3)
        sequence = self.sequences[producer]
        n, probes = self.number(0, 9), self.number(0, 4)
        labels = self.generator.integers(0, 5, n + 1).tolist()
        priorities = self.generator.lognormal(0, 2, n + 1).tolist()
        samples = self.make_samples(n + 1, label=labels, priority=priorities)
        samples += self.make_samples(probes, split="probe")
        if probes and self.number(0, 5) == 0:
            samples = samples[n + 1 :]
        self.both(lambda replay: replay.insert(samples, producer=producer, sequence=sequence))

    def request(self) -> None:
        producer, n = self.producer(), self.number(1, 12)
        self.both(lambda replay: replay.request_permit(n, producer=producer))

    def release(self) -> None:
        producer = self.producer()
        self.both(lambda replay: replay.release_permit(producer=producer))

    def sample(self) -> None:
        n = self.number(1, 60)
        found: list[dict[tuple[int, int], tuple[float, float]]] = []

        def draw(replay: Replay) -> tuple[int, Version, float]:
            batch = replay.sample(n, student_step=50)
            names = batch.identities[["slot", "generation"]].tolist()
            chances = zip(batch.probabilities, batch.weights, strict=True)
            found.append(dict(zip(names, chances, strict=True)))
            return batch.population, batch.params_version, round(batch.weight_mean, 9)

        self.both(draw)
        if found:
            self.known += found[0]
            common = found[0].keys() & found[1].keys()
            assert all(np.allclose(found[0][name], found[1][name], rtol=1e-9) for name in common)
            self.compared += len(common)

    def update(self) -> None:
        if not self.known:
            return
        picks = self.generator.integers(0, len(self.known), self.number(1, 40))
        priorities = self.generator.lognormal(0, 2, len(picks))
        version = Version(self.number(1, 3), self.number(0, 50))
        pairs = np.array([self.known[i] for i in picks])

        def push(replay: Replay) -> Any:
            return replay.update_priorities(
                self.identities(replay, pairs), priorities, version=version
            )

        self.both(push)

    def identities(self, replay: Replay, pairs: Any) -> Any:
        """Full names under the buffer's own incarnation, which a probe sample tells."""
        template = self.templates[self.pair.index(replay)]
        names = np.repeat(template, len(pairs))
        names["slot"], names["generation"] = pairs[:, 0], pairs[:, 1]
        return names

    def probe(self) -> None:
        n = self.number(1, 10)

        def look(replay: Replay) -> Any:
            batch = replay.probe(n)
            serials = batch.targets["logits"][:, 0].tolist() if batch.targets else []
            return batch.identities[["slot", "generation"]].tolist(), serials

        self.both(look)

    def decide(self) -> None:
        self.decisions += self.number(0, 2)
        uniform = self.generator.uniform
        params = SamplingParams(
            version=Version(1, self.decisions),
            priority_exponent=uniform(0, 1.2),
            importance_exponent=uniform(0, 0.8),
            uniform_share=self.generator.choice([0.0, uniform()]),
            label_balance=self.generator.choice([0.0, uniform()]),
            age_discount=self.generator.choice([0.0, uniform(0, 0.9)]),
            samples_per_insert=self.generator.choice([None, uniform(0.5, 20)]),
        )
        self.both(lambda replay: replay.set_params(params))

    def reset(self) -> None:
        for replay in self.pair:
            replay.reset()
        self.decisions = 0
        self.sequences = {name: count + 10 for name, count in self.sequences.items()}
        self.meet()

    def meet(self) -> None:
        """Learns each buffer's incarnation."""
        sample = self.make_samples(1, split="probe")
        self.both(lambda replay: replay.insert(sample, producer="meeting", sequence=0))
        self.templates = [replay.probe(1).identities for replay in self.pair]

    def compare(self) -> None:
        def picture(replay: Replay) -> Any:
            info = replay.info()
            return replace(info, seconds=0.0, balance=round(info.balance, 6)), replay.params()

        self.both(picture)


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_have_the_same_effect_on_both_buffers(
    make_memory: Make, make_redis: Make, make_samples: Samples, seed: int
) -> None:
    table = {"capacity": 24, "probe_capacity": 6, "min_size_to_sample": 12, "error_buffer": 60.0}
    params = SamplingParams(samples_per_insert=[None, 4.0][seed % 2])
    twins = Twins(make_memory(params, **table), make_redis(params, **table), make_samples, seed)
    twins.meet()
    operations = [
        *([twins.insert] * 8 + [twins.sample] * 8 + [twins.update] * 8),
        *([twins.request] * 3 + [twins.release, twins.probe, twins.decide]),
    ]
    for step in range(OPERATIONS):
        if step == OPERATIONS // 2:
            twins.reset()
        operations[twins.number(0, len(operations))]()
        twins.compare()
    info = twins.pair[1].info()
    assert twins.compared > 100
    assert min(info.updates) > 0
    assert info.evicted > 0
    assert info.duplicates > 0
    assert info.sampled > 0
