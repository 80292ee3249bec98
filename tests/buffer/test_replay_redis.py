"""What only the buffer in Redis has: other clients, lost and damaged payloads."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import redis

from buffer.codec import encode
from buffer.config import BufferTable
from buffer.errors import ProtocolMismatch, RateLimited, SchemaError
from buffer.interface import InsertResult
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.sample import Batch, Identity, Sample
from buffer.server import RedisServer
from buffer.version import NEVER, Version

Make = Callable[..., ReplayBuffer]
Samples = Callable[..., list[Sample]]
Key = Callable[[str], str]


def members(batch: Batch) -> set[int]:
    return {int(serial) for serial in batch.targets["logits"][:, 0]}


def test_clients_share_one_buffer(make_redis: Make, make_samples: Samples) -> None:
    one, other = make_redis(capacity=4), make_redis(capacity=4)
    one.insert(make_samples(4), producer="a", sequence=1)
    names = np.unique(other.sample(64, seed=0).identities)
    assert one.update_priorities(names, np.full(4, 2.0), version=Version(1, 1)).applied == 4
    other.set_params(SamplingParams(version=Version(1, 1), uniform_share=0.25))
    assert one.params().uniform_share == 0.25


def test_runs_do_not_share_buffers(server: RedisServer, make_samples: Samples, run: str) -> None:
    table = BufferTable(capacity=2)
    one, other = (ReplayBuffer(table, url=server.url, run=run + name) for name in ("-x", "-y"))
    one.insert(make_samples(2), producer="a", sequence=1)
    other.reset()
    assert (one.info().size, other.info().size) == (2, 0)
    assert one.sample(1).population == 2
    one.close()
    other.close()


def test_start_parameters_of_later_clients_are_ignored(make_redis: Make) -> None:
    make_redis(SamplingParams(uniform_share=0.5), capacity=2)
    assert make_redis(SamplingParams(uniform_share=0.9), capacity=2).params().uniform_share == 0.5


def test_clients_must_agree_on_the_limits(make_redis: Make) -> None:
    make_redis(capacity=4, lease_seconds=10.0)
    with pytest.raises(ProtocolMismatch, match=r"capacity \(5\) is 4 there"):
        make_redis(capacity=5, min_size_to_sample=4, lease_seconds=10.0)
    with pytest.raises(ProtocolMismatch, match=r"min_size_to_sample \(2\) is 4 there"):
        make_redis(capacity=4, min_size_to_sample=2, lease_seconds=10.0)
    with pytest.raises(ProtocolMismatch, match=r"lease_seconds \(11\) is 10 there"):
        make_redis(capacity=4, lease_seconds=11.0)


def test_a_fresh_buffer_leaves_nothing_of_an_earlier_one_with_other_limits(
    make_redis: Make,
    make_samples: Samples,
    client: redis.Redis,
    keys: Callable[[str], str],
) -> None:
    earlier = make_redis(capacity=6, probe_capacity=2)
    earlier.insert(make_samples(6), producer="a", sequence=1)
    fresh = make_redis(SamplingParams(uniform_share=0.25), fresh=True, capacity=3, probe_capacity=1)
    assert (fresh.info().size, fresh.info().inserted, fresh.info().capacity) == (0, 0, 3)
    assert fresh.params().uniform_share == 0.25
    assert list(client.scan_iter(keys("x:*").replace("{", "[{]"))) == []
    assert fresh.insert(make_samples(2), producer="b", sequence=1) == InsertResult(2, False)


def test_a_fresh_buffer_does_not_touch_one_of_another_protocol(
    make_redis: Make, client: redis.Redis, keys: Callable[[str], str]
) -> None:
    make_redis(capacity=4)
    client.hset(keys("meta"), "protocol", "999")
    with pytest.raises(ProtocolMismatch, match="protocol 999, this client has 2"):
        make_redis(fresh=True, capacity=4)
    assert client.hget(keys("meta"), "capacity") == b"4"


def test_a_restarted_producer_counts_from_the_start_again(
    make_redis: Make, make_samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    dead = make_redis(capacity=10)
    dead.insert(make_samples(2), producer="a", sequence=900)
    assert make_redis(capacity=10).insert(
        make_samples(2), producer="a", sequence=1
    ) == InsertResult(2, False)
    # Its predecessor was not dead after all: what it still sends is too late.
    assert caplog.messages == []
    assert dead.insert(make_samples(2), producer="a", sequence=901) == InsertResult(0, True)
    assert caplog.messages == ["a: a newer process inserts under this name, nothing stored"]


def test_a_producer_restarted_after_the_server_lost_its_data_inserts(
    make_redis: Make, make_samples: Samples, client: redis.Redis, run: str
) -> None:
    before = make_redis(capacity=10)
    before.insert(make_samples(1), producer="a", sequence=900)
    client.delete(*client.keys(f"*:{run}:*"))
    assert before.insert(make_samples(1), producer="a", sequence=901).inserted == 1
    after = make_redis(capacity=10)
    assert after.insert(make_samples(1), producer="a", sequence=1) == InsertResult(1, False)


def test_an_attempt_resumed_after_the_server_lost_its_data_is_the_newest(
    make_redis: Make, client: redis.Redis, run: str
) -> None:
    replay = make_redis(capacity=10)
    attempt = [replay.begin_attempt("distiller") for _ in range(3)][-1]
    client.delete(*client.keys(f"*:{run}:*"))
    replay.publish_student(b"late", version=Version(attempt, 900))
    resumed = Version(replay.begin_attempt("distiller"), 0)
    replay.publish_student(b"resumed", version=resumed)
    assert replay.fetch_student(newer_than=NEVER) == (resumed, b"resumed")


DAMAGES = [
    *("missing", "garbage", "truncated", "one bit", "other version"),
    *("older", "other slot", "other shape", "other target"),
]


def resealed(payload: bytes) -> bytes:
    """With the checksum of what it now is."""
    return payload[:-4] + struct.pack("<I", zlib.crc32(payload[:-4]))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_samples_are_drawn_again_and_taken_out(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key, damage: str
) -> None:
    replay = make_redis(capacity=10, cache_mebibytes=0)
    made = make_samples(10)
    replay.insert(made, producer="a", sequence=1)
    incarnation = int(replay.sample(1).identities["incarnation"][0])
    for slot in (2, 5, 7):
        key = keys(f"x:{slot}")
        payload = client.get(key)
        assert isinstance(payload, bytes)
        other = make_samples(1)[0]
        shape = replace(other, image=np.zeros((3, 4, 4), np.uint8))
        target = replace(other, targets={"logits": np.zeros(5, np.float32)})
        client.set(
            key,
            {
                "missing": b"",
                "garbage": b"x" * len(payload),
                "truncated": payload[:-1],
                "one bit": payload[:40] + bytes([payload[40] ^ 1]) + payload[41:],
                "other version": resealed(payload[:4] + b"\x09\x00" + payload[6:]),
                "older": encode(other, Identity(0, incarnation, slot, 0)),
                "other slot": encode(other, Identity(0, incarnation, slot + 1, 1)),
                "other shape": encode(shape, Identity(0, incarnation, slot, 1)),
                "other target": encode(target, Identity(0, incarnation, slot, 1)),
            }[damage],
        )
        if damage == "missing":
            client.delete(key)
    batch = replay.sample(200, seed=0)
    assert len(batch.images) == 200
    intact = {sample.member for i, sample in enumerate(made) if i not in (2, 5, 7)}
    assert members(batch) == intact
    info = replay.info()
    assert (info.size, info.evicted, info.sampled) == (7, 3, 201)
    assert 30 < info.redraws < 100
    assert np.allclose(np.unique(batch.probabilities), [1 / 10, 1 / 7], rtol=1e-9)
    assert members(replay.sample(200, seed=1)) == intact
    assert replay.info().redraws == info.redraws


def test_drawing_again_is_not_counted_by_the_limiter(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key
) -> None:
    replay = make_redis(capacity=10, samples_per_insert=1.0, error_buffer=50)
    replay.insert(make_samples(10), producer="a", sequence=1)
    client.delete(keys("x:3"), keys("x:4"))
    assert len(replay.sample(50, seed=0).images) == 50
    info = replay.info()
    assert (info.balance, info.sampled) == (-50, 50)
    assert info.redraws > 0


def test_a_buffer_of_nothing_but_damaged_samples_fills_again(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key
) -> None:
    replay = make_redis(capacity=4, samples_per_insert=1.0, error_buffer=70)
    replay.insert(make_samples(4), producer="a", sequence=1)
    client.delete(*[keys(f"x:{slot}") for slot in range(4)])
    with pytest.raises(RateLimited):
        replay.sample(64)
    assert replay.info().size == 0
    replay.insert(make_samples(4), producer="a", sequence=2)
    assert replay.sample(1).population == 4


def test_a_draw_is_given_up_after_too_many_damaged_samples(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key
) -> None:
    replay = make_redis(capacity=20)
    replay.insert(make_samples(20), producer="a", sequence=1)
    client.delete(*[keys(f"x:{slot}") for slot in range(20)])
    with pytest.raises(RateLimited, match="drawn in 8 rounds were evicted or damaged") as refusal:
        replay.sample(1)
    assert refusal.value.retry_after_seconds > 0
    assert replay.info().size == 12


def test_damaged_probe_samples_are_left_out(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key
) -> None:
    replay = make_redis(capacity=4, probe_capacity=4)
    made = make_samples(3, split="probe")
    replay.insert(made, producer="a", sequence=1)
    client.set(keys("x:5"), b"garbage")
    batch = replay.probe(4)
    assert batch.targets["logits"][:, 0].tolist() == [made[2].member, made[0].member]
    assert len(batch.identities) == len(batch.weights) == batch.population == 2


@pytest.mark.parametrize("value", [b"{", b'{"loss": "high"}', b'{"loss": null}'])
def test_progress_that_cannot_be_read_is_an_error(
    make_redis: Make, client: redis.Redis, keys: Key, value: bytes
) -> None:
    replay = make_redis(capacity=2)
    client.set(keys("progress"), value)
    with pytest.raises(SchemaError, match="stored progress cannot be read"):
        replay.progress()


def test_parameters_that_cannot_be_read_are_an_error(
    make_redis: Make, client: redis.Redis, keys: Key
) -> None:
    replay = make_redis(capacity=2)
    client.hset(keys("params"), "uniform_share", "7")
    with pytest.raises(SchemaError, match="stored sampling parameters cannot be read"):
        replay.params()


def test_the_schema_is_known_although_the_first_look_was_too_early(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Key
) -> None:
    replay = make_redis(capacity=4, probe_capacity=4, cache_mebibytes=0)
    assert len(replay.probe(1).identities) == 0
    replay.insert(make_samples(2, split="probe"), producer="a", sequence=1)
    incarnation = int(replay.probe(1).identities["incarnation"][0])
    other = make_samples(1, split="probe", image=np.zeros((3, 4, 4), np.uint8))[0]
    client.set(keys("x:4"), encode(other, Identity(0, incarnation, 4, 1)))
    assert len(replay.probe(4).identities) == 1


def test_samples_of_other_shards_are_counted_as_stale(
    make_redis: Make, make_samples: Samples
) -> None:
    replay = make_redis(capacity=4)
    replay.insert(make_samples(4), producer="a", sequence=1)
    names = replay.sample(3).identities
    names["shard"][:2] = 1
    assert replay.update_priorities(names, np.ones(3), version=Version(1, 1)) == (1, 2, 0)
    assert replay.info().updates == (1, 2, 0)


def test_a_damaged_student_is_an_error(make_redis: Make, client: redis.Redis, keys: Key) -> None:
    replay = make_redis(capacity=2)
    replay.publish_student(b"weights", version=Version(1, 1))
    client.append(keys("student"), b"x")
    with pytest.raises(SchemaError, match="student snapshot has 8 bytes of 7"):
        replay.fetch_student(newer_than=NEVER)


def test_a_flushed_server_is_filled_again_under_new_names(
    make_redis: Make, make_samples: Samples, client: redis.Redis, run: str
) -> None:
    replay = make_redis(SamplingParams(uniform_share=0.3), capacity=4)
    replay.insert(make_samples(4), producer="a", sequence=1)
    old = replay.sample(8).identities
    client.delete(*client.keys(f"*:{run}:*"))
    assert replay.params().uniform_share == 0.3
    with pytest.raises(RateLimited, match="too few samples"):
        replay.sample(1)
    assert replay.update_priorities(old, np.ones(8), version=Version(1, 1)).stale == 8
    replay.insert(make_samples(4), producer="a", sequence=2)
    assert not np.isin(replay.sample(8).identities, old).any()


def test_a_reset_leaves_no_payload_behind(
    make_redis: Make, make_samples: Samples, client: redis.Redis, run: str
) -> None:
    replay = make_redis(capacity=4, probe_capacity=2)
    replay.insert(make_samples(4) + make_samples(2, split="probe"), producer="a", sequence=1)
    replay.reset()
    left = {name.decode().split("}:")[1] for name in client.keys(f"*:{run}:*")}
    assert left == {"meta", "params", "counters", "slots", "epochs"}


def test_a_reset_of_a_large_buffer_takes_little_memory(make_redis: Make) -> None:
    replay = make_redis(capacity=50_000)
    tracemalloc.start()
    try:
        replay.reset()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6


def test_many_draws_spend_their_seed_well(make_redis: Make, make_samples: Samples) -> None:
    """Neighbouring seeds give unrelated draws although the server's generator is a simple one."""
    replay = make_redis(capacity=100)
    replay.insert(make_samples(100), producer="a", sequence=1)
    slots = np.array([replay.sample(1, seed=seed).identities["slot"][0] for seed in range(500)])
    assert len(np.unique(slots)) > 90
    assert abs(np.corrcoef(slots[:-1].astype(float), slots[1:].astype(float))[0, 1]) < 0.15
