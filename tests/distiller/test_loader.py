from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

from buffer.config import BufferTable
from buffer.errors import BufferUnavailable, Starved
from buffer.memory import InMemoryReplayBuffer
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from buffer.version import Version
from distiller.loader import PriorityPusher, ReplayLoader

TABLE = BufferTable(capacity=64, min_size_to_sample=8, probe_capacity=0)


@pytest.fixture
def replay(make_samples):
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    replay.insert(make_samples(64), producer="p", sequence=0)
    return replay


@pytest.fixture
def stopped_server():
    """A client of a server that answered once and is gone."""
    with RedisServer.start() as server:
        client = ReplayBuffer(TABLE, url=server.url, run="loader")
    yield client
    client.close()


def _loader(replay, **settings):
    defaults = {"batch_size": 8, "prefetch": 2, "seed": 0, "max_waiting_seconds": 30.0}
    return ReplayLoader(replay, **{**defaults, **settings})


def _eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)


def _threads(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_one_seed_draws_one_sequence_of_batches(replay):
    def drawn(seed):
        with _loader(replay, seed=seed) as loader:
            return np.stack([loader.poll(10.0).identities["slot"] for _ in range(3)])

    np.testing.assert_array_equal(drawn(5), drawn(5))
    assert not np.array_equal(drawn(5), drawn(6))


def test_no_more_batches_are_drawn_ahead_than_asked_for(replay):
    with _loader(replay, prefetch=3) as loader:
        _eventually(lambda: replay.info().sampled == 3 * 8)
        time.sleep(0.05)
        assert replay.info().sampled == 3 * 8
        assert loader.poll(1.0) is not None
        _eventually(lambda: replay.info().sampled == 4 * 8)


def test_the_loader_waits_until_the_buffer_is_filled(make_samples):
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    with _loader(replay) as loader:
        assert loader.poll(0.05) is None
        replay.insert(make_samples(8), producer="p", sequence=0)
        assert loader.poll(10.0) is not None
        assert loader.waiting_seconds >= 0.05


def test_both_sides_count_every_refused_draw(make_samples):
    table = TABLE.model_copy(update={"samples_per_insert": 1.0, "error_buffer": 8.0})
    replay, waited = InMemoryReplayBuffer(table, seed=0), []
    replay.insert(make_samples(8), producer="p", sequence=0)
    with _loader(replay, prefetch=3, note=waited.append) as loader:
        assert loader.poll(10.0) is not None
        _eventually(lambda: len(waited) >= 3)
        replay.insert(make_samples(16), producer="p", sequence=1)
        assert loader.poll(10.0) is not None
    # About what the limiter says; the last wait may have been ended by the end of the loader.
    assert all(0.03 < seconds < 0.5 for seconds in waited[:-1])
    assert len(set(waited)) == len(waited) == replay.info().sample_waits


def test_refusals_do_not_change_the_sequence_of_draws(make_samples):
    def drawn(late):
        replay = InMemoryReplayBuffer(TABLE, seed=0)
        samples = make_samples(8)
        if not late:
            replay.insert(samples, producer="p", sequence=0)
        with _loader(replay) as loader:
            if late:
                _eventually(lambda: replay.info().sample_waits > 0)
                replay.insert(samples, producer="p", sequence=0)
            return np.stack([loader.poll(10.0).identities["slot"] for _ in range(3)])

    np.testing.assert_array_equal(drawn(late=True), drawn(late=False))


def test_a_buffer_that_is_filling_slowly_is_not_starving(make_samples):
    table = BufferTable(capacity=64, min_size_to_sample=8, probe_capacity=0)
    replay, now = InMemoryReplayBuffer(table, seed=0), 0.0

    def refused_again():
        before = replay.info().sample_waits
        # The second refusal from now on has seen the new time.
        _eventually(lambda: replay.info().sample_waits >= before + 2)

    with _loader(replay, max_waiting_seconds=10.0, clock=lambda: now) as loader:
        for sequence, sample in enumerate(make_samples(7)):
            refused_again()
            now += 9.0
            replay.insert([sample], producer="p", sequence=sequence)
        assert loader.poll(0.01) is None
        refused_again()
        now += 11.0
        with pytest.raises(Starved, match="could be drawn for so long, and nothing was inserted"):
            loader.poll(10.0)


def test_ages_are_counted_from_the_students_step(make_samples):
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    replay.insert(make_samples(8, step=30), producer="p", sequence=0)
    with _loader(replay, student_step=lambda: 42) as loader:
        batch = loader.poll(10.0)
    assert set(batch.ages.tolist()) == {12}


def test_a_buffer_that_stays_empty_starves_the_loader():
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    with (
        _loader(replay, max_waiting_seconds=0.05) as loader,
        pytest.raises(
            Starved,
            match=r"max_waiting_seconds \(0\.05\): no batch of 8 could .*; the buffer says: .",
        ),
    ):
        loader.poll(10.0)


def test_a_loader_that_failed_goes_on_failing():
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    with _loader(replay, max_waiting_seconds=0.0) as loader:
        for _ in range(2):
            with pytest.raises(Starved):
                loader.poll(10.0)


def test_an_unreachable_buffer_is_named_when_patience_ends(stopped_server):
    with (
        _loader(stopped_server, max_waiting_seconds=0.0) as loader,
        pytest.raises(BufferUnavailable, match="Redis at unix:"),
    ):
        loader.poll(30.0)


def test_errors_of_the_thread_reach_the_consumer(replay):
    with (
        _loader(replay, batch_size=5000) as loader,
        pytest.raises(ValueError, match=r"n \(5000\) is not in"),
    ):
        loader.poll(10.0)


def test_closing_ends_the_thread_also_while_it_waits():
    replay = InMemoryReplayBuffer(TABLE, seed=0)
    with _loader(replay, max_waiting_seconds=60.0):
        _eventually(lambda: replay.info().sample_waits > 0)
        started = time.monotonic()
    assert time.monotonic() - started < 5.0
    assert not _threads("replay-loader")


def test_closing_ends_the_thread_also_when_it_has_drawn_all_it_may(replay):
    with _loader(replay):
        _eventually(lambda: replay.info().sampled == 2 * 8)
    assert not _threads("replay-loader")


def _push(pusher, replay, step, priority):
    batch = replay.sample(8, seed=0)
    identities = np.unique(batch.identities)
    pusher.push(identities, np.full(len(identities), priority), Version(1, step))
    return len(identities)


def test_priorities_reach_the_buffer(replay):
    with PriorityPusher(replay) as pusher:
        count = _push(pusher, replay, 1, 50.0)
        _eventually(lambda: replay.info().updates.applied == count)
    before, after = 1 / 64, replay.sample(64, seed=1).probabilities.max()
    assert after > 3 * before


def test_what_waits_is_pushed_before_the_end(replay):
    with PriorityPusher(replay) as pusher:
        count = sum(_push(pusher, replay, step, 2.0) for step in range(1, 6))
    assert replay.info().updates.applied == count
    assert not _threads("priority-pusher")


def test_the_oldest_update_is_dropped_when_too_many_wait(replay, caplog):
    pusher = PriorityPusher(replay, limit=2)
    identities = np.unique(replay.sample(64, seed=0).identities)
    for step, count in ((1, 1), (2, 2), (3, 4)):
        pusher.push(identities[:count], np.full(count, 2.0), Version(1, step))
    with caplog.at_level(logging.WARNING), pusher:
        pass
    assert replay.info().updates.applied == 2 + 4
    assert "priority updates lost: 1 because newer ones came faster" in caplog.text


def test_updates_are_lost_without_harm_when_the_buffer_is_unreachable(
    replay, stopped_server, caplog
):
    with caplog.at_level(logging.WARNING), PriorityPusher(stopped_server) as pusher:
        for step in (1, 2):
            _push(pusher, replay, step, 2.0)
    assert "2 because the buffer could not be reached" in caplog.text


def test_nothing_is_logged_when_no_update_was_lost(replay, caplog):
    with caplog.at_level(logging.WARNING), PriorityPusher(replay) as pusher:
        _push(pusher, replay, 1, 2.0)
    assert not caplog.records


def test_an_impossible_update_surfaces_at_the_next_push(replay):
    with PriorityPusher(replay) as pusher:
        _push(pusher, replay, 1, -1.0)
        _eventually(lambda: not _threads("priority-pusher"))
        with pytest.raises(ValueError, match="is not a finite number >= 0"):
            _push(pusher, replay, 2, 1.0)
