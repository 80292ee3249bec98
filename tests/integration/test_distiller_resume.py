"""The training under a real Ray and a real Redis: it survives its workers, or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import safetensors.torch
import torch
import yaml

from buffer.errors import (
    BufferUnavailable,
    Interrupted,
    ProtocolMismatch,
    SsdkdError,
    Starved,
)
from buffer.models import from_bytes
from buffer.parsing import override, parse
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.version import NEVER, Version
from distiller.config import DistillerFile
from distiller.networks import digits_cnn
from distiller.service import CHECKPOINTS, JOURNAL, end_early, fit, ray_trainer
from distiller.tally import Origin
from tests.integration.conftest import journal, survivors

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    # Ray trips over its own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

Outcome = Future[Mapping[str, Any]]
Configure = Callable[..., DistillerFile]
Train = Callable[..., Outcome]

CPUS = 0.5
NETWORK = {"factory": "distiller.networks:digits_cnn", "kwargs": {"width": 4}}


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer.start() as started:
        yield started


@pytest.fixture
def make_config(tmp_path: Path) -> Configure:
    weights = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(digits_cnn(4).state_dict(), weights)
    raw = {
        "run": {"name": tmp_path.name, "steps": 100},
        "teacher": {
            **NETWORK,
            "weights": str(weights),
            "classes": 10,
            "image_shape": [1, 8, 8],
            "mean": [0.3],
            "std": [0.4],
        },
        "student": NETWORK,
        "buffer": {"capacity": 64, "probe_capacity": 8, "error_buffer": 1000.0},
        "distiller": {"batch_size": 16, "crop_padding": 1, "flip": False},
    }
    return lambda *assignments: parse(DistillerFile, override(raw, assignments))


@pytest.fixture
def train(server: RedisServer, tmp_path: Path) -> Iterator[Train]:
    """Trains in a thread, as the services do: in the main thread Ray Train would take SIGINT."""
    with ThreadPoolExecutor() as pool:

        def begin(config: DistillerFile, **settings: Any) -> Outcome:
            given = {"url": server.url, "out": tmp_path / "out", "cpus": CPUS, **settings}
            return pool.submit(fit, config, **given)

        yield begin


def fill(config: DistillerFile, server: RedisServer) -> ReplayBuffer:
    """A new buffer of random images."""
    replay = ReplayBuffer(config.buffer, url=server.url, run=config.run.name)
    replay.reset()
    random = np.random.default_rng(0)
    samples = [
        Sample(
            image=random.integers(0, 256, (1, 8, 8), dtype=np.uint8),
            predicted_class=0,
            confidence=0.5,
            disagreement=1.0,
        )
        for _ in range(config.buffer.capacity)
    ]
    replay.insert(samples, producer="p", sequence=0)
    return replay


def until_a_step(replay: ReplayBuffer, running: Callable[[], bool]) -> None:
    """Waits until a step of the training has been published."""
    while (progress := replay.progress()) is None or progress.phase != "distilling":
        assert running()
        time.sleep(0.05)


def processes(title: str) -> list[psutil.Process]:
    """The processes of this test's Ray actors of a class."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just died
            if title in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_killed_worker_resumes_from_its_checkpoint(
    make_config: Configure, server: RedisServer, train: Train, tmp_path: Path
) -> None:
    config = make_config(
        "run.steps=1500", "distiller.checkpoint_seconds=0.5", "distiller.snapshot_seconds=0.2"
    )
    replay, out = fill(config, server), tmp_path / "out"
    training = train(config)
    committed = out / CHECKPOINTS / "distiller" / "checkpoint_manager_snapshot.json"
    while not training.done() and not committed.exists():
        time.sleep(0.02)
    (victim,) = processes("RayTrainWorker")
    victim.kill()
    assert survivors([victim]) == []
    metrics = training.result()
    assert metrics["student_steps"] == 1500
    progress = replay.progress()
    assert progress is not None
    assert progress.phase == "finished"
    # The second attempt went on from a step of the first, neither from zero nor from its last.
    lines = journal(out)
    by_attempt = {
        attempt: [line["version"][1] for line in lines if line["version"][0] == attempt]
        for attempt in (1, 2)
    }
    assert len(lines) == len(by_attempt[1]) + len(by_attempt[2])
    assert 0 < by_attempt[2][0] < 1500
    assert by_attempt[2][-1] == 1500
    assert metrics["samples_drawn"] == 1500 * 16
    # What the checkpoint holds is what was published.
    newest = max((out / CHECKPOINTS / "distiller").glob("checkpoint_2*"))
    saved = safetensors.torch.load_file(newest / "student.safetensors")
    snapshot = replay.fetch_student(newer_than=NEVER)
    assert snapshot is not None
    published = from_bytes(snapshot[1])
    kept = safetensors.torch.load_file(out / "student.safetensors")
    assert all(torch.equal(saved[name], published[name]) for name in saved)
    assert all(torch.equal(kept[name], published[name]) for name in saved)
    replay.close()


