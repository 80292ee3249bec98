"""``python -m buffer.controller`` as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.util import list_named_actors

from buffer.controller.__main__ import main
from buffer.controller.config import ControllerFile
from buffer.progress import StudentProgress
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from buffer.version import Version

Configure = Callable[..., ControllerFile]
Progress = Callable[..., StudentProgress]


@pytest.fixture
def file(tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SSDKD_REDIS_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    tables["run"]["out"] = str(tmp_path / "out")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tables))
    return path


@pytest.fixture
def cluster() -> Iterator[str]:
    context = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@contextmanager
def deciding(
    config: ControllerFile, file: Path, first: StudentProgress, **environment: str
) -> Iterator[tuple["subprocess.Popen[bytes]", ReplayBuffer]]:
    """The process and its buffer, after its first decision."""
    with RedisServer.start() as server:
        replay = ReplayBuffer(config.buffer, url=server.url, run=config.run.name)
        replay.publish_progress(first)
        command = [sys.executable, "-m", "buffer.controller", "--config", str(file)]
        process = subprocess.Popen(
            [*command, "--set", "controller.interval_seconds=0.1"],
            env={**os.environ, "SSDKD_REDIS_URL": server.url, **environment},
        )
        try:
            deadline = time.monotonic() + 60
            while replay.params().version < Version(1, 1):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process, replay
        finally:
            process.kill()
            process.wait()
            replay.close()


def events(file: Path) -> list[str]:
    lines = (file.parent / "out" / "controller.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_decides_in_its_own_process_until_it_is_told_to_end(
    configure: Configure, progress: Progress, file: Path, number: signal.Signals
) -> None:
    with deciding(configure(), file, progress(1, params=(0, 0))) as (process, _):
        process.send_signal(number)
        assert process.wait(30) == 0
    assert events(file)[:2] == ["start", "decision"]


@pytest.mark.integration
def test_it_ends_with_the_training(configure: Configure, progress: Progress, file: Path) -> None:
    with deciding(configure(), file, progress(1, params=(0, 0))) as (process, replay):
        replay.publish_progress(progress(2, phase="finished"))
        assert process.wait(30) == 0


@pytest.mark.integration
@pytest.mark.parametrize("end", ["signal", "training"])
def test_it_decides_as_an_actor_of_a_cluster_that_is_named(
    configure: Configure, progress: Progress, file: Path, cluster: str, end: str
) -> None:
    first = progress(1, params=(0, 0))
    with deciding(configure(), file, first, RAY_ADDRESS=cluster) as (process, replay):
        assert "controller" in [actor["name"] for actor in list_named_actors(all_namespaces=True)]
        if end == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            replay.publish_progress(progress(2, phase="finished"))
        assert process.wait(30) == 0
    assert events(file)[:2] == ["start", "decision"]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([], "buffer.url (None): a controller on its own needs a Redis server"),
        (["controller.policy=off"], "controller.policy (off): there is nothing to run"),
        (["controller.policy=clever"], "controller.policy ('clever')"),
        (["buffer.url=redis://localhost", "buffer.probe_capacity=0"], "without probe samples"),
    ],
)
def test_what_cannot_run_is_said_in_one_message(
    file: Path, assignments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for assignment in assignments for part in ("--set", assignment)]
    assert main(["--config", str(file), *sets]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("cluster", [(), ("--set", "run.ray_address=127.0.0.1:1")])
def test_a_redis_that_is_not_there_is_said_in_one_message(
    file: Path, cluster: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"buffer.url=unix://{file.parent / 'none.sock'}"
    assert main(["--config", str(file), "--set", url, *cluster]) == 1
    assert capsys.readouterr().err.startswith("controller: Redis at ")
