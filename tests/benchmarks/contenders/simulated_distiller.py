"""A distiller whose GPU is simulated: the real loader and pusher, and a sleep for each step."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from buffer.config import BufferTable
from buffer.connect import connect
from buffer.version import Version
from distiller.loader import PriorityPusher, ReplayLoader

SETTLE_SECONDS = 1.0
"""Steps before this are not counted: all begin at once, and get in each other's way."""
PUSHES_AHEAD = 4
"""Few, so that a server that lags behind with updates is noticed within a window."""


class Window(NamedTuple):
    """What a distiller is to do."""

    seconds: float
    step_seconds: float
    batch: int


class Worked(NamedTuple):
    """What it did."""

    steps: int
    """In all; each wanted its priorities to be pushed."""
    rate: float
    """Steps a second, once settled."""


def distil(orders: Connection, table: dict[str, Any], url: str, run: str, warming: int) -> None:
    """Works through windows until it is told ``None``.

    Args:
        orders: where a :class:`Window` comes in and :class:`Worked` goes out.
        table: limits of the buffer.
        url: of the server.
        run: names the buffer.
        warming: images to draw before, so that they are in the cache.
    """
    replay = connect(BufferTable(**table), url=url, run=run)
    for _ in range(warming // 256):
        replay.sample(256, counted=False)
    orders.send("ready")
    while (window := orders.recv()) is not None:
        seed = time.monotonic_ns()
        loader = ReplayLoader(
            replay, batch_size=window.batch, prefetch=2, seed=seed, max_waiting_seconds=60.0
        )
        pusher = PriorityPusher(replay, limit=PUSHES_AHEAD)
        with loader, pusher:
            worked = train(loader, pusher, window)
        orders.send(worked)
    replay.close()


def train(loader: ReplayLoader, pusher: PriorityPusher, window: Window) -> Worked:
    """Takes batches and pushes priorities, one window long."""
    rng, begun = np.random.default_rng(), time.monotonic()
    ends: list[float] = []
    while time.monotonic() - begun < window.seconds:
        batch = loader.poll(0.2)
        if batch is None:
            continue
        time.sleep(window.step_seconds)
        priorities = batch.weights * rng.lognormal(size=window.batch)
        ends.append(time.monotonic())
        # By the clock, which all share: workers of one student are at the same step.
        pusher.push(batch.identities, priorities, Version(1, int(ends[-1] / window.step_seconds)))
    counted = [end for end in ends if end - begun > SETTLE_SECONDS]
    rate = (len(counted) - 1) / (counted[-1] - counted[0]) if len(counted) > 1 else 0.0
    return Worked(len(ends), rate)
