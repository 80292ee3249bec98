"""Producers and consumers that are killed, and a server that is: every invariant holds afterwards.

``FAULT_SECONDS`` says how long the killing goes on; ``make soak`` takes a minute for each case.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from buffer.config import BufferTable
from buffer.replay import ReplayBuffer
from tests.buffer.crowd import LABELS
from tests.buffer.servers import TcpServer
from tests.buffer.test_records import audit

CROWD = Path(__file__).with_name("crowd.py")
SECONDS = float(os.environ.get("FAULT_SECONDS", "8"))
PRODUCERS, CONSUMERS = 4, 2


class Crowd:
    """The processes, each started again under its name when it was killed."""

    def __init__(self, url: str, table: dict[str, Any]) -> None:
        self._url, self._table = url, json.dumps(table)
        self.processes = {
            (part, number): self._start(part, number)
            for part, count in (("producer", PRODUCERS), ("consumer", CONSUMERS))
            for number in range(count)
        }
        self.kills = 0
        self.told: list[dict[str, int]] = []

    def _start(self, part: str, number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(CROWD), part, self._url, "faults", str(number), self._table],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self, name: tuple[str, int], *, again: bool = True) -> None:
        """SIGKILL; what it had said by then is kept, and it must not have ended by itself."""
        process = self.processes.pop(name)
        ended_before = process.poll() is not None
        process.kill()
        output, errors = process.communicate()
        assert not ended_before, errors
        lines = [line for line in output.splitlines() if line.endswith("}")]
        self.told += [json.loads(line) for line in lines[-1:]]
        if again:
            self.kills += 1
            self.processes[name] = self._start(*name)

    def end(self) -> None:
        """Ends all, whatever has become of one of them."""
        failures = []
        for name in list(self.processes):
            try:
                self.kill(name, again=False)
            except AssertionError as failure:
                failures.append(failure)
        assert not failures, failures


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TcpServer]:
    server = TcpServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("restart", ["with its snapshot", "without"])
@pytest.mark.parametrize("eviction", ["oldest", "label_quota"])
def test_every_invariant_outlives_kills_and_a_restart(
    server: TcpServer, restart: str, eviction: str
) -> None:
    """Each client's own check of its draws is in ``crowd.py``: a wrong one ends its process."""
    table = {
        **{"capacity": 200, "probe_capacity": 0, "min_size_to_sample": 20},
        **{"eviction": eviction, "lease_seconds": 1.0},
    }
    chance = random.Random(SECONDS)
    crowd = Crowd(server.url, table)
    try:
        middle, end = (time.monotonic() + SECONDS * share for share in (0.5, 1.0))
        restarted = False
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.05, 0.4) * (1 + 20 / SECONDS))
            crowd.kill(chance.choice(list(crowd.processes)))
            if not restarted and time.monotonic() > middle:
                if restart == "with its snapshot":
                    server.save()
                server.stop()
                server.start()
                restarted = True
        time.sleep(2)
    finally:
        crowd.end()
    check(server, table, crowd)


def check(server: TcpServer, table: dict[str, Any], crowd: Crowd) -> None:
    """What is there agrees with itself, and new work goes on as if nothing had been."""
    assert crowd.kills > 3
    assert sum(told["drawn"] for told in crowd.told) > 500
    replay = ReplayBuffer(BufferTable(**table), url=server.url, run="faults", seed=0)
    with redis.Redis.from_url(server.url) as client:
        cells = audit(client, lambda name: f"{{ssdkd:faults:0}}:{name}", table["capacity"])
        info = replay.info()
        assert len(cells) == info.size == sum(info.class_counts.values())
        # Every committed sample that is intact says what its cell says.
        batch = replay.sample(4000, seed=1, counted=False)
        labels = {slot: cell >> 16 for slot, cell in cells.items()}
        for slot, label in zip(
            batch.identities["slot"].tolist(), batch.predicted_classes.tolist(), strict=True
        ):
            assert labels[slot] == label
        numbers = [int.from_bytes(image.tobytes(), "little") for image in batch.images]
        assert (np.array(numbers) % LABELS == batch.predicted_classes).all()
        assert len(audit(client, lambda name: f"{{ssdkd:faults:0}}:{name}", 200)) > 0
    replay.close()
