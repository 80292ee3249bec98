"""Producers and consumers that are killed, and a server that is: every invariant holds afterwards.

A few seconds of it, and a minute for each case in ``make soak`` (``SOAK_SECONDS`` says how long).
Either goes on until each kind of event has happened.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from buffer.answers import RECORD
from buffer.codec import decode
from buffer.config import BufferTable
from buffer.errors import SchemaError
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.sample import Identity
from buffer.version import Version
from tests.buffer.crowd import LABELS, PLACES, numbered
from tests.buffer.servers import TcpServer
from tests.buffer.test_records import audit

CROWD = Path(__file__).with_name("crowd.py")
PRODUCERS, CONSUMERS = 4, 2
SHORT_SECONDS = 6.0
LONG_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
MOST_SECONDS = 120.0
"""What may be added until each event has happened."""
TIMEOUT_SECONDS = 0.3
FROZEN_SECONDS = (1.0, 2.5)
"""Less and more than all that redis-py does about it: four tries, and the pauses between them."""
RUN = "faults"

EVENTS = frozenset(
    (
        *(f"killed when {place}" for place in PLACES),
        *("killed from outside", "commits repeated", "inserts repeated"),
        *("answered after a time-out", "unavailable", "refused", "restarts"),
        *("duplicates", "redraws", "stale", "older", "insert_waits", "sample_waits"),
    )
)
"""The last line is of the buffer's own counters: since its restart, if that made it forget."""


class Crowd:
    """The processes, each started again under its name when it was killed.

    Args:
        url: of the server.
        table: limits of the buffer.
        folder: of what they tell.
    """

    def __init__(self, url: str, table: dict[str, Any], folder: Path) -> None:
        self._url = f"{url}?socket_timeout={TIMEOUT_SECONDS}"
        self._table, self._folder = json.dumps(table), folder
        self._started = 0
        self.events: Counter[str] = Counter()
        self.processes: dict[tuple[str, int], tuple[subprocess.Popen[bytes], Path]] = {}
        for part, count in (("producer", PRODUCERS), ("consumer", CONSUMERS)):
            for number in range(count):
                self._start((part, number))

    def _start(self, name: tuple[str, int]) -> None:
        self._started += 1
        said = self._folder / f"{self._started}.txt"
        command = [sys.executable, str(CROWD), name[0], self._url, RUN, str(name[1]), self._table]
        with said.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.processes[name] = process, said

    def revive(self) -> None:
        """Starts again who has killed itself; nobody may have ended in another way."""
        for name, (process, said) in list(self.processes.items()):
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, said.read_text()[-4000:]
                self.events += last_told(said)
                self._start(name)

    def kill(self, chance: random.Random) -> None:
        """SIGKILL for one that is at work, if there is one."""
        name = chance.choice(list(self.processes))
        process, said = self.processes[name]
        if last_told(said) and process.poll() is None:
            process.kill()
            process.wait()
            self.events["killed from outside"] += 1
            self.revive()

    def so_far(self) -> Counter[str]:
        """What has happened."""
        return sum((last_told(said) for _, said in self.processes.values()), Counter(self.events))

    def end(self) -> list[str]:
        """Ends all; what those said that had ended in another way."""
        failures = []
        for process, said in self.processes.values():
            process.kill()
            if process.wait() != -signal.SIGKILL:
                failures.append(said.read_text()[-4000:])
            self.events += last_told(said)
        self.processes.clear()
        return failures


def last_told(said: Path) -> Counter[str]:
    """The last whole line of what a process says."""
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - 4096))
        lines = [line for line in file.read().splitlines() if line.endswith(b"}")]
    return Counter(json.loads(lines[-1])) if len(lines) > 1 else Counter()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TcpServer]:
    server = TcpServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("restart", "eviction"), [("with its snapshot", "oldest"), ("without", "label_quota")]
)
def test_every_invariant_outlives_kills_and_a_restart(
    server: TcpServer, tmp_path: Path, restart: str, eviction: str
) -> None:
    outlive(server, tmp_path, restart, eviction, SHORT_SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + MOST_SECONDS + 60)
@pytest.mark.parametrize("restart", ["with its snapshot", "without"])
@pytest.mark.parametrize("eviction", ["oldest", "lowest_priority", "label_quota"])
def test_every_invariant_outlives_a_minute_of_kills(
    server: TcpServer, tmp_path: Path, restart: str, eviction: str
) -> None:
    outlive(server, tmp_path, restart, eviction, LONG_SECONDS)


def test_a_server_that_comes_back_with_an_older_snapshot_hands_out_no_identity_again(
    server: TcpServer,
) -> None:
    """Otherwise a cached image is taken for another one, and a late write for a later one."""
    replay = ReplayBuffer(BufferTable(capacity=4), url=server.url, run=RUN, seed=0)
    known: dict[tuple[int, ...], int] = {}
    for sequence in range(3):
        if sequence == 1:
            server.save()
        if sequence == 2:
            server.stop()
            server.start()
        made = {number: numbered(number, 1.0) for number in range(4 * sequence, 4 * sequence + 4)}
        replay.insert([*made.values()], producer="a", sequence=sequence)
        batch = replay.sample(100, seed=sequence)
        numbers = [int.from_bytes(image.tobytes(), "little") for image in batch.images]
        assert set(numbers) == set(made)
        for name, number in zip(batch.identities.tolist(), numbers, strict=True):
            assert known.setdefault(name, number) == number
    replay.close()


