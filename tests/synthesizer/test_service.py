from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray.util import list_named_actors

from buffer.errors import ModelError
from buffer.parsing import parse
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from deploy.config import PipelineConfig
from synthesizer.config import SynthesizerFile
from synthesizer.service import actor_seed, forget, options, start

Configure = Callable[..., SynthesizerFile]


def test_seeds_differ_between_actors_and_between_an_actor_and_its_successor() -> None:
    seeds = {actor_seed(s, i, a) for s in range(3) for i in range(3) for a in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert actor_seed(1, 2, 3) == actor_seed(1, 2, 3)


def test_an_actor_asks_ray_for_what_is_configured(configure: Configure) -> None:
    found = options(configure(synthesizer={"gpus": 0.25}), cpus=1.5)
    assert (found["num_cpus"], found["num_gpus"]) == (1.5, 0.25)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        # Workers must be able to import the tests' networks by name.
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray.init(
            address="local",
            num_cpus=1,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            namespace="test-service",
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with RedisServer.start() as server:
        yield server.url


def command(file: Path, url: str, *arguments: str, folder: Path) -> subprocess.Popen[str]:
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "-m", "synthesizer", "--config", str(file), *arguments],
        cwd=folder,
        env={**os.environ, "SSDKD_REDIS_URL": url, "RAY_ADDRESS": address},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rounds(actor: Any, rounds: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        status: dict[str, Any] = ray.get(actor.status.remote(), timeout=30.0)
        if status.get("rounds", 0) >= rounds:
            return status
        time.sleep(0.05)
    raise AssertionError(f"no {rounds} rounds within a minute: {status}")


def bury(actor: Any, name: str) -> None:
    """Ends an actor and waits until its name is free."""
    ray.kill(actor)
    deadline = time.monotonic() + 30.0
    while name in list_named_actors():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.integration
@pytest.mark.usefixtures("cluster")
def test_an_actor_answers_and_stops_while_it_runs(tables: dict[str, Any], url: str) -> None:
    # A file of the whole pipeline: the tables of other services stay behind.
    config = parse(PipelineConfig, tables)
    actor = start(config, url=url, index=3)
    running = actor.run.remote()
    status = wait_for_rounds(actor, 3)
    assert status["producer"] == "synthesizer-3"
    assert status["pid"] != os.getpid()
    assert status["busy_seconds"] > 0.0
    assert ray.get_actor("synthesizer-3") == actor
    ray.get(actor.stop.remote(), timeout=30.0)
    assert ray.get(running, timeout=30.0) is None
    done = ray.get(actor.status.remote(), timeout=30.0)
    replay = ReplayBuffer(config.buffer, url=url, run=config.run.name)
    info = replay.info()
    assert info.inserted == 14 * done["rounds"]
    assert info.probe_size > 0
    assert replay.begin_attempt("synthesizer-3") == 2
    replay.close()
    ray.kill(actor)


@pytest.mark.integration
@pytest.mark.usefixtures("cluster")
def test_an_actor_that_was_killed_goes_on_with_what_it_had_learned(
    configure: Configure, url: str, tmp_path: Path
) -> None:
    config = configure(
        run={"name": "killed"},
        buffer={"capacity": 28},
        synthesizer={"checkpoint_seconds": 0.001},
    )
    checkpoints = tmp_path / "checkpoints"

    def rounds_learned_from() -> int:
        saved = torch.load(checkpoints / "synthesizer-4.pt", weights_only=True)
        return int(saved["state"]["method"]["rounds_warmed_up"])

    first = start(config, url=url, index=4, checkpoints=checkpoints)
    running = first.run.remote()
    os.kill(wait_for_rounds(first, 20)["pid"], signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(running, timeout=60.0)
    bury(first, "synthesizer-4")
    before = rounds_learned_from()
    second = start(config, url=url, index=4, checkpoints=checkpoints)
    running = second.run.remote()
    wait_for_rounds(second, 1)
    ray.get(second.stop.remote(), timeout=30.0)
    ray.get(running, timeout=30.0)
    rounds = ray.get(second.status.remote(), timeout=30.0)["rounds"]
    assert before >= 10
    assert rounds_learned_from() == before + rounds
    bury(second, "synthesizer-4")
    forget(checkpoints)
    assert list(checkpoints.iterdir()) == []


@pytest.mark.integration
@pytest.mark.usefixtures("cluster")
def test_the_command_runs_until_it_is_interrupted_or_fails(
    tables: dict[str, Any], url: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    weights = Path(tables["teacher"]["weights"])
    tables["run"]["name"] = "command"
    # Relative to the command's folder, which is not the actors'.
    tables["teacher"]["weights"] = weights.name
    file.write_text(yaml.safe_dump(tables))
    config = parse(SynthesizerFile, tables)
    replay = ReplayBuffer(config.buffer, url=url, run="command")
    with command(file, url, folder=weights.parent) as process:
        deadline = time.monotonic() + 60.0
        while replay.info().inserted == 0 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60.0)
    assert process.returncode == 0, errors
    assert replay.info().inserted > 0
    replay.close()
    learned = weights.parent / "runs/command/checkpoints/synthesizer-0.pt"
    assert learned.exists()
    with command(file, url, "--set", "buffer.capacity=32", folder=weights.parent) as process:
        _, errors = process.communicate(timeout=60.0)
    assert process.returncode == 1
    assert "a synthesizer failed" in errors
    assert "ProtocolMismatch" in errors
    assert not learned.exists()  # it was not asked to resume


@pytest.mark.integration
@pytest.mark.usefixtures("cluster")
def test_an_actor_that_cannot_be_built_says_why(configure: Configure, url: str) -> None:
    config = configure(teacher={"weights": "missing.pt"}, run={"name": "broken"})
    actor = start(config, url=url, index=0)
    with pytest.raises(ModelError, match="there is no such file"):
        ray.get(actor.run.remote(), timeout=60.0)
    ray.kill(actor)


@pytest.mark.integration
@pytest.mark.usefixtures("cluster")
def test_an_actor_waits_for_a_buffer_that_is_away_until_it_is_told_to_stop(
    configure: Configure,
) -> None:
    actor = start(configure(run={"name": "away"}), url="redis://127.0.0.1:1", index=5)
    running = actor.run.remote()
    assert ray.get(actor.status.remote(), timeout=60.0) == {}
    assert ray.wait([running], timeout=3.0)[0] == []
    ray.get(actor.stop.remote(), timeout=30.0)
    assert ray.get(running, timeout=30.0) is None
    ray.kill(actor)
