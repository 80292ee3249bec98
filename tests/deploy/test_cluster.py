"""What a cluster is asked before a run; clusters that refuse one are in integration/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from buffer.config import named_files
from deploy.cluster import unreachable
from deploy.config import DEFAULT_CONFIG, load
from tests.buffer.servers import TcpServer

NOBODY = "redis://127.0.0.1:1"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[TcpServer]:
    server = TcpServer(tmp_path)
    yield server
    server.stop()


def test_one_server_of_several_is_enough_to_begin(redis_server: TcpServer) -> None:
    assert unreachable(redis_server.url) is None
    assert unreachable(f"{NOBODY},{redis_server.url}") is None


def test_a_server_out_of_reach_is_named_with_what_to_do_but_no_password() -> None:
    problem = unreachable("redis://pipeline:hunter2@127.0.0.1:1")
    assert problem is not None
    assert re.fullmatch(
        rf"buffer\.url: Redis at {NOBODY}: .*; every node has to reach it: .*SSDKD_REDIS_URL",
        problem,
    )


def test_what_is_no_address_is_said_as_it_is() -> None:
    problem = unreachable("127.0.0.1:6380")
    assert problem is not None
    assert "is no Redis URL" in problem
    assert "every node" not in problem


def test_files_that_nodes_need_are_those_that_are_no_functions() -> None:
    config = load(DEFAULT_CONFIG, ["student.weights=student.pt"])
    assert named_files(config) == {"student.weights": "student.pt"}
