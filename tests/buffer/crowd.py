"""Processes that work on one buffer until they are killed; started by the test of faults.

``python crowd.py producer URL RUN NUMBER TABLE`` or ``consumer``. A producer takes its time between
the steps of an insert, so that a kill falls between them, and delivers some commits twice. A
consumer checks every sample it draws, and prints what it has done.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import NoReturn

import numpy as np

from buffer.answers import Insert, Reserved
from buffer.batches import identity_array, schema_of
from buffer.codec import prepare
from buffer.config import BufferTable
from buffer.errors import BufferUnavailable, RateLimited
from buffer.priorities import level_of
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.version import Version

LABELS = 7


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


def produce(replay: ReplayBuffer, chance: random.Random, producer: str) -> NoReturn:
    """Inserts step by step, for ever."""
    scripts, payloads = replay._scripts, replay._payloads
    epoch = scripts.begin_epoch(producer)
    sequence = 0
    while True:
        sequence += 1
        made = [
            numbered(chance.getrandbits(60), chance.lognormvariate(0, 2))
            for _ in range(chance.randint(1, 12))
        ]
        name, prepared = Insert(producer, epoch, sequence), prepare(made)
        try:
            answer = scripts.reserve(name, len(made), 0, schema_of(prepared))
            if not isinstance(answer, Reserved):
                time.sleep(0.01)
                continue
            pause(chance)
            slots, generations = answer.pairs["slot"], answer.pairs["generation"]
            payloads.store(prepared, identity_array(0, answer.incarnation, slots, generations))
            pause(chance)
            labels = np.array([sample.predicted_class for sample in made])
            levels = level_of([sample.disagreement for sample in made]).astype(np.int64)
            for _ in range(1 + (chance.random() < 0.2)):
                scripts.commit(name, answer.incarnation, labels << 16 | levels << 8)
        except BufferUnavailable:
            time.sleep(0.1)


def consume(replay: ReplayBuffer, chance: random.Random) -> NoReturn:
    """Draws, checks and updates, for ever."""
    step = drawn = refused = unavailable = 0
    while True:
        step += 1
        try:
            batch = replay.sample(chance.randint(1, 128))
            numbers = [int.from_bytes(image.tobytes(), "little") for image in batch.images]
            wrong = [
                number
                for number, label, shown in zip(
                    numbers, batch.predicted_classes, batch.targets["logits"][:, 0], strict=True
                )
                if number % LABELS != label or number % 2**20 != shown
            ]
            assert not wrong, wrong
            assert (batch.probabilities > 0).all()
            drawn += len(numbers)
            priorities = [chance.lognormvariate(0, 2) for _ in numbers]
            replay.update_priorities(batch.identities, priorities, version=Version(1, step))
        except RateLimited as refusal:
            refused += 1
            time.sleep(min(0.05, refusal.retry_after_seconds))
        except BufferUnavailable:
            unavailable += 1
            time.sleep(0.1)
        told = {"drawn": drawn, "refused": refused, "unavailable": unavailable}
        print(json.dumps(told), flush=True)


def pause(chance: random.Random) -> None:
    """Mostly none, sometimes long enough to be killed in."""
    if chance.random() < 0.3:
        time.sleep(chance.random() * 0.05)


def main() -> None:
    """Does one part."""
    part, url, run, number, table = sys.argv[1:]
    chance = random.Random(f"{part}{number}{time.time_ns()}")
    replay = ReplayBuffer(BufferTable(**json.loads(table)), url=url, run=run)
    if part == "producer":
        produce(replay, chance, f"producer-{number}")
    consume(replay, chance)


if __name__ == "__main__":
    main()
