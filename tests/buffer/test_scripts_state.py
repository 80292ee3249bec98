"""What scripts agree on with a server: limits, parameters, incarnations and epochs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import pytest
import redis

from buffer.errors import ProtocolMismatch, SchemaError
from buffer.keys import Keys
from buffer.limits import Limits
from buffer.params import SamplingParams
from buffer.scripts import (
    Insert,
    Reserved,
    Scripts,
    params_fields,
    params_of,
)
from buffer.version import Version

SCHEMA = {"image": "uint8 [3, 2, 2]"}


def insert_one(scripts: Scripts, insert: Insert) -> None:
    reserved = scripts.reserve(insert, 1, 0, SCHEMA)
    assert isinstance(reserved, Reserved)
    assert scripts.commit(insert, reserved.incarnation, np.full(1, 128 << 8)) == 1


def test_other_limits_are_refused_by_name(
    make_scripts: Callable[..., Scripts],
) -> None:
    make_scripts(Limits(4, 4, 1, 10.0, 300.0))
    message = r"capacity \(8\) is 4 there.*Use another run.name, or the same settings"
    with pytest.raises(ProtocolMismatch, match=message):
        make_scripts(Limits(8, 4, 1, 10.0, 300.0))
    with pytest.raises(ProtocolMismatch, match=r"error_buffer \(11\) is 10 there"):
        make_scripts(Limits(4, 4, 1, 11.0, 300.0))
    assert make_scripts(Limits(4, 4, 1, None, 300.0)).info().counters["size"] == 0


def test_another_protocol_is_refused(
    make_scripts: Callable[..., Scripts], client: redis.Redis, run: str
) -> None:
    make_scripts()
    client.hset(Keys(run).scripted[0], "protocol", 0)
    with pytest.raises(ProtocolMismatch, match=r"protocol \(2\) is 0 there"):
        make_scripts()


def test_scripts_survive_a_server_that_forgot_them(
    make_scripts: Callable[..., Scripts], client: redis.Redis
) -> None:
    scripts = make_scripts()
    client.script_flush()
    assert scripts.info().counters["size"] == 0


def test_epochs_grow_whatever_the_server_forgets(
    make_scripts: Callable[..., Scripts], client: redis.Redis, run: str
) -> None:
    scripts = make_scripts()
    epochs = [scripts.begin_epoch("a") for _ in range(3)]
    client.delete(*client.keys(f"*:{run}:*"))
    late = Insert("a", epochs[-1] + 1000, 7)
    insert_one(scripts, late)
    epochs += [scripts.begin_epoch("a"), scripts.begin_epoch("a")]
    assert epochs == sorted(set(epochs))
    assert late.epoch < epochs[3]
    assert abs(scripts.begin_epoch("b") - time.time()) < 60


def test_parameters_keep_every_digit() -> None:
    params = SamplingParams(
        version=Version(3, 2**32 - 1), uniform_share=1 / 3, samples_per_insert=0.1 + 0.2
    )
    assert params_of(json.loads(json.dumps(params_fields(params)))) == params


def test_parameters_that_cannot_be_read_are_refused() -> None:
    fields = params_fields(SamplingParams())
    for damaged in (
        {**fields, "uniform_share": "x"},
        {"uniform_share": "0.5"},
        {**fields, "a": "1"},
    ):
        with pytest.raises(SchemaError, match="stored sampling parameters cannot be read"):
            params_of(damaged)


def test_a_repeated_reset_of_one_incarnation_changes_nothing(
    make_scripts: Callable[..., Scripts],
) -> None:
    scripts, insert = make_scripts(), Insert("a", 1, 1)
    other = make_scripts(incarnation=2)
    other.reset()
    insert_one(scripts, insert)
    other.reset()
    assert scripts.info().counters["size"] == 1
