"""What is saved, however a run ended."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from buffer.errors import Interrupted, SsdkdError
from buffer.interface import Replay
from buffer.memory import InMemoryReplayBuffer
from buffer.models import build, to_bytes
from buffer.progress import StudentProgress
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.version import Version
from deploy import report
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from deploy.ending import Outcome, save


@pytest.fixture
def config() -> PipelineConfig:
    return load(DEFAULT_CONFIG, ["buffer.capacity=256", "buffer.probe_capacity=0"])


def filled(replay: Replay, config: PipelineConfig, step: int) -> bytes:
    """A buffer with samples and a student of so many steps; the student."""
    image = np.zeros(config.teacher.image_shape, np.uint8)
    made = [Sample(image=image, predicted_class=0, confidence=0.9, disagreement=1.0)] * 256
    replay.insert(made, producer="p", sequence=1)
    weights = to_bytes(build(config.student))
    replay.publish_student(weights, version=Version(1, step))
    replay.publish_progress(
        StudentProgress(version=Version(1, step), elapsed_seconds=3.0, samples_drawn=5)
    )
    return weights


def test_an_interrupted_run_leaves_its_student_and_says_so(
    tmp_path: Path, config: PipelineConfig
) -> None:
    replay = InMemoryReplayBuffer(config.buffer)
    weights = filled(replay, config, step=7)
    outcome = Outcome(error=Interrupted("by hand"), git_revision="of its beginning")
    result = save(config, replay, outcome, tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert (result["interrupted"], result["error"]) == (True, "by hand")
    assert (result["student_steps"], result["samples_drawn"]) == (7, 5)
    assert result["git_revision"] == "of its beginning"
    assert (tmp_path / "student.safetensors").read_bytes() == weights
    assert (tmp_path / "samples.png").exists()


def test_a_page_is_made_of_what_was_saved(tmp_path: Path, config: PipelineConfig) -> None:
    report.write_config(config, tmp_path)
    replay = InMemoryReplayBuffer(config.buffer)
    filled(replay, config, step=7)
    save(config, replay, Outcome(error=Interrupted("by hand")), tmp_path)
    assert "by hand" in (tmp_path / "report.html").read_text()


def test_a_page_that_cannot_be_made_takes_no_result_with_it(
    tmp_path: Path, config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    replay = InMemoryReplayBuffer(config.buffer)
    filled(replay, config, step=7)
    save(config, replay, Outcome(), tmp_path)  # there is no config.yaml
    assert (tmp_path / "result.json").exists()
    assert "no report.html was made" in caplog.text


def test_a_student_that_has_learnt_nothing_is_no_result(
    tmp_path: Path, config: PipelineConfig
) -> None:
    replay = InMemoryReplayBuffer(config.buffer)
    filled(replay, config, step=0)
    error = SsdkdError("starved by redis://user:secret@host")
    result = save(config, replay, Outcome(error=error), tmp_path)
    assert (result["interrupted"], result["error"]) == (False, "starved by redis://***@host")
    assert result["student_steps"] == 0
    assert not (tmp_path / "student.safetensors").exists()


def test_a_run_whose_buffer_died_leaves_the_student_of_its_last_checkpoint(
    tmp_path: Path, config: PipelineConfig
) -> None:
    with RedisServer.start() as server:
        replay = ReplayBuffer(config.buffer, url=server.url, run="dies")
        weights = filled(replay, config, step=7)
    checkpoint = tmp_path / "checkpoints" / "distiller" / "checkpoint_1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "student.safetensors").write_bytes(weights)
    lines = [{"version": [1, 5]}, {"version": [2, 6]}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = save(config, replay, Outcome(error=SsdkdError("no Redis")), tmp_path)
    replay.close()
    assert (tmp_path / "student.safetensors").read_bytes() == weights
    assert (result["attempts"], result["student_steps"]) == (2, 6)
    assert result["error"] == "no Redis"
    assert result["samples_inverted"] is None
    assert not (tmp_path / "samples.png").exists()
