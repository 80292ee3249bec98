"""Reverb, its server a process of its own on localhost; ``dataset`` draws by TrajectoryDataset.

Needs ``dm-reverb[tensorflow]``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from contender import ALPHA, BATCH, CLASSES, SHAPE, Contender, Drawn, Items, serve

TABLE = "replay"
IN_FLIGHT = 3 * BATCH
"""Per worker. Reverb advises two to three batches, and a worker per core."""


class Reverb(Contender):
    """Draws with ``Client.sample``."""

    packages = ("dm-reverb", "tensorflow", "numpy")
    _server: subprocess.Popen[str] | None = None

    def open(self, capacity: int) -> None:
        self.close()
        self._server = subprocess.Popen(
            [sys.executable, __file__, "server", str(capacity)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        self._address = f"localhost:{int(self._server.stdout.readline())}"
        self._client = reverb.Client(self._address)
        # One item a chunk: a draw would otherwise fetch the whole chunk around its item.
        self._writer = self._client.trajectory_writer(num_keep_alive_refs=1)

    def close(self) -> None:
        if self._server is not None:
            self._writer.close()
            self._server.communicate()

    def prepare(self, items: Items) -> Any:
        steps = zip(items.images, items.labels, items.logits, strict=True)
        names = ("image", "label", "logits")
        steps_by_name = [dict(zip(names, step, strict=True)) for step in steps]
        return list(zip(steps_by_name, items.priorities.tolist(), strict=True))

    def insert(self, prepared: Any) -> None:
        writer = self._writer
        for step, priority in prepared:
            writer.append(step)
            newest = {name: column[-1] for name, column in writer.history.items()}
            writer.create_item(TABLE, priority, newest)
        writer.flush()

    def sample(self) -> Drawn:
        drawn = list(self._client.sample(TABLE, BATCH, emit_timesteps=False))
        images, labels, logits = map(np.stack, zip(*(one.data for one in drawn), strict=True))
        names = np.array([one.info.key for one in drawn], dtype=np.uint64)
        odds = np.array([one.info.probability for one in drawn])
        return Drawn(images, labels, logits, names, odds)

    def update(self, names: np.ndarray, priorities: np.ndarray) -> None:
        updates = dict(zip(names.tolist(), priorities.tolist(), strict=True))
        self._client.mutate_priorities(TABLE, updates)


class ReverbDataset(Reverb):
    """Draws with ``TrajectoryDataset``, which runs ahead in threads of its own."""

    _batches: Any = None

    def open(self, capacity: int) -> None:
        self._batches = None
        super().open(capacity)

    def sample(self) -> Drawn:
        if self._batches is None:
            dataset = reverb.TrajectoryDataset.from_table_signature(
                self._address,
                TABLE,
                max_in_flight_samples_per_worker=IN_FLIGHT,
                num_workers_per_iterator=os.cpu_count() or 1,
            )
            # An explicit prefetch: tf.data would choose one of hundreds of batches.
            self._batches = dataset.batch(BATCH).prefetch(2).as_numpy_iterator()
        info, data = next(self._batches)
        return Drawn(data["image"], data["label"], data["logits"], info.key, info.probability)


def run_server(capacity: int) -> None:
    """Serves until stdin ends; the port is all it prints."""
    signature = {
        "image": tf.TensorSpec(SHAPE, tf.uint8),
        "label": tf.TensorSpec((), tf.int64),
        "logits": tf.TensorSpec((CLASSES,), tf.float32),
    }
    table = reverb.Table(
        TABLE,
        sampler=reverb.selectors.Prioritized(ALPHA),
        remover=reverb.selectors.Fifo(),
        max_size=capacity,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )
    server = reverb.Server([table])
    print(server.port, flush=True)
    sys.stdin.read()
    server.stop()


def main() -> None:
    if sys.argv[1] == "server":
        run_server(int(sys.argv[2]))
        return
    contender = ReverbDataset() if sys.argv[1] == "dataset" else Reverb()
    try:
        serve(contender)
    finally:
        contender.close()


if __name__ == "__main__":
    main()
