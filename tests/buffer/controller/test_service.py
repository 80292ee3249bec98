"""The controller behind Ray, on a real Redis."""

import json
import time
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
from buffer.server import RedisServer
from buffer.version import Version

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
def replay(configure: Configure) -> Iterator[tuple[ReplayBuffer, str]]:
    config = configure()
    with RedisServer.start() as server:
        client = ReplayBuffer(config.buffer, url=server.url, run=config.run.name)
        yield client, server.url
        client.close()


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.mark.integration
def test_the_actor_decides_answers_meanwhile_and_survives_its_process(
    configure: Configure,
    progress: Progress,
    replay: tuple[ReplayBuffer, str],
    cluster: None,
    tmp_path: Path,
) -> None:
    client, url = replay
    config = configure(controller={"interval_seconds": 0.2})
    client.publish_progress(progress(1, params=(0, 0)))
    actor, _ = start(config, url=url, log=tmp_path / "controller.jsonl")

    until(lambda: client.params().version == Version(1, 1))
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
