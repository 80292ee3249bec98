"""What a pipeline leaves for the one that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from buffer.config import BufferTable
from buffer.errors import ConfigError
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from deploy.resume import ROLE, SNAPSHOT, STATE, Keeper, State, read, recover
from deploy.supervisor import Totals

TABLE = BufferTable(capacity=20, probe_capacity=4)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer.start() as server:
        yield server


@pytest.fixture
def replay(server: RedisServer, tmp_path: Path) -> Iterator[ReplayBuffer]:
    replay = ReplayBuffer(TABLE, url=server.url, run=tmp_path.name)
    yield replay
    replay.close()


def fill(replay: ReplayBuffer, count: int = 12) -> None:
    image = np.zeros((1, 2, 2), dtype=np.uint8)
    samples = [Sample(image, i % 3, 0.5, 1.0 + i, producer="a") for i in range(count)]
    replay.insert(samples, producer="a", sequence=1)


def keeper(replay: ReplayBuffer, folder: Path, attempt: int = 1) -> Keeper:
    totals = Totals(rounds=7, busy_seconds=2.5)
    return Keeper(replay, folder, lambda: State("mine", attempt, totals), 1e9)


def test_a_run_that_ended_has_nothing_to_go_on_with_and_one_that_failed_has(
    replay: ReplayBuffer, tmp_path: Path
) -> None:
    assert read(tmp_path) is None
    with keeper(replay, tmp_path):
        assert read(tmp_path) == State("mine", 1, Totals(rounds=7, busy_seconds=2.5))
    ended = read(tmp_path)
    assert ended is not None
    assert ended.finished
    with pytest.raises(KeyError), keeper(replay, tmp_path):
        raise KeyError
    failed = read(tmp_path)
    assert failed is not None
    assert not failed.finished
    assert (tmp_path / SNAPSHOT).exists()


def test_a_state_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(json.dumps({"run": "mine"}))
    with pytest.raises(ConfigError, match=r"run\.out .*cannot go on"):
        read(tmp_path)


def test_a_buffer_that_nobody_else_had_is_kept(replay: ReplayBuffer, tmp_path: Path) -> None:
    earlier = State("mine", replay.begin_attempt(ROLE), Totals())
    fill(replay)
    assert recover(replay, tmp_path, earlier, replay.begin_attempt(ROLE)) == "kept"
    assert replay.info().size == 12


def test_a_buffer_that_somebody_had_meanwhile_is_restored(
    replay: ReplayBuffer, tmp_path: Path
) -> None:
    earlier = State("mine", replay.begin_attempt(ROLE), Totals())
    fill(replay)
    with pytest.raises(KeyError), keeper(replay, tmp_path, earlier.attempt):
        raise KeyError
    replay.begin_attempt(ROLE)
    replay.reset()
    fill(replay, 3)
    assert recover(replay, tmp_path, earlier, replay.begin_attempt(ROLE)) == "restored"
    assert replay.info().size == 12


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_snapshot_that_can_be_read_the_buffer_is_filled_anew(
    replay: ReplayBuffer, tmp_path: Path, damaged: bool
) -> None:
    earlier = State("mine", 5, Totals())
    fill(replay)
    if damaged:
        (tmp_path / SNAPSHOT).write_bytes(b"no archive")
    assert recover(replay, tmp_path, earlier, replay.begin_attempt(ROLE)) == "empty"
    assert replay.info().size == 0
