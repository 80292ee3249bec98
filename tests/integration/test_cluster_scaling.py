"""A run that changes its size while it goes on: by itself, and as nodes come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.buffer.servers import TcpServer
from tests.integration.ray_nodes import RayNodes
from tests.integration.test_cluster import settings, status, stop, until

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(600)]

ENDLESS = {"run.seconds": None, "run.steps": 10_000_000}


@pytest.mark.parametrize(("samples_per_insert", "actors", "in_the_end"), [(2, 1, 2), (50, 2, 1)])
def test_a_run_finds_how_many_synthesizers_it_needs(
    nodes: RayNodes,
    redis_server: TcpServer,
    digits_teacher: Path,
    tmp_path: Path,
    samples_per_insert: int,
    actors: int,
    in_the_end: int,
) -> None:
    sets: dict[str, Any] = {
        **ENDLESS,
        "teacher.weights": str(digits_teacher),
        "buffer.url": redis_server.url,
        "buffer.samples_per_insert": samples_per_insert,
        "synthesizer.actors": actors,
        "synthesizer.max_actors": 2,
    }
    out = tmp_path / "out"
    sent = nodes.command("submit", "digits", "--out", str(out), *settings("sized", **sets))
    assert sent.returncode == 0, sent.stderr

    def as_many() -> bool:
        found = status(nodes, "sized")
        states = [each["state"] for each in found.get("synthesizers", [])]
        return states == ["running"] * in_the_end and found.get("phase") == "distilling"

    until(lambda: status(nodes, "sized").get("phase") == "distilling")
    until(as_many, seconds=240)
    assert stop(nodes, "sized", out)["synthesizer_restarts"] == 0


def test_a_training_takes_the_room_there_is_and_leaves_that_of_synthesizers(
    nodes: RayNodes, redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sets: dict[str, Any] = {
        **ENDLESS,
        "teacher.weights": str(digits_teacher),
        "buffer.url": redis_server.url,
        "synthesizer.cpus": 0.25,
        "distiller.cpus": 0.75,
        "distiller.workers": 1,
        "distiller.max_workers": 2,
    }
    sent = nodes.command("submit", "digits", "--out", str(out), *settings("elastic", **sets))
    assert sent.returncode == 0, sent.stderr

    def steps_of(workers: int) -> bool:
        """Whether so many are at work, and how far they got shows that they are."""
        found = len(nodes.find("ray::RayTrainWorker")) == workers
        return found and status(nodes, "elastic").get("phase") == "distilling"

    until(lambda: steps_of(1))
    second = nodes.add(cpus=1)
    until(lambda: steps_of(2))
    attempt = status(nodes, "elastic")["attempt"]
    # The second synthesizers' room is there; that of the others the training has to leave.
    assert nodes.command("scale", "elastic", "--synthesizers", "4").returncode == 0

    def all_at_work() -> bool:
        states = [each["state"] for each in status(nodes, "elastic")["synthesizers"]]
        return states == ["running"] * 4

    until(all_at_work)
    until(lambda: steps_of(1))
    until(lambda: status(nodes, "elastic")["attempt"] > attempt)
    second.kill()
    until(lambda: len(nodes.find("ray::SynthesizerService")) == 1)
    step = status(nodes, "elastic")["step"]
    until(lambda: steps_of(1) and status(nodes, "elastic")["step"] > step)
    assert stop(nodes, "elastic", out)["attempts"] >= 3
