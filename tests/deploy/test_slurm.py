"""The batch script has run on Slurm, which tests do not have: here its text is held to rules."""

from __future__ import annotations

import re
import shutil
import subprocess

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
