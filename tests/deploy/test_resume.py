"""What a pipeline leaves for the one that goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from buffer.config import BufferTable
from buffer.errors import ConfigError
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from deploy.config import PipelineConfig, load, locate
from deploy.pipeline import as_before
from deploy.report import write_config
from deploy.resume import SNAPSHOT, STATE, Keeper, State, begin, forget, read
from deploy.supervisor import Totals
from tests.waiting import until

TOTALS = Totals(rounds=7, busy_seconds=2.5)
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


def keeper(replay: ReplayBuffer, folder: Path, state: State) -> Keeper:
    return Keeper(replay, folder, lambda: state._replace(totals=TOTALS), 1e9)


def die(replay: ReplayBuffer, folder: Path, state: State) -> State:
    """A pipeline that fails; what the next one finds."""
    with pytest.raises(KeyError), keeper(replay, folder, state):
        raise KeyError
    found = read(folder)
    assert found is not None
    return found


def test_a_run_that_ended_has_nothing_to_go_on_with_and_one_that_failed_has(
    replay: ReplayBuffer, tmp_path: Path
) -> None:
    assert read(tmp_path) is None
    state = begin(replay, "mine", tmp_path, None)
    assert read(tmp_path) == state
    assert not state.finished
    failed = die(replay, tmp_path, state)
    assert failed == state._replace(totals=TOTALS)
    assert (tmp_path / SNAPSHOT).exists()
    with keeper(replay, tmp_path, state) as ending:
        assert read(tmp_path) == failed
        ending.finish()
    assert read(tmp_path) == failed._replace(finished=True)


def test_a_state_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(json.dumps({"run": "mine"}))
    with pytest.raises(ConfigError, match=r"run\.out .*cannot go on"):
        read(tmp_path)


def test_a_buffer_that_is_still_the_runs_own_is_kept(replay: ReplayBuffer, tmp_path: Path) -> None:
    state = begin(replay, "mine", tmp_path, None)
    fill(replay)
    for _ in range(3):  # without a word in between: refused, or killed at once
        state = begin(replay, "mine", tmp_path, state)
        assert state == read(tmp_path)
        assert replay.info().size == 12


def test_a_buffer_that_somebody_had_meanwhile_is_restored(
    replay: ReplayBuffer, tmp_path: Path
) -> None:
    first = begin(replay, "mine", tmp_path, None)
    fill(replay)
    earlier = die(replay, tmp_path, first)
    begin(replay, "mine", tmp_path / "elsewhere", None)
    replay.reset()
    fill(replay, 3)
    state = begin(replay, "mine", tmp_path, earlier)
    assert replay.info().size == 12
    assert state.mark not in (None, first.mark)


def test_another_runs_buffer_on_a_server_that_lost_its_data_is_not_taken_for_ones_own(
    replay: ReplayBuffer, server: RedisServer, tmp_path: Path
) -> None:
    earlier = begin(replay, "mine", tmp_path, None)
    fill(replay)
    redis.Redis.from_url(server.url).flushall()
    replay.reset()
    other = begin(replay, "mine", tmp_path / "elsewhere", None)
    assert other.attempt == earlier.attempt, "else the test shows nothing"
    fill(replay, 3)
    begin(replay, "mine", tmp_path, earlier)
    assert replay.info().size == 0


def test_what_another_run_left_is_nothing_to_go_on_with(
    replay: ReplayBuffer, tmp_path: Path
) -> None:
    fill(replay)
    die(replay, tmp_path, begin(replay, "theirs", tmp_path, None))
    forget(tmp_path)
    replay.reset()
    state = begin(replay, "mine", tmp_path, None)
    redis_lost = state._replace(mark="another")
    begin(replay, "mine", tmp_path, redis_lost)
    assert replay.info().size == 0


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_snapshot_that_can_be_read_the_buffer_is_filled_anew(
    replay: ReplayBuffer, tmp_path: Path, damaged: bool
) -> None:
    fill(replay)
    if damaged:
        (tmp_path / SNAPSHOT).write_bytes(b"no archive")
    begin(replay, "mine", tmp_path, State("mine", 5))
    assert replay.info().size == 0


def test_a_folder_that_is_away_for_a_while_ends_no_saving(
    replay: ReplayBuffer, tmp_path: Path
) -> None:
    first, second, folder = tmp_path / "first", tmp_path / "second", tmp_path / "checkpoints"
    first.mkdir()
    second.mkdir()
    (tmp_path / "no-folder").write_text("in the way")
    folder.symlink_to(first)
    state = begin(replay, "mine", folder, None)
    fill(replay)
    with Keeper(replay, folder, lambda: state, 0.05) as saving:
        until((folder / SNAPSHOT).exists)
        turn(folder, tmp_path / "no-folder")
        time.sleep(0.3)
        turn(folder, second)
        until((second / SNAPSHOT).exists)
        until((second / STATE).exists)
        saving.finish()


def turn(link: Path, target: Path) -> None:
    """Let the link lead to the target, at once: the keeper makes any folder that it misses."""
    other = link.with_name("other-link")
    other.symlink_to(target)
    other.replace(link)


def configured(**changes: Any) -> PipelineConfig:
    sets = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load(locate("digits"), sets)


def test_a_run_goes_on_with_the_teacher_it_had_made(tmp_path: Path) -> None:
    made = tmp_path / "teacher.safetensors"
    write_config(configured(**{"teacher.weights": str(made)}), tmp_path)
    assert as_before(configured(), tmp_path).teacher.weights == "deploy.digits:teacher"
    made.write_bytes(b"weights")
    found = as_before(configured(**{"synthesizer.actors": 4}), tmp_path)
    assert found.teacher.weights == str(made)
    assert found.synthesizer.actors == 4


@pytest.mark.parametrize(
    ("field", "setting", "value"),
    [
        ("student.kwargs", "student.kwargs.width", 8),
        ("teacher.mean", "teacher.mean", [0.4]),
        ("teacher.weights", "teacher.weights", "/another.safetensors"),
        ("synthesizer.method", "synthesizer.method", "another.package:Method"),
    ],
)
def test_a_run_does_not_go_on_with_another_network_or_method(
    tmp_path: Path, field: str, setting: str, value: Any
) -> None:
    write_config(configured(), tmp_path)
    with pytest.raises(ConfigError, match=rf"^{field} \(.*\) is .* would mix what it learnt"):
        as_before(configured(**{setting: value}), tmp_path)
