"""What one Redis pays for a synthesizer's round and a distiller's step, and how many it can serve.

``python -m tests.benchmarks.costs [--quick]`` prints Markdown. Processor time of the server with
all its system calls (``INFO cpu``) and bytes each way (``INFO stats``), loopback TCP, one client;
medians of blocks of calls, whose kinds alternate.

A round is a synthesizer's own, without its GPU (:mod:`tests.benchmarks.contenders.simulated`):
permit, notices, insert. A step is a draw and an update of all its priorities. The full buffer
changes between any two of them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np

from buffer.connect import connect
from buffer.interface import Replay
from buffer.version import NEVER, Version
from tests.benchmarks.contenders.simulated import (
    LARGE,
    ROUND_SECONDS,
    SMALL,
    SNAPSHOT_SECONDS,
    STEP_SECONDS,
    Meter,
    Setting,
    configuration,
    filled,
    one_synthesizer,
    row,
    snapshot,
)
from tests.buffer.servers import TcpServer

BLOCKS, CALLS = (3, 5) if "--quick" in sys.argv else (9, 10)
FULL = 0.7
"""Of a core: what a server should be busy at most, that nobody waits for long."""
NETWORK = 1.25e9
"""10 Gbit/s in bytes."""
Cost = dict[str, float]
"""Of one call: ``cpu`` seconds, bytes ``in`` and ``out``."""


def measure(meter: Meter, calls: dict[str, Callable[[], object]]) -> dict[str, Cost]:
    """Medians of each call, by turns."""
    blocks: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(BLOCKS):
        for name, call in calls.items():
            meter.restart()
            for _ in range(CALLS):
                call()
            blocks[name].append(meter.read())
    return {
        name: {key: statistics.median(b[key] for b in taken) / CALLS for key in taken[0]}
        for name, taken in blocks.items()
    }


def stepping(replay: Replay, batch: int) -> Callable[[], object]:
    """A distiller's step."""
    numbers, rng = count(1), np.random.default_rng(0)

    def step() -> None:
        drawn = replay.sample(batch)
        newer = Version(1, next(numbers))
        replay.update_priorities(
            drawn.identities, drawn.weights * rng.lognormal(size=batch), version=newer
        )

    return step


def costs(url: str, setting: Setting, folder: Path) -> dict[str, Cost]:
    """Of everything that is done often; of several servers the sum."""
    config = configuration(setting, folder, 0.0, cache_mebibytes=0)
    cached = configuration(setting, folder, 0.0, cache_mebibytes=1024).buffer
    run, batch, meter = config.run.name, setting.batch, Meter(url)
    with closing(filled(config, url)) as replay:
        synthesizer = one_synthesizer(config, replay, "synthesizer-0")
        synthesizer.step()  # prepares
        found = measure(meter, {"a round": synthesizer.step})
        replay.publish_student(snapshot(config), version=Version(1, 1))
        with closing(connect(cached, url=url, run=run)) as reader:
            for _ in range(20 * setting.capacity // batch):
                reader.sample(batch)
            steps = {
                "a step, all fetched": stepping(replay, batch),
                "a step, all in the cache": stepping(reader, batch),
                "a student snapshot": lambda: replay.fetch_student(newer_than=NEVER),
            }
            found |= measure(meter, steps)
        replay.reset()
    return found


def show(setting: Setting, found: dict[str, Cost], servers: int) -> None:
    """Prints what was measured, and what follows."""
    print(f"\n### {setting.title}, servers: {servers}\n")
    columns = ("", "server, ms", "us an image", "KB in", "KB out")
    row(*columns)
    row(*["---"] * len(columns))
    for name, cost in found.items():
        each = "" if "snapshot" in name else f"{1e6 * cost['cpu'] / setting.batch:.1f}"
        moved = (f"{cost[key] / 1000:,.1f}" for key in ("in", "out"))
        row(name, f"{1000 * cost['cpu']:.2f}", each, *moved)
    print(f"\nServed with a server busy for {FULL:.0%}, or at 10 Gbit/s, of one kind alone:\n")
    row("", "by cores", "images a second", "by the network")
    row(*["---"] * 4)
    for name in ("a round", "a step, all fetched", "a step, all in the cache"):
        often, cpu, data = load(found, name, servers)
        who = name.replace("a round", "synthesizers").replace("a step", "distillers")
        most = FULL / cpu
        row(who, f"{most:,.0f}", f"{most * often * setting.batch:,.0f}", f"{NETWORK / data:,.0f}")


def load(found: dict[str, Cost], name: str, servers: int) -> tuple[float, float, float]:
    """Of one worker, a second: rounds or steps, cores and bytes (one way) of the busiest server.

    That is the first one: student snapshots are nowhere else.
    """
    cost, rare = found[name], found["a student snapshot"]
    often = 1.0 / (ROUND_SECONDS if name == "a round" else STEP_SECONDS)
    seldom = 1.0 / SNAPSHOT_SECONDS if name == "a round" else 0.0
    spent = {key: often * cost[key] / servers + seldom * rare[key] for key in ("cpu", "in", "out")}
    return often, spent["cpu"], max(spent["in"], spent["out"])


def main() -> None:
    """Prints all tables."""
    with tempfile.TemporaryDirectory() as folder:
        servers = [TcpServer(Path(folder) / name) for name in "ab"]
        try:
            for setting in (SMALL, LARGE):
                for number in (1, 2):
                    url = ",".join(server.url for server in servers[:number])
                    show(setting, costs(url, setting, Path(folder)), number)
        finally:
            for server in servers:
                server.stop()


if __name__ == "__main__":
    main()
