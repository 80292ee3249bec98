"""What a draw costs in non-empty cells: a real Redis, batches of 256 out of 20,000 small samples.

Prints medians of 100 draws for 10, 100 and 1,000 labels, and the same after priorities collapsed to
one level per label (few cells), so that the cost can be read per cell.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import redis

from buffer.config import BufferTable
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer

ITEMS, BATCH, DRAWS = 20_000, 256, 100


def filled(url: str, labels: int, spread: float) -> ReplayBuffer:
    """A full buffer of log-normal priorities."""
    table = BufferTable(capacity=ITEMS, probe_capacity=0)
    replay = ReplayBuffer(table, url=url, run=f"labels-{labels}-{spread}", seed=0)
    rng, image = np.random.default_rng(0), np.zeros((1, 8, 8), np.uint8)
    for sequence in range(1, ITEMS // 1000 + 1):
        samples = [
            Sample(
                image=image,
                predicted_class=int(rng.integers(labels)),
                confidence=1.0,
                disagreement=float(rng.lognormal(0.0, spread)),
            )
            for _ in range(1000)
        ]
        replay.insert(samples, producer="bench", sequence=sequence)
    return replay


def median_milliseconds(replay: ReplayBuffer) -> float:
    """Of one draw, payload included."""
    times = []
    for seed in range(DRAWS):
        begun = time.perf_counter()
        replay.sample(BATCH, seed=seed)
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


def cells_of(url: str) -> int:
    """Non-empty cells of the only buffer on the server."""
    with redis.Redis.from_url(url) as client:
        (directory,) = client.scan_iter(match="*cells:index")
        return int(client.hlen(directory))


def main() -> None:
    """Prints a Markdown table."""
    print("| labels | priorities | non-empty cells | ms per draw of 256 |")
    print("|---|---|---|---|")
    with RedisServer.start() as server:
        for labels in (10, 100, 1000):
            for name, spread in (("one level", 0.0), ("log-normal", 1.0)):
                replay = filled(server.url, labels, spread)
                milliseconds = median_milliseconds(replay)
                cells = cells_of(server.url)
                print(f"| {labels} | {name} | {cells} | {milliseconds:.1f} |")
                replay.close()
                with redis.Redis.from_url(server.url) as client:
                    client.flushdb()


if __name__ == "__main__":
    main()
