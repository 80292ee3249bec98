"""The batch script has run on Slurm, which tests do not have: here bash runs it among stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY

SCRIPT = DEPLOY / "slurm" / "ssdkd.sbatch"
TEXT = SCRIPT.read_text()
RAY_WORKER_PORTS = range(10002, 20000)


@pytest.mark.parametrize("script", [SCRIPT, DEPLOY / "secrets.sh"], ids=lambda path: path.name)
def test_scripts_can_be_parsed(script) -> None:
    shell = shutil.which("bash")
    assert shell is not None
    subprocess.run([shell, "-n", script], check=True)


def test_ray_asks_for_a_token_and_redis_for_a_password() -> None:
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in TEXT
    assert "--aclfile" in TEXT
    assert "--maxmemory-policy noeviction" in TEXT


def test_jobs_beside_each_other_have_ports_of_their_own() -> None:
    (first, jobs, step) = map(
        int, re.search(r"\$\(\((\d+) \+ SLURM_JOB_ID % (\d+) \* (\d+)\)\)", TEXT).groups()
    )
    assert len(re.findall(r"^\w+_port=", TEXT, re.M)) <= step
    assert not set(range(first, first + jobs * step)) & set(RAY_WORKER_PORTS)
    assert first + jobs * step < 32768


STAYS = "exec sleep 60"
STAND_INS = {
    "scontrol": "echo node-1",
    "redis-server": STAYS,
    "ray": f"""case "$1 $2" in
        "start --head") {STAYS} ;;
        "list nodes") echo '"node_id" "node_id" "node_id"' ;;
    esac""",
    "srun": STAYS,
    "python": "exit 7",
}
"""What the script calls on the nodes of a cluster, where all goes well until the pipeline ends."""
WITHOUT_HEAD = f'[ "$1" != health-check ] || exit 1; {STAND_INS["ray"]}'
WITHOUT_WORKERS = STAND_INS["ray"].replace("list nodes", "no nodes")


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the script; programs that do something else than go well are given."""

    def run(start_seconds: int = 60, **programs: str) -> subprocess.CompletedProcess[str]:
        there = tmp_path / "bin"
        there.mkdir()
        for name, line in (STAND_INS | programs).items():
            (there / name).write_text(f"#!/bin/bash\n{line}\n")
            (there / name).chmod(0o755)
        shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("*.py"))
        given = {
            "PATH": f"{there}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "12",
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "2",
            "SSDKD_START_SECONDS": str(start_seconds),
        }
        began = time.monotonic()
        done = subprocess.run(
            ["bash", SCRIPT, "digits"],
            cwd=tmp_path,
            env=os.environ | given,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert time.monotonic() - began < 30
        assert not (tmp_path / "secrets" / "slurm-12").exists()
        return done

    return run


def test_the_pipeline_s_status_is_the_job_s(batch) -> None:
    assert batch().returncode == 7


@pytest.mark.parametrize(
    ("program", "line", "missing"),
    [
        ("ray", "exit 1", "Redis or Ray's head"),
        ("redis-server", "exit 1", "Redis or Ray's head"),
        ("srun", "exit 1", "Ray's workers"),
    ],
)
def test_a_service_that_dies_ends_the_job(batch, program: str, line: str, missing: str) -> None:
    waits = {"ray": WITHOUT_WORKERS if program == "srun" else WITHOUT_HEAD}
    done = batch(**(waits | {program: line}))
    assert done.returncode == 1
    assert f"{missing} did not start, a service died" in done.stderr


def test_a_head_that_never_answers_ends_the_job(batch) -> None:
    done = batch(start_seconds=3, ray=WITHOUT_HEAD)
    assert done.returncode == 1
    assert "Redis or Ray's head did not start in time" in done.stderr
