"""The training under a real Ray and a real Redis: it survives its workers, or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import safetensors.torch
import torch
import yaml

from buffer.errors import ProtocolMismatch, SsdkdError, Starved
from buffer.models import from_bytes
from buffer.parsing import override, parse
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.version import NEVER
from distiller.config import DistillerFile
from distiller.networks import digits_cnn
from distiller.service import CHECKPOINTS, JOURNAL, fit, ray_trainer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    # Ray trips over its own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

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
def make_config(tmp_path: Path) -> Callable[..., DistillerFile]:
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


def workers() -> list[psutil.Process]:
    """The processes of this test's Ray Train workers."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def test_a_killed_worker_resumes_from_its_checkpoint(
    make_config: Callable[..., DistillerFile], server: RedisServer, tmp_path: Path
) -> None:
    config = make_config(
        "run.steps=1500", "distiller.checkpoint_seconds=0.5", "distiller.snapshot_seconds=0.2"
    )
    replay, out = fill(config, server), tmp_path / "out"
    ended: list[Mapping[str, Any]] = []
    training = threading.Thread(
        target=lambda: ended.append(fit(config, url=server.url, out=out, cpus=CPUS))
    )
    training.start()
    committed = out / CHECKPOINTS / "distiller" / "checkpoint_manager_snapshot.json"
    while training.is_alive() and not committed.exists():
        time.sleep(0.02)
    (worker,) = workers()
    worker.send_signal(signal.SIGKILL)
    training.join()

    (metrics,) = ended
    assert metrics["student_steps"] == 1500
    progress = replay.progress()
    assert progress is not None
    assert progress.phase == "finished"
    # The second attempt went on from a step of the first, neither from zero nor from its last.
    lines = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]
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
    assert all(torch.equal(saved[name], published[name]) for name in saved)
    replay.close()


def test_a_training_that_starved_is_not_started_again(
    make_config: Callable[..., DistillerFile], server: RedisServer, tmp_path: Path
) -> None:
    config = make_config("distiller.max_waiting_seconds=0.2", "distiller.max_failures=3")
    replay = ReplayBuffer(config.buffer, url=server.url, run=config.run.name)
    replay.reset()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Starved, match=r"max_waiting_seconds \(0\.2\): no batch of 16"):
        fit(config, url=server.url, out=tmp_path / "out", cpus=CPUS)
    assert replay.begin_attempt("distiller") == 2
    assert signal.getsignal(signal.SIGINT) is before
    replay.close()


def test_workers_that_starved_are_not_started_again(
    make_config: Callable[..., DistillerFile], server: RedisServer, tmp_path: Path
) -> None:
    config = make_config("distiller.max_waiting_seconds=0.2", "distiller.workers=2")
    replay = ReplayBuffer(config.buffer, url=server.url, run=config.run.name)
    replay.reset()
    with pytest.raises(Starved, match=r"max_waiting_seconds \(0\.2\): no batch of 16"):
        fit(config, url=server.url, out=tmp_path / "out", cpus=CPUS)
    assert replay.begin_attempt("distiller") == 2
    replay.close()


def test_a_buffer_of_other_limits_is_an_error_that_stays(
    make_config: Callable[..., DistillerFile], server: RedisServer, tmp_path: Path
) -> None:
    fill(make_config("buffer.capacity=32"), server).close()
    with pytest.raises(ProtocolMismatch, match="capacity"):
        fit(make_config(), url=server.url, out=tmp_path / "out", cpus=CPUS)


def test_a_distiller_on_its_own_finds_files_beside_it(
    make_config: Callable[..., DistillerFile], server: RedisServer, tmp_path: Path
) -> None:
    config = make_config("run.steps=5", "run.out=out", "teacher.weights=teacher.safetensors")
    fill(config, server).close()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    address = ray.get_runtime_context().gcs_address
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "distiller",
            "--config",
            "run.yaml",
            "--set",
            f"distiller.cpus={CPUS}",
        ],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": address, "SSDKD_REDIS_URL": server.url},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / JOURNAL).exists()


def test_what_ray_shows_of_a_training_holds_no_password(
    make_config: Callable[..., DistillerFile], tmp_path: Path
) -> None:
    url = "redis://:secret@nowhere.invalid"
    config = make_config(f"buffer.url={url}")
    trainer = ray_trainer(config, url=url, out=tmp_path, cpus=CPUS)
    assert trainer.train_loop_config is not None
    assert trainer.train_loop_config["config"]["run"]["steps"] == 100
    assert "secret" not in str(trainer.train_loop_config)


def test_a_training_that_failed_too_often_says_why_in_one_line(
    make_config: Callable[..., DistillerFile], tmp_path: Path
) -> None:
    config = make_config("distiller.max_failures=0")
    with RedisServer.start() as gone:
        url = gone.url
    with pytest.raises(SsdkdError) as failure:
        fit(config, url=url, out=tmp_path / "out", cpus=CPUS)
    assert str(failure.value).startswith("the training failed on worker 0: ")
    assert "Redis at unix:" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_workers_share_one_training_that_begins_anew_unless_resumed(
    make_config: Callable[..., DistillerFile], server: RedisServer, tmp_path: Path
) -> None:
    config = make_config("distiller.workers=2", "run.steps=30")
    replay, out = fill(config, server), tmp_path / "out"
    left_behind = out / CHECKPOINTS / "distiller" / "checkpoint_manager_snapshot.json"
    left_behind.parent.mkdir(parents=True)
    left_behind.write_text("of another run")
    (out / JOURNAL).write_text("of another run\n")
    first = fit(config, url=server.url, out=out, cpus=CPUS)
    assert first["student_steps"] == 30
    assert first["samples_drawn"] == 30 * 2 * 16
    assert "another" not in (out / JOURNAL).read_text()
    longer = make_config("distiller.workers=2", "run.steps=40")
    resumed = fit(longer, url=server.url, out=out, cpus=CPUS, resume=True)
    assert resumed["samples_drawn"] == 40 * 2 * 16
    progress = replay.progress()
    assert progress is not None
    assert progress.version == (2, 40)
    steps = [json.loads(line)["version"][1] for line in (out / JOURNAL).read_text().splitlines()]
    assert steps.index(30) < len(steps) - 1
    replay.close()
