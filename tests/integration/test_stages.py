"""A service of a running pipeline is killed at a stage of its work that the test has chosen."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import redis
from numpy.typing import NDArray

from buffer.answers import COMMITTED, PAIR, RECORD
from buffer.codec import decode
from buffer.errors import SchemaError
from buffer.sample import Identity
from buffer.sources import source
from tests.buffer.servers import TcpServer
from tests.buffer.test_records import audit
from tests.integration.conftest import survivors
from tests.integration.relay import Relay

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(420)]

StartRun = Callable[..., Any]
CAPACITY, PRODUCER = 600, "synthesizer-0"
RESERVED = 1
ENDLESS = ("run.seconds=null", "run.steps=1000000")


def digest(operation: str) -> bytes:
    """What a script is called by."""
    return sha1(source(operation).encode()).hexdigest().encode()


STAGES = {
    "before it reserves": (digest("reserve"), False),
    "when it has reserved": (b"\r\nMSET\r\n", False),
    "when the payloads are written": (digest("commit"), False),
    "when it has committed": (digest("commit"), True),
}
"""The request that gets stuck, and whether the server has got it."""


class Insert(NamedTuple):
    """The newest insert of a producer, as the buffer knows it."""

    epoch: int
    committed: bool
    visible: int
    pairs: NDArray[np.void]
    """Slots and generations of what is not committed."""


class Records:
    """What a buffer's server holds."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)

    def key(self, name: str) -> str:
        """The full name of a key."""
        return f"{{ssdkd:demo:0}}:{name}"

    def newest_insert(self) -> Insert:
        """Of the synthesizer."""
        packed = self.client.hget(self.key("seen"), PRODUCER) or b""
        epoch, _, committed, visible = struct.unpack_from("<4I", packed)
        return Insert(epoch, committed == 1, visible, np.frombuffer(packed[16:], dtype=PAIR))

    def states(self, pairs: NDArray[np.void]) -> set[int]:
        """The states of slots; -1 for one that has been taken since."""
        records = self.records()[pairs["slot"]]
        same = records["generation"] == pairs["generation"]
        return set(np.where(same, records["state"].astype(int), -1).tolist())

    def payloads(self, pairs: NDArray[np.void]) -> set[bool]:
        """Whether these slots have the payloads of these generations."""
        incarnation = int(self.client.hget(self.key("meta"), "incarnation") or 0)
        found = set()
        for slot, generation in pairs.tolist():
            try:
                name, _ = decode(self.client.get(self.key(f"x:{slot}")) or b"")
            except SchemaError:
                name = None
            found.add(name == Identity(0, incarnation, slot, generation))
        return found

    def records(self) -> NDArray[np.void]:
        """Of all slots."""
        return np.frombuffer(self.client.get(self.key("slots")) or b"", dtype=RECORD)

    def counter(self, name: str) -> float:
        """One of the buffer's own."""
        return float(self.client.hget(self.key("counters"), name) or 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TcpServer]:
    server = TcpServer(tmp_path / "redis")
    yield server
    server.stop()


def test_a_synthesizer_killed_at_any_stage_leaves_nothing_half_done(
    start_run: StartRun, server: TcpServer
) -> None:
    records, holes = Records(server.url), []
    with Relay(server.port) as relay:
        run = start_run(*ENDLESS, f"buffer.url={relay.url}")
        run.until(run.reached(5))
        for stage, (words, answered) in STAGES.items():
            dead = kill_at(run, relay, words, answered=answered)
            found = records.newest_insert()
            check(stage, found, records)
            run.until(lambda found=found: goes_on(records, after=found))
            (successor,) = run.find("synthesizer")
            assert successor.pid != dead.pid
            holes.append(found.pairs[found.pairs["slot"] < CAPACITY])
        run.until(lambda: records.states(np.concatenate(holes)) == {-1})
        os.killpg(run.process.pid, signal.SIGINT)
        result, _ = run.end(code=130)
    assert result["synthesizer_restarts"] == len(STAGES)
    assert records.counter("duplicates") == 0
    slots = audit(records.client, records.key, CAPACITY)
    images = [
        decode(records.client.get(records.key(f"x:{slot}")) or b"")[1].image for slot in slots
    ]
    assert len({image.tobytes() for image in images}) == len(images)


def kill_at(run: Any, relay: Relay, words: bytes, *, answered: bool) -> psutil.Process:
    """SIGKILL to the synthesizer while a request of its is stuck; it is dead when this returns."""
    (victim,) = run.find("synthesizer")
    caught = relay.catch(words, answered=answered)
    assert caught.wait(60)
    victim.kill()
    assert survivors([victim]) == []
    return victim


def check(stage: str, found: Insert, records: Records) -> None:
    """What the buffer holds of the insert in which the synthesizer was killed."""
    if stage == "before it reserves":
        assert found.committed
        assert RESERVED not in records.records()["state"]
    elif stage == "when it has reserved":
        assert not found.committed
        assert records.states(found.pairs) == {RESERVED}
        assert records.payloads(found.pairs) == {False}
    elif stage == "when the payloads are written":
        assert not found.committed
        assert records.states(found.pairs) == {RESERVED}
        assert records.payloads(found.pairs) == {True}
    else:
        assert found.committed
        assert found.visible == 100
        assert (records.records()["state"] == COMMITTED).sum() >= found.visible


def goes_on(records: Records, *, after: Insert) -> bool:
    """Whether a successor has inserted, under an epoch of its own."""
    newest = records.newest_insert()
    return newest.epoch > after.epoch and newest.committed


def test_a_rank_that_is_killed_has_all_ranks_started_again(start_run: StartRun) -> None:
    run = start_run(*ENDLESS, "distiller.workers=2")
    committed = run.out / "checkpoints/distiller/checkpoint_manager_snapshot.json"
    run.until(committed.exists)
    victim, survivor = run.find("distiller")
    victim.kill()
    assert survivors([victim]) == []
    run.until(lambda: run.journal()[-1]["version"][0] == 2)
    reached = run.journal()[-1]["version"][1]
    assert survivors([survivor]) == []  # it could only have waited for the one that died
    assert len(run.find("distiller")) == 2
    run.until(run.reached(reached + 50))
    os.killpg(run.process.pid, signal.SIGINT)
    result, _ = run.end(code=130)
    assert result["attempts"] == 2
    # Not from the start again: an attempt reports as soon as it begins.
    assert min(line["version"][1] for line in run.journal() if line["version"][0] == 2) > 0
