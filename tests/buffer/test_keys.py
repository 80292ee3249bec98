from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from buffer import keys as schema
from buffer.interface import Replay
from buffer.keys import Keys
from buffer.progress import StudentProgress
from buffer.version import Version


def test_all_keys_of_a_shard_share_one_hash_tag() -> None:
    keys = Keys("run", 3)
    names = [*keys.scripted, *keys.payloads([1, 2]), keys.epochs, Keys.version_of(keys.student)]
    assert all(name.startswith("{ssdkd:run:3}:") for name in names)
    assert len(set(names)) == len(names) - 1  # the version of the student is in KEYS too


def test_every_key_that_is_ever_written_is_in_the_schema(
    make_redis: Callable[..., Replay],
    make_samples: Callable[..., list[Any]],
    client: redis.Redis,
    run: str,
) -> None:
    replay = make_redis(capacity=4, probe_capacity=2, samples_per_insert=5.0)
    replay.insert(make_samples(4) + make_samples(1, split="probe"), producer="a", sequence=1)
    replay.request_permit(1, producer="a")
    replay.publish_progress(StudentProgress())
    replay.publish_student(b"w", version=Version(1, 1))
    replay.begin_attempt("distiller")
    client.set(Keys(run).owner, "token")
    assert schema.__doc__ is not None
    table = schema.__doc__.split("=\n")[1]
    documented = {line.split()[0]: line.split()[1] for line in table.splitlines() if line[:1] > " "}
    documented.pop("==================", None)
    found = {}
    for name in client.scan_iter(f"{{ssdkd:{run}:*"):
        short = name.decode().split("}:")[1]
        if short not in documented:
            prefix = short.split(":")[0]
            short = {"cell": "cell:<cell>", "x": "x:<slot>"}[prefix]
        found[short] = client.type(name).decode()
    assert found == documented
