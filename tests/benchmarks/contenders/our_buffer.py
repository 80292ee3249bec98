"""``buffer.replay``, its server a process of its own on loopback TCP; ``off`` is without cache."""

from __future__ import annotations

import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import redis
from contender import ALPHA, BATCH, BETA, Contender, Drawn, Items, serve

from buffer.config import BufferTable
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.version import Version
from tests.buffer.servers import TcpServer


class Ours(Contender):
    """A :class:`~buffer.replay.ReplayBuffer` with or without its default cache."""

    packages = ("ssdkd", "redis", "hiredis", "numpy")

    def __init__(self, url: str, cached: bool) -> None:
        self._url, self._cached = url, cached
        self._numbers = count(1)

    def versions(self) -> str:
        with redis.Redis.from_url(self._url) as client:
            return f"{super().versions()}, server {client.info('server')['redis_version']}"

    def open(self, capacity: int) -> None:
        table = BufferTable(capacity=capacity, probe_capacity=0)
        if not self._cached:
            table = table.model_copy(update={"cache_mebibytes": 0})
        self._replay = ReplayBuffer(table, url=self._url, run="rivals", seed=0, fresh=True)
        params = self._replay.params()
        assert (params.priority_exponent, params.importance_exponent) == (ALPHA, BETA)

    def prepare(self, items: Items) -> Any:
        return [
            Sample(image, int(label), 0.9, float(priority), targets={"logits": logits})
            for image, label, logits, priority in zip(*items, strict=True)
        ]

    def insert(self, prepared: Any) -> None:
        result = self._replay.insert(prepared, producer="bench", sequence=next(self._numbers))
        assert not result.duplicate

    def sample(self) -> Drawn:
        batch = self._replay.sample(BATCH)
        labels, logits = batch.predicted_classes, batch.targets["logits"]
        return Drawn(batch.images, labels, logits, batch.identities, batch.weights)

    def update(self, names: np.ndarray, priorities: np.ndarray) -> None:
        newer = Version(1, next(self._numbers))
        assert self._replay.update_priorities(names, priorities, version=newer).applied == BATCH

    def warm(self, items: int) -> None:
        for _ in range(max(100, 4 * items // BATCH) if self._cached else 0):
            self.sample()
        self._hits, self._misses = self._replay.cache.hits, self._replay.cache.misses

    def remark(self) -> str:
        hits = self._replay.cache.hits - self._hits
        share = hits / (hits + self._replay.cache.misses - self._misses)
        return f"{100 * share:.0f} % of what was drawn came from the cache" if self._cached else ""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = TcpServer(Path(folder))
        try:
            serve(Ours(server.url, cached="off" not in sys.argv))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