@pytest.mark.slow
def test_a_training_whose_overseer_is_killed_says_so_and_can_be_resumed(
    make_config: Configure, server: RedisServer, train: Train, tmp_path: Path
) -> None:
    config = make_config(
        "run.steps=1000000", "distiller.checkpoint_seconds=0.5", "distiller.snapshot_seconds=0.2"
    )
    replay, out = fill(config, server), tmp_path / "out"
    training = train(config)
    committed = out / CHECKPOINTS / "distiller" / "checkpoint_manager_snapshot.json"
    while not training.done() and not committed.exists():
        time.sleep(0.02)
    (victim,) = processes("TrainController")
    victim.kill()
    assert survivors([victim, *processes("RayTrainWorker")]) == []
    with pytest.raises(SsdkdError, match="the process that watches over its workers died; its"):
        training.result(60)
    reached = journal(out)[-1]["version"][1]
    longer = make_config(f"run.steps={reached + 1000}")  # the checkpoint may be further
    assert train(longer, resume=True).result()["student_steps"] == reached + 1000
    assert min(line["version"][1] for line in journal(out) if line["version"][0] == 2) > 0
    replay.close()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_workers_that_starved_are_not_started_again(
    make_config: Configure, server: RedisServer, train: Train, count: int
) -> None:
    config = make_config("distiller.max_waiting_seconds=0.2", f"distiller.workers={count}")
    replay = ReplayBuffer(config.buffer, url=server.url, run=config.run.name, fresh=True)
    with pytest.raises(Starved, match=r"max_waiting_seconds \(0\.2\): no batch of 16"):
        train(config).result()
    assert replay.begin_attempt("distiller") == 2
    replay.close()


def test_a_buffer_of_other_limits_is_refused_before_anything_starts(
    make_config: Configure, server: RedisServer, train: Train, tmp_path: Path
) -> None:
    fill(make_config("buffer.capacity=32"), server).close()
    with pytest.raises(ProtocolMismatch, match="capacity"):
        train(make_config()).result()
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_gone_is_said_before_anything_starts(
    make_config: Configure, train: Train, tmp_path: Path
) -> None:
    with RedisServer.start() as gone:
        url = gone.url
    with pytest.raises(BufferUnavailable, match="Redis at unix:"):
        train(make_config(), url=url).result()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_training_on_a_used_buffer_begins_anew(
    make_config: Configure, server: RedisServer, train: Train
) -> None:
    replay = fill(make_config(), server)
    for attempt, steps in ((1, 30), (2, 20)):
        began = time.monotonic()
        metrics = train(make_config(f"run.steps={steps}")).result()
        assert metrics["student_steps"] == steps
        assert metrics["samples_drawn"] == steps * 16
        taken = time.monotonic() - began
        assert 0 < metrics["first_step_at_seconds"] < metrics["elapsed_seconds"] < taken
        progress = replay.progress()
        assert progress is not None
        assert progress.version == Version(attempt, steps)
    replay.close()


@pytest.mark.slow
def test_the_clock_of_a_run_may_have_begun_with_its_buffer(
    make_config: Configure, server: RedisServer, train: Train
) -> None:
    replay = fill(make_config(), server)
    time.sleep(1.0)
    already = replay.info().seconds
    metrics = train(make_config("run.steps=5"), began_seconds=0.0).result()
    assert metrics["first_step_at_seconds"] > already
    replay.close()