def outlive(server: TcpServer, folder: Path, restart: str, eviction: str, seconds: float) -> None:
    """Each client's own check of its draws is in ``crowd.py``: a wrong one ends its process."""
    table = {
        **{"capacity": 200, "probe_capacity": 0, "min_size_to_sample": 20},
        **{"eviction": eviction, "lease_seconds": 1.0},
        **{"samples_per_insert": 5.0, "error_buffer": 300.0},
    }
    replay = ReplayBuffer(BufferTable(**table), url=server.url, run=RUN, seed=0)
    crowd = Crowd(server.url, table, folder)
    try:
        torment(server, crowd, replay, seconds=seconds, saved=restart == "with its snapshot")
    finally:
        failures = crowd.end()
    assert failures == []
    events = crowd.so_far() + counted(replay)
    print(json.dumps(events, sort_keys=True))
    assert EVENTS - set(events) == set()
    check(server, replay)
    replay.close()


def torment(
    server: TcpServer, crowd: Crowd, replay: ReplayBuffer, *, seconds: float, saved: bool
) -> None:
    """Kills, freezes the server every few seconds, restarts it once in the middle."""
    chance, began = random.Random(seconds), time.monotonic()
    kill_at, freeze_at, frozen = began, began + seconds / 5, itertools.cycle(FROZEN_SECONDS)
    while (passed := time.monotonic() - began) < seconds or (
        passed < seconds + MOST_SECONDS and EVENTS - set(crowd.so_far() + counted(replay))
    ):
        time.sleep(0.05)
        crowd.revive()
        if began + passed > kill_at:
            crowd.kill(chance)
            kill_at += chance.uniform(0.3, 1.0)
        if began + passed > freeze_at:
            server.freeze(next(frozen))
            freeze_at += chance.uniform(3.0, 6.0)
        if saved and passed > seconds / 3 and not crowd.events["snapshots"]:
            server.save()
            crowd.events["snapshots"] += 1
        if passed > seconds / 2 and not crowd.events["restarts"]:
            server.stop()
            server.start()
            crowd.events["restarts"] += 1


def counted(replay: ReplayBuffer) -> Counter[str]:
    """The buffer's own counters."""
    info = replay.info()
    names = ("duplicates", "redraws", "insert_waits", "sample_waits", "evicted", "sampled")
    own = {name: getattr(info, name) for name in names}
    return Counter(own | info.updates._asdict())


def check(server: TcpServer, replay: ReplayBuffer) -> None:
    """What is there agrees with itself, and new work goes on as if nothing had been."""
    replay.set_params(
        SamplingParams(version=Version(9, 9), uniform_share=1.0, samples_per_insert=None)
    )
    with redis.Redis.from_url(server.url) as client:
        agree(client, replay)
        while lost := damaged(client):
            # Overwritten too late, or never written: what a draw meets it takes out.
            batch = replay.sample(4000, counted=False)
            drawn = batch.identities[["slot", "generation"]].tolist()
            assert not set(drawn) & lost
            labels = {slot: cell >> 16 for slot, cell in agree(client, replay).items()}
            slots = batch.identities["slot"].tolist()
            assert batch.predicted_classes.tolist() == [labels[slot] for slot in slots]
        made = [numbered(number, 1.0) for number in range(50)]
        assert replay.insert(made, producer="afterwards", sequence=1).inserted == 50
        assert damaged(client) == set()
        assert len(agree(client, replay)) == replay.info().size >= 50


def key(name: str) -> str:
    """The full name of a key."""
    return f"{{ssdkd:{RUN}:0}}:{name}"


def agree(client: redis.Redis, replay: ReplayBuffer) -> dict[int, int]:
    """Audits the records, and what ``info`` makes of them; the cell of each slot."""
    cells = audit(client, key, 200)
    info = replay.info()
    assert info.class_counts == Counter(cell >> 16 for cell in cells.values())
    assert info.level_counts == Counter(cell >> 8 & 0xFF for cell in cells.values())
    assert info.size == len(cells)
    return cells


def damaged(client: redis.Redis) -> set[tuple[int, int]]:
    """Slots and generations of samples without their payload; that of all others is right."""
    cells = audit(client, key, 200)
    records = np.frombuffer(client.get(key("slots")) or b"", dtype=RECORD)
    incarnation = int(client.hget(key("meta"), "incarnation") or 0)
    lost = set()
    for slot, cell in cells.items():
        generation = int(records["generation"][slot])
        try:
            name, sample = decode(client.get(key(f"x:{slot}")) or b"")
        except SchemaError:
            name = None
        if name != Identity(0, incarnation, slot, generation):
            lost.add((slot, generation))
            continue
        assert sample.predicted_class == cell >> 16
        assert int.from_bytes(sample.image.tobytes(), "little") % LABELS == cell >> 16
    return lost
