"""Processes that work on one buffer until they are killed; started by the test of faults.

``python crowd.py producer URL RUN NUMBER TABLE`` or ``consumer``. A producer delivers some inserts
and some commits twice. After a few seconds it kills itself between two steps of an insert, in a
place that its number decides: so that a kill is sure to fall there. A consumer checks every sample
it draws. Both tell what they have done so far, a JSON object in a line: the last line counts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import numpy as np
import redis
from redis.retry import Retry

from buffer import connection
from buffer.answers import Insert, Refused, Reserved
from buffer.batches import identity_array, schema_of
from buffer.codec import prepare
from buffer.config import BufferTable
from buffer.errors import BufferUnavailable, RateLimited
from buffer.priorities import level_of
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.version import Version

LABELS = 7
PLACES = ("reserved", "half written", "written")
"""Where the first producers kill themselves; the others leave that to the test."""
told: Counter[str] = Counter()


class NotedRetry(Retry):
    """What redis-py does about lost answers, and notes what it did."""

    def call_with_retry(
        self, do: Callable[[], Any], fail: Callable[..., Any], *how: Any, **more: Any
    ) -> Any:
        """See :class:`redis.retry.Retry`."""
        timed_out = False

        def noted(error: Exception, *failures: int) -> Any:
            nonlocal timed_out
            timed_out = timed_out or isinstance(error, redis.TimeoutError)
            told["time-outs"] += isinstance(error, redis.TimeoutError)
            return fail(error, *failures)

        answer = super().call_with_retry(do, noted, *how, **more)
        told["answered after a time-out"] += timed_out
        return answer


def numbered(number: int, priority: float) -> Sample:
    """A sample whose image, logits and label all follow from its number."""
    image = np.frombuffer(number.to_bytes(12, "little"), dtype=np.uint8).reshape(3, 2, 2)
    return Sample(
        image=image,
        predicted_class=number % LABELS,
        confidence=0.5,
        disagreement=priority,
        targets={"logits": np.full(4, number % 2**20, dtype=np.float32)},
    )


class Producer:
    """Inserts, for as long as it lives."""

    def __init__(self, replay: ReplayBuffer, number: int, chance: random.Random) -> None:
        self._replay, self._chance = replay, chance
        self._name = f"producer-{number}"
        self._place = PLACES[number] if number < len(PLACES) else None
        self._dies_at = time.monotonic() + chance.uniform(1.0, 3.0)

    def deliver(self, made: list[Sample], sequence: int) -> None:
        """An insert as a service makes it; some once more."""
        result = self._replay.insert(made, producer=self._name, sequence=sequence)
        if self._chance.random() < 0.2:
            result = self._replay.insert(made, producer=self._name, sequence=sequence)
            told["inserts repeated"] += result.duplicate
        told["inserts"] += 1

    def deliver_by_steps(self, made: list[Sample], sequence: int) -> None:
        """The same, taking its time in between; some commits once more."""
        scripts, payloads = self._replay._scripts, self._replay._payloads
        name = Insert(self._name, self._replay._epoch(self._name), sequence)
        answer = scripts.reserve(name, len(made), 0, schema_of(prepare(made)))
        if isinstance(answer, Refused):
            raise RateLimited(answer.reason, answer.retry_after_seconds)
        if not isinstance(answer, Reserved):
            return  # an earlier delivery had arrived
        names = identity_array(
            0, answer.incarnation, answer.pairs["slot"], answer.pairs["generation"]
        )
        half = len(made) // 2
        self._pass("reserved")
        payloads.store(prepare(made[:half]), names[:half])
        self._pass("half written")
        payloads.store(prepare(made[half:]), names[half:])
        self._pass("written")
        labels = np.array([sample.predicted_class for sample in made])
        levels = level_of([sample.disagreement for sample in made]).astype(np.int64)
        for repeated in range(1 + (self._chance.random() < 0.2)):
            scripts.commit(name, answer.incarnation, labels << 16 | levels << 8)
            told["commits repeated"] += repeated
        told["inserts"] += 1

    def _pass(self, place: str) -> None:
        """Mostly at once, sometimes slowly; or never."""
        if place == self._place and time.monotonic() > self._dies_at:
            told[f"killed when {place}"] += 1
            tell()
            os.kill(os.getpid(), signal.SIGKILL)
        if self._chance.random() < 0.3:
            time.sleep(self._chance.random() * 0.05)


def produce(replay: ReplayBuffer, number: int, chance: random.Random) -> NoReturn:
    """Inserts, each until it is answered."""
    producer, sequence = Producer(replay, number, chance), 0
    while True:
        sequence += 1
        made = [
            numbered(chance.getrandbits(60), chance.lognormvariate(0, 2))
            for _ in range(chance.randint(2, 12))
        ]
        deliver = producer.deliver if chance.random() < 0.5 else producer.deliver_by_steps
        while not answered(partial(deliver, made, sequence)):
            pass


def consume(replay: ReplayBuffer, chance: random.Random) -> NoReturn:
    """Draws, checks and updates."""
    known: dict[tuple[int, ...], int] = {}
    step = 0
    while True:
        step += 1
        answered(partial(draw, replay, chance, known, Version(1, step)))


def draw(
    replay: ReplayBuffer,
    chance: random.Random,
    known: dict[tuple[int, ...], int],
    version: Version,
) -> None:
    """One batch, of which nothing is wrong: an identity always names the same ``known`` number."""
    batch = replay.sample(chance.randint(1, 128))
    numbers = [int.from_bytes(image.tobytes(), "little") for image in batch.images]
    shown = batch.targets["logits"][:, 0]
    names = batch.identities.tolist()
    wrong = [
        number
        for number, name, label, logit in zip(
            numbers, names, batch.predicted_classes, shown, strict=True
        )
        if number % LABELS != label
        or number % 2**20 != logit
        or known.setdefault(name, number) != number
    ]
    assert not wrong, wrong
    assert (batch.probabilities > 0).all()
    told["drawn"] += len(numbers)
    priorities = [chance.lognormvariate(0, 2) for _ in numbers]
    replay.update_priorities(batch.identities, priorities, version=version)


def answered(work: Callable[[], None]) -> bool:
    """Whether it was done; if not, after a pause."""
    try:
        work()
    except RateLimited as refusal:
        told["refused"] += 1
        time.sleep(refusal.retry_after_seconds)
        return False
    except BufferUnavailable:
        told["unavailable"] += 1
        time.sleep(0.1)
        return False
    finally:
        tell()
    return True


def tell() -> None:
    """Says what was done so far."""
    print(json.dumps(told), flush=True)


def connected(table: BufferTable, url: str, run: str) -> ReplayBuffer:
    """The buffer, as soon as its server answers."""
    while True:
        try:
            return ReplayBuffer(table, url=url, run=run)
        except BufferUnavailable:
            time.sleep(0.1)


def main() -> None:
    """Does one part."""
    part, url, run, number, table = sys.argv[1:]
    chance = random.Random(f"{part}{number}{time.time_ns()}")
    connection.Retry = NotedRetry
    limits = BufferTable(**json.loads(table))
    if int(number) % 2:
        # Without a cache the server makes all draws.
        limits = limits.model_copy(update={"cache_mebibytes": 0})
    replay = connected(limits, url, run)
    if part == "producer":
        produce(replay, int(number), chance)
    consume(replay, chance)


if __name__ == "__main__":
    main()
