"""The records of the buffer in Redis agree with each other, whatever is done to them."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import redis

from buffer.errors import RateLimited
from buffer.limits import Limits
from buffer.replay import ReplayBuffer
from buffer.sample import Batch, Sample
from buffer.scripts import Insert, Reserved, Scripts
from buffer.version import Version

Make = Callable[..., ReplayBuffer]
Samples = Callable[..., list[Sample]]
Key = Callable[[str], str]


def is_intact(batch: Batch, known: dict[tuple[int, ...], int]) -> bool:
    """Whether each image shows the number that its target and its label say, and no other identity.

    Args:
        batch: a draw.
        known: the number of each identity that was ever seen; grows.
    """
    serials = batch.targets["logits"][:, 0].astype(int)
    shown = [int.from_bytes(image.tobytes(), "little") for image in batch.images]
    first = [
        known.setdefault(name, serial)
        for name, serial in zip(batch.identities.tolist(), serials.tolist(), strict=True)
    ]
    same = (serials == shown).all() and (serials == first).all()
    return bool(same and (batch.predicted_classes == serials % 7).all())


def audit(client: redis.Redis, key: Key, capacity: int) -> dict[int, int]:
    """Checks slots, cells and directory against each other; the cell of each drawable slot."""
    raw = client.get(key("slots"))
    assert isinstance(raw, bytes)
    records = list(struct.iter_unpack("<6I", raw))
    of_slot = {
        slot: (record[2], record[3])
        for slot, record in enumerate(records[:capacity])
        if record[0] == 2
    }
    index = {int(group): int(entry) for group, entry in client.hgetall(key("groups:index")).items()}
    assert sorted(index.values()) == list(range(len(index)))
    directory = list(struct.iter_unpack("<18I", (client.get(key("groups")) or b"")))
    found: dict[int, tuple[int, int]] = {}
    cells = 0
    for group, entry in index.items():
        number, items, *cohorts = directory[entry]
        assert number == group
        assert items == sum(cohorts) > 0
        for cohort, held in enumerate(cohorts):
            cell = group * 256 + cohort
            array = client.get(key(f"cell:{cell}"))
            assert (array is not None) == (held > 0)
            cells += held > 0
            for position, (slot, generation) in enumerate(
                struct.iter_unpack("<2I", (array or b"")[: 8 * held])
            ):
                assert slot not in found
                assert generation == records[slot][1]
                found[slot] = (cell, position)
    assert found == of_slot
    assert len(client.keys(key("cell:*").replace("{", r"\{"))) == cells
    assert int(client.hget(key("counters"), "size") or -1) == len(found)
    return {slot: cell for slot, (cell, _) in found.items()}


def produce(replay: ReplayBuffer, samples: list[Sample], producer: str) -> None:
    for i in range(0, len(samples), 10):
        replay.insert(samples[i : i + 10], producer=producer, sequence=i)


def consume(
    replay: ReplayBuffer, seed: int, done: threading.Event, known: dict[tuple[int, ...], int]
) -> None:
    generator, step = np.random.default_rng(seed), 0
    while not done.is_set() or step == 0:
        step += 1
        try:
            batch = replay.sample(40)
        except RateLimited:
            continue
        assert is_intact(batch, known)
        priorities = generator.lognormal(size=40)
        replay.update_priorities(batch.identities, priorities, version=Version(1, step))


def test_records_stay_consistent_under_concurrent_clients(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key
) -> None:
    """Producers lap a small ring while consumers draw and update: no wrong image, ever."""
    clients = [make_redis(capacity=60, min_size_to_sample=10) for _ in range(5)]
    made = [
        replace(sample, predicted_class=sample.member % 7, disagreement=float(sample.member % 5))
        for sample in make_samples(3000)
    ]
    clients[0].insert(made[:20], producer="first", sequence=1)
    done = threading.Event()
    known: dict[tuple[int, ...], int] = {}
    with ThreadPoolExecutor(5) as pool:
        consumers = [pool.submit(consume, clients[i], i, done, known) for i in (3, 4)]
        producers = [pool.submit(produce, clients[i], made[20 + i :: 3], f"p{i}") for i in range(3)]
        wait(producers)
        done.set()
    for work in producers + consumers:
        work.result()
    info = clients[0].info()
    assert info.inserted > 2900
    assert info.updates.applied > 0
    assert len(set(known.values())) == len(known) > 60
    assert sum(info.class_counts.values()) == sum(info.level_counts.values()) == info.size
    assert len(audit(client, keys, 60)) == info.size


def test_records_stay_consistent_while_inserts_are_in_progress(
    make_scripts: Callable[..., Scripts], client: redis.Redis, keys: Key
) -> None:
    """Reservations in flight lap the ring and one another, and some are never committed."""
    generator = np.random.default_rng(4)
    scripts = make_scripts(Limits(16, 4, 1, None, 300.0))
    flying: dict[str, tuple[Insert, Reserved]] = {}
    partial = 0
    for sequence in range(200):
        producer = str(generator.choice(["a", "b", "c", "d"]))
        if producer in flying and generator.random() < 0.8:
            insert, reserved = flying.pop(producer)
            cells = generator.integers(0, 3, len(reserved.pairs)) << 16
            visible = scripts.commit(insert, reserved.incarnation, cells)
            partial += 0 < visible < len(reserved.pairs)
        else:
            insert = Insert(producer, 1, sequence)
            answer = scripts.reserve(insert, int(generator.integers(1, 8)), 0, {})
            assert isinstance(answer, Reserved)
            flying[producer] = insert, answer
        assert len(audit(client, keys, 16)) == scripts.info().counters["size"]
    assert partial > 0


def test_records_stay_consistent_under_random_operations(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key
) -> None:
    generator = np.random.default_rng(3)
    replay = make_redis(capacity=16, min_size_to_sample=1)
    for sequence in range(60):
        n = int(generator.integers(1, 6))
        labels = generator.integers(0, 3, n).tolist()
        replay.insert(make_samples(n, label=labels), producer="a", sequence=sequence)
        names = replay.sample(12).identities
        priorities = np.exp2(generator.integers(-1, 2, 12))
        replay.update_priorities(names, priorities, version=Version(1, sequence))
        cells = audit(client, keys, 16)
        assert set(names["slot"].tolist()) <= set(cells)
