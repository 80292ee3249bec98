"""``python -m buffer.controller`` as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from buffer.controller.__main__ import main
from buffer.controller.config import ControllerFile
from buffer.progress import StudentProgress
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from buffer.version import Version

Configure = Callable[..., ControllerFile]


@pytest.fixture
def file(tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SSDKD_REDIS_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    tables["run"]["out"] = str(tmp_path / "out")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tables))
    return path


@pytest.mark.integration
@pytest.mark.parametrize("end", ["signal", "training"])
def test_it_decides_against_a_running_redis_until_it_is_told_or_the_training_ends(
    configure: Configure, progress: Callable[..., StudentProgress], file: Path, end: str
) -> None:
    config = configure()
    with RedisServer.start() as server:
        replay = ReplayBuffer(config.buffer, url=server.url, run=config.run.name)
        replay.publish_progress(progress(1, params=(0, 0)))
        command = [sys.executable, "-m", "buffer.controller", "--config", str(file)]
        process = subprocess.Popen(
            [*command, "--set", "controller.interval_seconds=0.1"],
            env={**os.environ, "SSDKD_REDIS_URL": server.url},
        )
        try:
            deadline = time.monotonic() + 60
            while replay.params().version < Version(1, 1):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if end == "signal":
                process.send_signal(signal.SIGTERM)
            else:
                replay.publish_progress(progress(2, phase="finished"))
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            replay.close()
    lines = (file.parent / "out" / "controller.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines[:2]] == ["start", "decision"]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([], "buffer.url (None): a controller on its own needs a running Redis"),
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


def test_a_redis_that_is_not_there_is_said_in_one_message(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"buffer.url=unix://{file.parent / 'none.sock'}"
    assert main(["--config", str(file), "--set", url]) == 1
    assert capsys.readouterr().err.startswith("controller: ")
