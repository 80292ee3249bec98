"""The pipeline's own metrics and its discovery of exporters, with a real Ray."""

from __future__ import annotations

import json
import os
import resource
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from buffer.config import BufferTable
from buffer.memory import InMemoryReplayBuffer
from buffer.metrics import FOLDER
from deploy import monitoring as module
from deploy.config import DEFAULT_CONFIG, load
from deploy.monitoring import Monitoring
from deploy.supervisor import Supervisor
from tests.waiting import until

Watch = Callable[[Path], Monitoring]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module, "RETRY_SECONDS", 1.0)

    def make(folder: Path) -> Monitoring:
        config = load(DEFAULT_CONFIG, ["monitoring.port=0", "monitoring.node_port=0"])
        replay = InMemoryReplayBuffer(BufferTable(capacity=4))
        supervisor = Supervisor(lambda number: None, 0)
        return Monitoring(config, replay, supervisor, {FOLDER: str(folder)})

    return make


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def nodes(monitoring: Monitoring) -> list[str]:
    """The targets that are exporters of nodes."""
    monitoring.look()
    with urllib.request.urlopen(f"{monitoring.address}/targets") as answer:
        groups: list[dict[str, Any]] = json.load(answer)
    return [g["targets"][0] for g in groups if g["labels"]["exporter"] == "node"]


def test_a_pipeline_that_cannot_listen_exports_nothing_and_goes_on(
    watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monitoring = watch(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with monitoring:
            assert monitoring.address is None
            monitoring.look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "monitoring.port (0): no metrics are exported: " in caplog.text


@pytest.mark.integration
def test_an_exporter_that_cannot_work_is_told_of_once_and_replaced(
    cluster: None, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with watch(tmp_path / "file" / "metrics") as monitoring:
        until(lambda: nodes(monitoring) or "no metrics of its services" in caplog.text)
        first = [each.actor for each in monitoring._exporters.values()]
        until(
            lambda: nodes(monitoring) or first != [e.actor for e in monitoring._exporters.values()]
        )
        (tmp_path / "file").unlink()
        until(lambda: nodes(monitoring))
        (target,) = nodes(monitoring)
        with urllib.request.urlopen(f"http://{target}/health") as answer:
            assert answer.read() == b"ok\n"
    assert caplog.text.count("no metrics of its services") == 1
    assert "NotADirectoryError" in caplog.text
    assert not (tmp_path / "file" / "metrics").exists()


@pytest.mark.integration
def test_an_exporter_that_is_killed_comes_back_by_itself(
    cluster: None, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def process() -> int | None:
        for child in psutil.Process().children(recursive=True):
            if child.cmdline()[:1] == ["ray::Exporter"]:
                return int(child.pid)
        return None

    with watch(tmp_path / "metrics") as monitoring:
        until(lambda: nodes(monitoring))
        before, victim = nodes(monitoring), process()
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        until(lambda: nodes(monitoring) not in (before, []))
    assert "no metrics of its services" not in caplog.text
