"""What a cluster is asked before a run; clusters that refuse one are in integration/."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from buffer.config import named_files
from buffer.errors import ConfigError, Interrupted
from deploy.cluster import await_nodes, unreachable
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from deploy.interrupt import Interrupt
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


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    """A cluster of one node with four CPUs and a GPU, which need not be at work for it."""
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def configured(seconds: float, *, workers: int = 1) -> PipelineConfig:
    sets = {"run.nodes_seconds": seconds, "synthesizer.actors": 3, "distiller.workers": workers}
    return load(DEFAULT_CONFIG, [f"{key}={value}" for key, value in sets.items()])


@pytest.mark.integration
@pytest.mark.usefixtures("one_node")
def test_a_cluster_that_has_room_for_each_service_but_not_for_both_is_refused() -> None:
    need = {"CPU": 2.0, "GPU": 1.0}
    with pytest.raises(ConfigError) as refused:
        await_nodes(configured(0.1), need, need, interrupted=lambda: False)
    assert str(refused.value) == (
        "distiller.workers (1): no node has room for the last of a synthesizer (2 CPU and 1 GPU) "
        "and 1 x distiller (2 CPU and 1 GPU), none came within run.nodes_seconds (0.1), the run "
        "would wait forever; add such a node, or ask for less; the nodes have 4 CPU and 1 GPU"
    )


@pytest.mark.integration
@pytest.mark.usefixtures("one_node")
def test_further_synthesizers_may_wait_for_nodes_but_no_worker() -> None:
    actor, worker = {"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}
    await_nodes(configured(0.1), actor, worker, interrupted=lambda: False)
    with pytest.raises(ConfigError, match=r"distiller\.workers \(2\): no node has room"):
        await_nodes(configured(0.1, workers=2), actor, {"CPU": 2.0}, interrupted=lambda: False)


@pytest.mark.integration
@pytest.mark.usefixtures("one_node")
@pytest.mark.parametrize(
    ("actor", "worker", "service"), [(1.0, 5.0, "distiller"), (5.0, 1.0, "synthesizer")]
)
def test_who_has_no_node_at_all_is_named(actor: float, worker: float, service: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{service}\.cpus, {service}\.gpus: no node has 5 CPU, none came"
    ):
        await_nodes(configured(0.1), {"CPU": actor}, {"CPU": worker}, interrupted=lambda: False)


@pytest.mark.integration
@pytest.mark.usefixtures("one_node")
def test_who_waits_for_nodes_can_be_interrupted() -> None:
    with Interrupt() as interrupt:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(Interrupted, match="nothing was started"):
            await_nodes(configured(60), {"CPU": 5.0}, {"CPU": 1.0}, interrupted=interrupt.is_set)
    assert time.monotonic() - began < 10


def test_files_that_nodes_need_are_those_that_are_no_functions() -> None:
    config = load(DEFAULT_CONFIG, ["student.weights=student.pt"])
    assert named_files(config) == {"student.weights": "student.pt"}