@pytest.mark.slow
def test_a_training_that_is_asked_to_end_can_be_resumed_from_that_step(
    make_config: Configure, server: RedisServer, train: Train, tmp_path: Path
) -> None:
    endless = make_config(
        "run.steps=1000000", "distiller.workers=2", "distiller.checkpoint_seconds=1000"
    )
    replay, out = fill(endless, server), tmp_path / "out"
    training = train(endless)
    until_a_step(replay, lambda: not training.done())
    end_early(out)
    with pytest.raises(Interrupted, match=r"asked to end after \d+ student steps") as ended:
        training.result()
    _, step = last = Version(*journal(out)[-1]["version"])
    assert f"after {step} student steps" in str(ended.value)
    snapshot = replay.fetch_student(newer_than=NEVER)
    assert snapshot is not None
    assert snapshot[0] == last
    kept = safetensors.torch.load_file(out / "student.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in from_bytes(snapshot[1]).items())
    longer = make_config(f"run.steps={step + 10}", "distiller.workers=2")
    metrics = train(longer, resume=True).result()
    assert metrics["samples_drawn"] == (step + 10) * 2 * 16
    replay.close()


def command(config: DistillerFile, server: RedisServer, folder: Path) -> subprocess.Popen[str]:
    """``python -m distiller`` in a folder, with relative file names."""
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    address = ray.get_runtime_context().gcs_address
    arguments = ["--config", "run.yaml", "--set", f"distiller.cpus={CPUS}"]
    return subprocess.Popen(
        [sys.executable, "-m", "distiller", *arguments],
        cwd=folder,
        env=os.environ | {"RAY_ADDRESS": address, "SSDKD_REDIS_URL": server.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_distiller_on_its_own_finds_files_beside_it_and_saves_its_student(
    make_config: Configure, server: RedisServer, tmp_path: Path
) -> None:
    config = make_config("run.steps=5", "run.out=out", "teacher.weights=teacher.safetensors")
    replay = fill(config, server)
    with command(config, server, tmp_path) as process:
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(output)["student_steps"] == 5
    assert (tmp_path / "out" / JOURNAL).exists()
    snapshot = replay.fetch_student(newer_than=NEVER)
    assert snapshot is not None
    kept = safetensors.torch.load_file(tmp_path / "out" / "student.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in from_bytes(snapshot[1]).items())
    replay.close()


@pytest.mark.slow
def test_a_distiller_on_its_own_saves_its_student_when_it_is_interrupted(
    make_config: Configure, server: RedisServer, tmp_path: Path
) -> None:
    config = make_config("run.steps=1000000", "run.out=out", "distiller.snapshot_seconds=1")
    replay = fill(config, server)
    with command(config, server, tmp_path) as process:
        until_a_step(replay, lambda: process.poll() is None)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert output == ""
    assert "distiller: the training was asked to end after " in errors
    assert "Traceback" not in errors
    assert (tmp_path / "out" / "student.safetensors").stat().st_size > 0
    replay.close()


def test_what_ray_shows_of_a_training_holds_no_password(
    make_config: Configure, tmp_path: Path
) -> None:
    url = "redis://:secret@nowhere.invalid"
    config = make_config(f"buffer.url={url}")
    trainer = ray_trainer(config, url=url, out=tmp_path, cpus=CPUS, origin=Origin())
    assert trainer.train_loop_config is not None
    assert trainer.train_loop_config["config"]["run"]["steps"] == 100
    assert "secret" not in str(trainer.train_loop_config)


def test_a_training_that_failed_too_often_says_why_in_one_line(
    make_config: Configure, server: RedisServer, train: Train, tmp_path: Path
) -> None:
    config = make_config("distiller.max_failures=0")
    fill(config, server).close()
    (tmp_path / "out" / JOURNAL).mkdir(parents=True)
    with pytest.raises(SsdkdError) as failure:
        train(config, resume=True).result()
    assert str(failure.value).startswith("the training failed on worker 0: IsADirectoryError: ")
    assert "\n" not in str(failure.value)


@pytest.mark.slow
def test_workers_share_one_training_that_begins_anew_unless_resumed(
    make_config: Configure, server: RedisServer, train: Train, tmp_path: Path
) -> None:
    config = make_config("distiller.workers=2", "run.steps=30")
    replay, out = fill(config, server), tmp_path / "out"
    left_behind = out / CHECKPOINTS / "distiller" / "checkpoint_manager_snapshot.json"
    left_behind.parent.mkdir(parents=True)
    left_behind.write_text("of another run")
    (out / JOURNAL).write_text("of another run\n")
    first = train(config).result()
    assert first["student_steps"] == 30
    assert first["samples_drawn"] == 30 * 2 * 16
    assert "another" not in (out / JOURNAL).read_text()
    longer = make_config("distiller.workers=2", "run.steps=40")
    resumed = train(longer, resume=True).result()
    assert resumed["samples_drawn"] == 40 * 2 * 16
    progress = replay.progress()
    assert progress is not None
    assert progress.version == (2, 40)
    steps = [line["version"][1] for line in journal(out)]
    assert steps.index(30) < len(steps) - 1
    replay.close()
