import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from deploy import __version__
from tests.deploy.recorded import Recording

SSDKD = Path(sys.executable).with_name("ssdkd")


def ssdkd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [str(SSDKD), *arguments], capture_output=True, text=True, env=environment, cwd=cwd
    )


def test_the_version_is_shown() -> None:
    assert ssdkd("--version").stdout == f"ssdkd {__version__}\n"


@pytest.mark.parametrize(
    "command", [[], ["run"], ["validate"], ["evaluate"], ["configs"], ["report"], ["ui"]]
)
def test_every_command_has_help_and_needs_no_torch_for_it(command: list[str]) -> None:
    program = (
        "import sys; from deploy.cli import app; sys.argv = ['ssdkd', *sys.argv[1:]]\n"
        "try: app()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'redis', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_job_has_help_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "deploy.pipeline", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "deploy.config" in imported
    assert not {"torch", "ray", "redis", "numpy"} & imported


def test_the_job_needs_a_configuration() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.pipeline", "--config", "nowhere"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()  # however narrow a job's log is thought to be
    assert "config (nowhere): no such file" in line


def test_configs_lists_the_shipped_ones() -> None:
    listed = ssdkd("configs").stdout
    assert "digits" in listed
    assert "cifar10-resnet20" in listed


def test_the_demo_configuration_is_valid() -> None:
    done = ssdkd("validate")
    assert (done.returncode, done.stdout) == (0, "valid\n"), done.stderr


def test_a_refusal_is_a_message_and_not_a_traceback() -> None:
    done = ssdkd("validate", "--set", "teacher.weights=missing.pt")
    assert done.returncode == 2, done.stdout
    assert "there is no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_network_of_the_current_folder_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from distiller.networks import digits_cnn\ndef tiny():\n    return digits_cnn(width=4)\n"
    )
    done = ssdkd(
        "validate", "--set", "student.factory=mine:tiny", "--set", "student.kwargs={}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_evaluating_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    done = ssdkd("evaluate", str(tmp_path))
    assert done.returncode == 2
    assert "no student.safetensors" in done.stderr


def test_a_report_is_written_where_its_run_is(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4)
    done = ssdkd("report", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'report.html'}\n"), done.stderr
    refused = ssdkd("report", str(tmp_path / "nowhere"))
    assert refused.returncode == 2
    assert "no run has begun there" in refused.stderr


def test_a_page_is_shown_until_ctrl_c(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4)
    command = [str(SSDKD), "ui", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address) as answer:
            assert b"demo" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
