"""Services whose metrics have no room on the disk: real processes under a real limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from buffer.metric_files import FIRST_BYTES
from buffer.metrics import FOLDER

SERVICE = """
import os, resource, sys
import prometheus_client
from buffer.metrics import process_registry

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
calls = prometheus_client.Counter("calls", "Calls.", ["op"], registry=process_registry())
for number in range(3000):
    calls.labels(str(number)).inc(2)
assert all(calls.labels(str(number))._value.get() == 2 for number in range(3000))
"""
"""Makes 3000 series, which need several times as much as a new file has."""


def run(folder: Path, limit: int) -> str:
    """What a service says that may not write more than so many bytes to a file."""
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, str(limit)],
        env=os.environ | {FOLDER: str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def exported(folder: Path) -> int:
    """How many series the exporter finds."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return sum(len(family.samples) for family in registry.collect())


def test_metrics_grow_on_the_disk_and_no_file_has_holes(tmp_path: Path) -> None:
    assert run(tmp_path, 1 << 30) == ""
    assert exported(tmp_path) == 3000
    for file in tmp_path.iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size > FIRST_BYTES


def test_a_service_goes_on_when_a_file_cannot_grow(tmp_path: Path) -> None:
    assert "no room for metrics" in run(tmp_path, FIRST_BYTES)
    assert 0 < exported(tmp_path) < 3000


@pytest.mark.parametrize("folder", ["metrics", "file/metrics"])
def test_a_service_goes_on_where_no_file_or_folder_can_be_made(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    assert "no room for metrics" in run(tmp_path / folder, 0)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / "file"]
