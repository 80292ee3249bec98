"""A node's exporter, and real processes that write beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from buffer.metrics import FOLDER
from deploy.exporter import ABANDONED_SECONDS, NodeMetrics, forget_abandoned

SERVICE = """
import sys
from buffer.metrics import process_registry
from synthesizer.metrics import SynthesizerMetrics

metrics = SynthesizerMetrics(process_registry())
metrics.rounds.inc(2)
metrics.round_seconds.observe(0.3)
metrics.last_insert.set(int(sys.argv[1]))
metrics.student_lag.set(7)
print("ready", flush=True)
sys.stdin.read()
"""


def start(folder: Path, inserted: int = 0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(inserted)],
        env=os.environ | {FOLDER: str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def lines(metrics: NodeMetrics) -> list[str]:
    page = metrics.page("/metrics")
    assert page is not None
    return page.body.decode().splitlines()


def kept(metrics: NodeMetrics) -> dict[str, float]:
    """The samples that outlive their process."""
    kept = re.compile(r"(ssdkd\w+(?:_total|_sum|_count|_bucket|_timestamp_seconds)(?:{.*})?) (.*)")
    found = map(kept.fullmatch, lines(metrics))
    return {sample[1]: float(sample[2]) for sample in found if sample}


def test_counts_of_all_processes_add_up_and_outlive_them(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    metrics = NodeMetrics(folder)
    services = [start(folder), start(folder)]
    counted, current = (
        "ssdkd_synthesizer_rounds_total 4.0",
        "ssdkd_synthesizer_student_lag_steps 7.0",
    )
    assert counted in lines(metrics)
    assert current in lines(metrics)
    for service in services:
        service.kill()
        service.communicate()
    assert counted in lines(metrics)
    assert current not in lines(metrics), "nobody is there whose lag that could be"


def test_files_of_the_dead_become_one_and_nothing_changes(tmp_path: Path) -> None:
    metrics, counts = NodeMetrics(tmp_path), []
    for generation in range(2):
        services = [start(tmp_path, 10 * generation + number) for number in range(3)]
        before = kept(metrics)
        for service in services[:-1]:
            service.kill()
            service.communicate()
        lines(metrics)
        services[-1].kill()
        services[-1].communicate()
        for _ in range(2):
            after = kept(metrics)
            assert after == pytest.approx(before, rel=1e-9)
            assert all(after[name] >= before[name] for name in before), "Prometheus sees a reset"
        counts.append(sum(file.suffix == ".db" for file in tmp_path.iterdir()))
    assert counts[1] <= counts[0] + 3
    folded = {file.name for file in tmp_path.glob("*_dead.db")}
    assert folded == {"counter_dead.db", "histogram_dead.db", "gauge_max_dead.db"}
    assert after["ssdkd_synthesizer_rounds_total"] == 12
    assert after["ssdkd_synthesizer_round_seconds_count"] == 6
    assert after["ssdkd_synthesizer_last_insert_timestamp_seconds"] == 12


def test_an_exporter_says_that_it_lives(tmp_path: Path) -> None:
    metrics = NodeMetrics(tmp_path)
    page = metrics.page("/health")
    assert page is not None
    assert page.status == 200
    assert metrics.page("/secrets") is None


def test_what_a_killed_pipeline_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    files = {
        "ssdkd-killed-0123abcd": [f"counter_{dead.pid}.db", f"of_{dead.pid}.exporter"],
        "ssdkd-new-0123abcd": [f"counter_{dead.pid}.db"],
        "ssdkd-alive-0123abcd": [f"counter_{dead.pid}.db", f"histogram_{os.getpid()}.db"],
        "ssdkd-idle-0123abcd": [f"of_{os.getpid()}.exporter"],
        "ssdkd-notes-0123abcd": [f"counter_{dead.pid}.db", "notes.txt"],
        "ssdkd-other": [f"counter_{dead.pid}.db"],
    }
    long_ago = time.time() - ABANDONED_SECONDS - 60
    for folder, names in files.items():
        (tmp_path / folder).mkdir()
        paths = [tmp_path / folder / name for name in names]
        for path in [*paths, tmp_path / folder]:
            path.touch()
            if folder != "ssdkd-new-0123abcd":
                os.utime(path, (long_ago, long_ago))
    linked = tmp_path / "ssdkd-link-0123abcd"
    linked.symlink_to(tmp_path / "ssdkd-other")
    forget_abandoned(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*files, linked.name} - {"ssdkd-killed-0123abcd"}
    assert all(
        (tmp_path / folder / name).exists()
        for folder in left - {linked.name}
        for name in files[folder]
    )
