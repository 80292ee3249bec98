"""What the replay buffer costs, beside what bare Redis commands cost in the same run.

``python -m tests.benchmarks.replay [--quick]`` prints Markdown. Loopback TCP, one client, batches
of 256 samples of 3x32x32 with 10 logits unless said; medians. What is compared alternates, so that
the machine's moods fall on both.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import redis

from buffer.batches import identity_array
from buffer.codec import prepare, seal
from buffer.config import BufferTable
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.version import Version
from tests.buffer.servers import TcpServer

QUICK = "--quick" in sys.argv
BATCH = 256
ROUNDS = 20 if QUICK else 100
RNG = np.random.default_rng(0)


def samples(n: int, labels: int = 10, shape: tuple[int, ...] = (3, 32, 32)) -> list[Sample]:
    """Samples of log-normal priorities."""
    images = RNG.integers(0, 256, (min(n, 256), *shape), dtype=np.uint8)
    chosen, priorities = RNG.integers(0, labels, n), RNG.lognormal(size=n)
    logits = RNG.normal(size=(n, 10)).astype(np.float32)
    return [
        Sample(
            image=images[i % len(images)],
            predicted_class=int(chosen[i]),
            confidence=0.9,
            disagreement=float(priorities[i]),
            targets={"logits": logits[i]},
            producer="synthesizer-0",
            method="fast_meta",
        )
        for i in range(n)
    ]


def filled(url: str, items: int, **how: Any) -> ReplayBuffer:
    """A full buffer."""
    table = {"capacity": items, "probe_capacity": 0, "cache_mebibytes": how.pop("cache", 0)}
    replay = ReplayBuffer(BufferTable(**table), url=url, run=f"{items}-{how}", seed=0)
    for sequence in range(-(-items // 1000)):
        replay.insert(samples(min(1000, items), **how), producer="bench", sequence=sequence)
    return replay


def microseconds(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The median time of each call, by turns, per item of a batch."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begun)
    return [1e6 * statistics.median(taken) / BATCH for taken in times]


def names_of(replay: ReplayBuffer) -> np.ndarray:
    """The identities of a draw of distinct samples."""
    drawn = replay._scripts.sample(RNG.random(4 * BATCH))
    pairs = np.unique(drawn.draws[["slot", "generation"]])[:BATCH]  # type: ignore[union-attr]
    assert len(pairs) == BATCH
    return identity_array(0, drawn.incarnation, pairs["slot"], pairs["generation"])  # type: ignore[union-attr]


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells) + " |")


def table(title: str, *columns: str) -> None:
    print(f"\n### {title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def fetching(server: TcpServer) -> None:
    table("Fetch and decode, cache off", "items", "us an item", "bare MGET", "ratio")

    def measure(items: int) -> None:
        replay = filled(server.url, items)
        names = names_of(replay)
        keys = replay._keys.payloads(names["slot"].tolist())
        with redis.Redis.from_url(server.url) as client:
            ours, bare = microseconds(
                lambda: replay._payloads.read(names), lambda: client.mget(keys)
            )
        row(f"{items:,}", ours, bare, ours / bare)
        replay.close()

    measure(5_000)
    measure(100_000)


def drawing_and_updating(server: TcpServer) -> None:
    table(
        "Draws and updates, 5,000 items",
        *("labels", "groups", "us a draw", "us an update, every level changes", "none changes"),
    )

    def measure(labels: int) -> None:
        replay = filled(server.url, 5_000, labels=labels)
        scripts, names = replay._scripts, names_of(replay)
        numbers, low = iter(range(10**9)), RNG.lognormal(size=BATCH)

        def update(priorities: np.ndarray) -> Callable[[], object]:
            return lambda: replay.update_priorities(
                names, priorities, version=Version(1, next(numbers))
            )

        draw, up, down = microseconds(
            lambda: scripts.sample(RNG.random(BATCH)), update(low), update(4 * low)
        )
        (same,) = microseconds(update(4 * low))
        row(labels, len(scripts.info().groups), draw, (up + down) / 2, same)
        replay.close()

    for labels in (10, 100, 1000):
        measure(labels)


def growing(server: TcpServer) -> None:
    table("A draw in a growing buffer, 10 labels, images of 1x2x2", "items", "us a draw")

    def measure(items: int) -> None:
        replay = filled(server.url, items, shape=(1, 2, 2))
        (draw,) = microseconds(lambda: replay._scripts.sample(RNG.random(BATCH)))
        row(f"{items:,}", draw)
        replay.close()

    for items in (5_000, 50_000) if QUICK else (5_000, 50_000, 1_000_000):
        measure(items)


def inserting(server: TcpServer) -> None:
    table("Inserts into a full buffer", "us an item", "bare MSET", "(ours - 2 x bare)")
    replay = filled(server.url, 5_000)
    made, sequence = [samples(BATCH) for _ in range(10)], iter(range(10**9))
    payloads = seal(prepare(made[0]), names_of(replay))
    keys = [f"bare:{i}" for i in range(BATCH)]
    with redis.Redis.from_url(server.url) as client:
        ours, bare = microseconds(
            lambda: replay.insert(made[0], producer="more", sequence=next(sequence)),
            lambda: client.mset(dict(zip(keys, payloads, strict=True))),
        )
    row(ours, bare, ours - 2 * bare)
    replay.close()


def caching(server: TcpServer) -> None:
    table("Whole draws, 5,000 items", "cache", "batches a second", "us an item")
    uncached = filled(server.url, 5_000)
    whole = BufferTable(capacity=5_000, probe_capacity=0)
    cached = ReplayBuffer(whole, url=server.url, run="5000-{}", seed=0)
    everything = SamplingParams(version=Version(1, 1), uniform_share=1.0)
    as_before = cached.params().model_copy(update={"version": Version(1, 2)})
    cached.set_params(everything)
    for _ in range(400):
        cached.sample(BATCH)
    cached.set_params(as_before)
    off, on = microseconds(lambda: uncached.sample(BATCH), lambda: cached.sample(BATCH))
    for name, each in (("off", off), ("on", on)):
        row(name, 1e6 / each / BATCH, each)
    print(f"\nWith the cache {off / on:.1f} times as many.")
    cached.close()


def large_images(server: TcpServer) -> None:
    table(
        "Images of 3x224x224, 1,000 items, batches of 64", "GB/s of payload", "bare MGET", "share"
    )
    replay = filled(server.url, 1_000, shape=(3, 224, 224))
    names = names_of(replay)[:64]
    keys = replay._keys.payloads(names["slot"].tolist())
    with redis.Redis.from_url(server.url) as client:
        size = sum(client.strlen(key) for key in keys)
        ours, bare = microseconds(
            lambda: replay._payloads.read(names),
            lambda: [client.mget(keys[i : i + 16]) for i in range(0, 64, 16)],
            rounds=ROUNDS // 2,
        )
    speed, limit = (size / each / BATCH / 1e3 for each in (ours, bare))
    row(speed, limit, speed / limit)
    replay.close()


def memory(server: TcpServer) -> None:
    table("Memory, images of 3x32x32", "items", "bytes an item", "payload", "overhead")
    for items in (5_000, 100_000):
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
            before = client.info("memory")["used_memory"]
            replay = filled(server.url, items)
            used = (client.info("memory")["used_memory"] - before) / items
            payload = client.strlen(replay._keys.payloads([0])[0])
        row(f"{items:,}", used, payload, f"{100 * (used / payload - 1):.0f} %")
        replay.close()


def main() -> None:
    """Prints all tables."""
    with tempfile.TemporaryDirectory() as folder:
        server = TcpServer(Path(folder))
        try:
            for part in (fetching, drawing_and_updating, growing, inserting, caching):
                part(server)
            large_images(server)
            memory(server)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
