from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distiller.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def test_help_is_instant_without_torch_or_ray():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['distiller', '--help']\n"
        "try:\n"
        "    runpy.run_module('distiller', run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        "heavy = {'torch', 'ray', 'redis', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "--config" in result.stdout


@pytest.fixture
def config_file(make_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    return path


def test_a_distiller_on_its_own_needs_a_server(config_file, monkeypatch, capsys):
    monkeypatch.delenv("SSDKD_REDIS_URL", raising=False)
    assert main(["--config", str(config_file)]) == 2
    assert "buffer.url (None): a distiller on its own needs" in capsys.readouterr().err


def test_a_distiller_on_its_own_does_not_guess_its_cluster(config_file, monkeypatch, capsys):
    monkeypatch.setenv("SSDKD_REDIS_URL", "redis://nowhere.invalid:1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["--config", str(config_file)]) == 2
    assert "run.ray_address (None): a distiller on its own needs" in capsys.readouterr().err


def test_an_impossible_setting_is_one_line_and_no_traceback(config_file, capsys):
    assert main(["--config", str(config_file), "--set", "distiller.momentum=1.5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distiller: distiller.momentum (1.5): ")
    assert "Traceback" not in error


def test_settings_are_validated_before_a_cluster_is_touched(config_file, capsys, monkeypatch):
    monkeypatch.setenv("SSDKD_REDIS_URL", "redis://nowhere.invalid:1")
    monkeypatch.setenv("RAY_ADDRESS", "nowhere.invalid:1")
    arguments = ["--config", str(config_file), "--set", "distiller.batch_size=65"]
    assert main(arguments) == 2
    assert "buffer.capacity (64) is smaller than a batch" in capsys.readouterr().err
    assert os.environ["RAY_ADDRESS"] == "nowhere.invalid:1"


def test_a_teacher_that_cannot_be_built_is_a_failure_but_no_impossible_setting(
    config_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("SSDKD_REDIS_URL", "redis://nowhere.invalid:1")
    monkeypatch.setenv("RAY_ADDRESS", "nowhere.invalid:1")
    missing = f"teacher.weights={tmp_path / 'none.safetensors'}"
    assert main(["--config", str(config_file), "--set", missing]) == 1
    assert capsys.readouterr().err.startswith("distiller: weights (")


def test_ctrl_c_before_the_training_is_one_line_and_no_traceback(tmp_path):
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "distiller", "--config", str(pipe)]
    with (
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process,
        pipe.open("w"),  # waits until it is opened for reading, which then waits for us
    ):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "distiller: interrupted before the training began\n"
