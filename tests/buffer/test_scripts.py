"""The operations one by one: what happens between the steps of an insert."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import redis

from buffer.batches import identity_array
from buffer.cache import PayloadCache
from buffer.codec import prepare
from buffer.connection import Connection
from buffer.errors import BufferUnavailable
from buffer.keys import Keys
from buffer.limits import Limits
from buffer.payloads import Payloads
from buffer.scripts import (
    Insert,
    Refused,
    Reserved,
    Scripts,
)

SCHEMA = {"image": "uint8 [3, 2, 2]"}
LEVEL_OF_ONE = 128 << 8


def reserve(scripts: Scripts, insert: Insert, samples: int, probes: int = 0) -> Reserved:
    answer = scripts.reserve(insert, samples, probes, SCHEMA)
    assert isinstance(answer, Reserved)
    return answer


def commit(scripts: Scripts, insert: Insert, reserved: Reserved) -> int:
    cells = np.full(len(reserved.pairs), LEVEL_OF_ONE)
    return scripts.commit(insert, reserved.incarnation, cells)


def points(n: int) -> np.ndarray:
    return np.random.default_rng(0).random(n)


def test_a_repeated_reservation_gets_the_same_slots(make_scripts: Callable[..., Scripts]) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    first, again = reserve(scripts, insert, 2, 1), reserve(scripts, insert, 2, 1)
    assert first.pairs.tolist() == again.pairs.tolist() == [(0, 1), (1, 1), (4, 1)]
    assert reserve(scripts, Insert("a", 1, 2), 1).pairs.tolist() == [(2, 1)]


def test_a_reservation_repeated_too_late_leaves_the_samples_of_others_alone(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts, slow, fast = make_scripts(), Insert("slow", 1, 1), Insert("fast", 1, 1)
    late = reserve(scripts, slow, 2)
    commit(scripts, fast, reserve(scripts, fast, 3))
    assert late.pairs.tolist() == [(0, 1), (1, 1)]
    anew = reserve(scripts, slow, 2)
    assert anew.pairs.tolist() == [(1, 2), (2, 2)]
    assert commit(scripts, slow, anew) == 2
    assert scripts.info().counters["size"] == 4


def test_a_reservation_that_came_later_than_its_lease_is_made_again(
    make_scripts: Callable[..., Scripts], client: redis.Redis
) -> None:
    scripts = make_scripts(Limits(4, 4, 1, None, 0.2))
    before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    client.client_pause(300)
    assert len(reserve(scripts, Insert("a", 1, 1), 2).pairs) == 2
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 2


def test_a_lease_too_short_for_the_server_is_said_to_be(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts = make_scripts(Limits(4, 4, 1, None, 1e-9))
    message = r"buffer.lease_seconds \(1e-09\): the server's answers took longer 3 times"
    with pytest.raises(BufferUnavailable, match=message):
        reserve(scripts, Insert("a", 1, 1), 2)


def test_a_hole_in_the_first_lap_does_not_keep_the_buffer_from_warming_up(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts = make_scripts(Limits(4, 4, 4, None, 300.0))
    for name, samples in (("a", 1), ("dead", 2), ("b", 1), ("c", 2)):
        insert = Insert(name, 1, 1)
        reserved = reserve(scripts, insert, samples)
        if name != "dead":
            assert isinstance(scripts.sample(points(1)), Refused)
            commit(scripts, insert, reserved)
    assert scripts.info().counters["inserted"] == 4
    assert scripts.info().counters["size"] == 3
    assert not isinstance(scripts.sample(points(1)), Refused)


def test_only_committed_samples_are_seen(make_scripts: Callable[..., Scripts]) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    reserved = reserve(scripts, insert, 2, 1)
    assert isinstance(scripts.sample(points(1)), Refused)
    assert len(scripts.probe(4).pairs) == 0
    assert commit(scripts, insert, reserved) == 3
    assert len(scripts.probe(4).pairs) == 1
    drawn = scripts.sample(points(50))
    assert not isinstance(drawn, Refused)
    assert set(drawn.draws["slot"]) == {0, 1}


def test_a_repeated_commit_gets_the_same_answer_and_changes_nothing(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    reserved = reserve(scripts, insert, 2, 1)
    assert [commit(scripts, insert, reserved) for _ in range(3)] == [3, 3, 3]
    picture = scripts.info()
    assert (picture.counters["size"], picture.counters["probe_size"]) == (2, 1)
    assert picture.counters["inserted"] == 2


def test_a_committed_insert_is_a_duplicate_afterwards(make_scripts: Callable[..., Scripts]) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 5)
    commit(scripts, insert, reserve(scripts, insert, 1))
    for late in (insert, Insert("a", 1, 4)):
        assert scripts.reserve(late, 1, 0, SCHEMA) == "duplicate"
    assert scripts.reserve(Insert("a", 0, 9), 1, 0, SCHEMA) == "superseded"
    assert scripts.info().counters["duplicates"] == 3
    assert isinstance(scripts.reserve(Insert("a", 2, 0), 1, 0, SCHEMA), Reserved)


def test_a_commit_after_the_ring_wrapped_makes_only_what_is_left_visible(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts, slow, fast = make_scripts(), Insert("slow", 1, 1), Insert("fast", 1, 1)
    late = reserve(scripts, slow, 3)
    commit(scripts, fast, reserve(scripts, fast, 3))
    assert late.pairs["slot"].tolist() == [0, 1, 2]
    assert commit(scripts, slow, late) == 1
    drawn = scripts.sample(points(200))
    assert not isinstance(drawn, Refused)
    seen = set(drawn.draws[["slot", "generation"]].tolist())
    assert seen == {(3, 1), (0, 2), (1, 2), (2, 1)}


def test_a_late_commit_does_not_touch_slots_that_are_reserved_anew(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts, slow, fast = make_scripts(), Insert("slow", 1, 1), Insert("fast", 1, 1)
    late, current = reserve(scripts, slow, 2), reserve(scripts, fast, 4)
    assert commit(scripts, slow, late) == 0
    assert commit(scripts, fast, current) == 4


def test_a_commit_of_a_lost_reservation_is_no_error(make_scripts: Callable[..., Scripts]) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    late = reserve(scripts, insert, 2)
    newer = Insert("a", 1, 2)
    reserve(scripts, newer, 1)
    assert commit(scripts, insert, late) == 0
    assert scripts.info().counters["size"] == 0


def test_a_commit_across_a_reset_makes_nothing_visible(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    late = reserve(scripts, insert, 2)
    make_scripts(incarnation=2).reset()
    reserve(scripts, insert, 2)
    assert commit(scripts, insert, late) == 0
    assert scripts.info().counters["size"] == 0


def test_holes_left_by_dead_producers_are_passed_over(make_scripts: Callable[..., Scripts]) -> None:
    scripts = make_scripts()
    reserve(scripts, Insert("dead", 1, 1), 2)
    for sequence in range(1, 6):
        insert = Insert("a", 1, sequence)
        assert commit(scripts, insert, reserve(scripts, insert, 1)) == 1
    assert scripts.info().counters["size"] == 4


def test_reserving_evicts_at_once(make_scripts: Callable[..., Scripts]) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    commit(scripts, insert, reserve(scripts, insert, 4))
    reserve(scripts, Insert("a", 1, 2), 3)
    assert scripts.info().counters["size"] == 1
    drawn = scripts.sample(points(50))
    assert not isinstance(drawn, Refused)
    assert set(drawn.draws["slot"]) == {3}


def test_an_insert_in_progress_counts_as_permitted(make_scripts: Callable[..., Scripts]) -> None:
    scripts = make_scripts(Limits(4, 4, 1, 10.0, 300.0), samples_per_insert=5.0)
    first = Insert("a", 1, 1)
    commit(scripts, first, reserve(scripts, first, 1))
    second = Insert("a", 1, 2)
    reserved = reserve(scripts, second, 2)
    assert scripts.permit("b", 1) is not None
    commit(scripts, second, reserved)
    scripts.sample(points(10))
    assert scripts.permit("b", 1) is None


def test_an_emptied_buffer_lets_producers_in_whatever_the_balance(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts = make_scripts(Limits(4, 4, 1, 10.0, 300.0), samples_per_insert=5.0)
    for sequence in (1, 2):
        insert = Insert("a", 1, sequence)
        reserved = reserve(scripts, insert, 2)
        commit(scripts, insert, reserved)
        if sequence == 1:
            scripts.discard(reserved.incarnation, reserved.pairs)
    assert scripts.permit("a", 2) is not None
    scripts.discard(reserved.incarnation, reserved.pairs)
    assert scripts.info().counters["size"] == 0
    assert isinstance(scripts.sample(points(1)), Refused)
    assert scripts.permit("a", 2) is None


def test_discarding_spares_what_has_been_replaced(make_scripts: Callable[..., Scripts]) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    old = reserve(scripts, insert, 4)
    commit(scripts, insert, old)
    newer = Insert("a", 1, 2)
    commit(scripts, newer, reserve(scripts, newer, 3))
    assert scripts.discard(old.incarnation + 1, old.pairs) == 0
    assert scripts.discard(old.incarnation, old.pairs) == 1
    assert scripts.discard(old.incarnation, old.pairs) == 0
    assert scripts.info().counters["size"] == 3


def test_a_server_that_lost_its_data_is_initialised_again(
    make_scripts: Callable[..., Scripts], client: redis.Redis, run: str
) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    reserved = reserve(scripts, insert, 2)
    client.delete(*client.keys(f"*:{run}:*"))
    assert commit(scripts, insert, reserved) == 0
    assert scripts.info().counters["size"] == 0
    assert commit(scripts, insert, reserve(scripts, insert, 2)) == 2


def test_a_late_payload_of_an_older_generation_is_not_taken_for_the_newer(
    make_scripts: Callable[..., Scripts], connection: Connection, run: str, make_samples: Callable
) -> None:
    cache = PayloadCache(0, 8)
    scripts, payloads = make_scripts(), Payloads(connection, Keys(run), cache)
    slow, fast = Insert("slow", 1, 1), Insert("fast", 1, 1)
    late, current = reserve(scripts, slow, 1), reserve(scripts, fast, 4)
    names = [
        identity_array(0, made.incarnation, made.pairs["slot"], made.pairs["generation"])
        for made in (late, current)
    ]
    payloads.store(prepare(make_samples(4)), names[1])
    payloads.store(prepare(make_samples(1)), names[0])
    _, intact = payloads.read(names[1])
    overwritten = current.pairs["slot"] == late.pairs["slot"][0]
    assert intact.tolist() == (~overwritten).tolist()
