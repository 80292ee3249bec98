"""The controller behind Ray, on a real Redis."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from buffer.controller.config import ControllerFile
from buffer.controller.service import end, start, validate
from buffer.errors import ConfigError
from buffer.progress import StudentProgress
from buffer.replay import ReplayBuffer
from buffer.version import Version
from tests.buffer.servers import TcpServer, free_port
from tests.waiting import until

Configure = Callable[..., ControllerFile]
Progress = Callable[..., StudentProgress]


@pytest.mark.parametrize("policy", ["off", "fixed", "random", "learned"])
def test_every_policy_is_valid_as_it_comes(configure: Configure, policy: str) -> None:
    validate(configure(controller={"policy": policy}))


def test_why_it_failed_is_told_in_a_line_without_passwords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cause = RuntimeError("no answer from redis://user:secret@host")
    error = RayTaskError("run", "Traceback (most recent call last): ...", cause)

    def failed(asked: object, timeout: float | None = None) -> None:
        raise error

    monkeypatch.setattr(ray, "wait", lambda runs, timeout: (runs, []))
    monkeypatch.setattr(ray, "get", failed)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    assert end(None, "run") == "RuntimeError: no answer from redis://***@host"


@pytest.mark.parametrize("policy", ["off", "fixed"])
def test_policies_that_learn_from_nothing_need_no_probe_set(
    configure: Configure, policy: str
) -> None:
    validate(configure(controller={"policy": policy}, buffer={"probe_capacity": 0}))


@pytest.mark.parametrize(
    ("controller", "store", "message"),
    [
        ({"policy": "learned"}, {"probe_capacity": 0}, r"buffer\.probe_capacity \(0\): without"),
        (
            {"policy": "random"},
            {"probe_share": 0},
            r"probe_share \(0\): .*random would never",
        ),
        ({"policy": "learned", "kwargs": {"epsilon": 0.1}}, {}, r"epsilon \(0\.1\)"),
        ({"policy": "random", "kwargs": {"arms": {}}}, {}, r"arms \(\{\}\): .*nothing to choose"),
        (
            {"kwargs": {"arms": {"a": {"priority_exponent": 1.2}}}},
            {"importance_exponent": 0.9},
            r"arms\.a: priority_exponent \* importance_exponent \(1\.08\) is not below 1",
        ),
        (
            {"kwargs": {"arms": {"a": {"label_balance": 1.0}}}},
            {"selector": "uniform"},
            r"arms\.a \(label_balance\): without effect",
        ),
    ],
)
def test_impossible_combinations_are_refused(
    configure: Configure, controller: dict[str, Any], store: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(configure(controller=controller, buffer=store))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TcpServer]:
    server = TcpServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def client(configure: Configure, server: TcpServer) -> Iterator[ReplayBuffer]:
    config = configure()
    client = ReplayBuffer(config.buffer, url=server.url, run=config.run.name)
    yield client
    client.close()


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def deciding(
    configure: Configure,
    progress: Progress,
    server: TcpServer,
    client: ReplayBuffer,
    cluster: None,
    tmp_path: Path,
) -> tuple[Any, Any]:
    """As started: a controller that has decided once."""
    config = configure(controller={"interval_seconds": 0.2})
    client.publish_progress(progress(1, params=(0, 0)))
    started = start(config, url=server.url, log=tmp_path / "controller.jsonl")
    until(lambda: client.params().version == Version(1, 1))
    return started


@pytest.mark.integration
def test_the_actor_decides_answers_meanwhile_and_survives_its_process(
    progress: Progress, client: ReplayBuffer, deciding: tuple[Any, Any], tmp_path: Path
) -> None:
    actor, _ = deciding
    status = ray.get(actor.status.remote(), timeout=30)
    assert (status["policy"], status["decisions"]) == ("learned", 1)

    ray.kill(actor, no_restart=False)
    client.publish_progress(progress(2, params=(1, 1)))
    until(lambda: client.params().version == Version(2, 1))
    lines = (tmp_path / "controller.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    starts = [record for record in records if record["event"] == "start"]
    assert [record["resumed"] for record in starts] == [False, True]

    ray.get(actor.stop.remote(), timeout=30)
    ray.kill(actor)


@pytest.mark.integration
def test_one_that_dies_while_its_server_is_away_decides_again_when_that_is_back(
    progress: Progress, server: TcpServer, client: ReplayBuffer, deciding: tuple[Any, Any]
) -> None:
    actor, run = deciding
    server.save()
    server.stop()
    ray.kill(actor, no_restart=False)
    until(lambda: waits(actor))
    server.start()
    client.publish_progress(progress(2, params=(1, 1)))
    until(lambda: client.params().version == Version(2, 1))
    assert end(actor, run) is None


@pytest.mark.integration
def test_one_that_waits_for_its_server_can_be_stopped(
    configure: Configure, cluster: None, tmp_path: Path
) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    actor, run = start(configure(), url=url, log=tmp_path / "controller.jsonl")
    until(lambda: waits(actor))
    ray.get(actor.stop.remote(), timeout=30)
    assert ray.get(run, timeout=30) is None
    assert end(actor, run) is None


def waits(actor: Any) -> bool:
    """Whether it says that it waits for its server; it does not while its process is replaced."""
    try:
        status = ray.get(actor.status.remote(), timeout=30)
    except ray.exceptions.RayActorError:
        return False
    return "Redis at" in (status.get("reason") or "")
