"""The recorder, against real buffers and sinks that fail."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffer.interface import Replay
from buffer.memory import InMemoryReplayBuffer
from buffer.progress import StudentProgress
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.version import Version
from deploy import services
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from deploy.detached import MOST_WAITING, Detached, Tolerated
from deploy.recorder import Recorder
from deploy.sink import Pictures, Sink, Snapshot
from deploy.supervisor import Supervisor, Totals
from deploy.timeline import Timeline, recorded_seconds
from tests import waiting

QUICK = ["monitoring.interval_seconds=0.05", "monitoring.pictures_seconds=0.1"]
SMALL = ["buffer.capacity=200", "buffer.probe_capacity=0"]
until = partial(waiting.until, seconds=20.0, pause=0.01)


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.pictures: list[Pictures] = []
        self.closed = False

    def note(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def show(self, pictures: Pictures) -> None:
        self.pictures.append(pictures)

    def close(self) -> None:
        self.closed = True


class Broken:
    """A sink that can do nothing."""

    def note(self, snapshot: Snapshot) -> None:
        raise OSError("no space left on device")

    def show(self, pictures: Pictures) -> None:
        raise OSError("no space left on device")

    def close(self) -> None:
        raise OSError("no space left on device")


@pytest.fixture
def config() -> PipelineConfig:
    return load(DEFAULT_CONFIG, [*QUICK, *SMALL])


def filled(replay: Replay) -> Replay:
    samples = [
        Sample(
            image=np.full((1, 8, 8), i, np.uint8),
            predicted_class=i % 10,
            confidence=0.75,
            disagreement=1.0,
            target_label=(i + 1) % 10,
        )
        for i in range(200)
    ]
    replay.insert(samples, producer="p", sequence=1)
    replay.publish_progress(StudentProgress(version=Version(1, 30), phase="distilling"))
    return replay


def recorder(config: PipelineConfig, replay: Replay, out: Path, *sinks: Sink) -> Recorder:
    supervisor = Supervisor(lambda number: None, 2)
    totals = Totals(busy_seconds=3.0, waiting_seconds=1.0, rounds=4, restarts=1)
    return Recorder(config, replay, supervisor, lambda: totals, out, sinks)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_snapshots_say_what_the_run_is_doing(tmp_path: Path, config: PipelineConfig) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"learning_rate": 0.5}\n{"event": "evaluation", "student_accuracy": 61.0}\n'
    )
    kept = Kept()
    with recorder(config, filled(InMemoryReplayBuffer(config.buffer)), tmp_path, kept):
        until(lambda: len(kept.snapshots) > 2)
    last = kept.snapshots[-1]
    assert kept.closed
    assert (last.step, last.synthesizers.wanted) == (30, 2)
    assert last.elapsed_seconds >= kept.snapshots[0].elapsed_seconds > 0
    scalars = last.scalars()
    assert scalars["buffer/size"] == 200
    assert scalars["buffer/updates/applied"] == 0
    assert scalars["student/learning_rate"] == 0.5
    assert scalars["student/accuracy"] == 61.0
    assert scalars["parameters/priority_exponent"] == 0.6
    assert scalars["synthesizers/busy_seconds"] == 3.0
    assert sum(last.histograms()["buffer/priority"].counts) == 200


def test_pictures_are_of_every_class_and_not_counted_as_drawn(
    tmp_path: Path, config: PipelineConfig
) -> None:
    replay, kept = filled(InMemoryReplayBuffer(config.buffer)), Kept()
    with recorder(config, replay, tmp_path, kept):
        until(lambda: len(kept.pictures) > 0)
    pictures = kept.pictures[0]
    assert pictures.images.shape == (80, 1, 8, 8)
    assert pictures.predicted_classes.tolist() == sorted([*range(10)] * 8)
    assert len(np.unique(pictures.images)) == 80
    assert (pictures.target_labels == (pictures.predicted_classes + 1) % 10).all()
    np.testing.assert_allclose(pictures.difficulties, 0.25)
    assert set(pictures.ages.tolist()) == {30}
    assert sum(pictures.buffer_ages.counts) == pytest.approx(200)
    assert (pictures.step, replay.info().sampled) == (30, 0)


def test_the_pipeline_keeps_no_samples_that_it_has_looked_at(config: PipelineConfig) -> None:
    table = config.buffer.model_copy(update={"capacity": 200, "cache_mebibytes": 256})
    with RedisServer.start() as server:
        replay = services._open(
            config.model_copy(update={"buffer": table}), server.url, resumes=False
        )
        assert isinstance(replay, ReplayBuffer)
        filled(replay)
        for _ in range(3):
            replay.sample(100, counted=False)
        assert replay.cache.hits == 0
        replay.close()


def test_pictures_come_when_they_are_due_and_at_the_end(
    tmp_path: Path, config: PipelineConfig
) -> None:
    rare = load(DEFAULT_CONFIG, [*SMALL, QUICK[0], "monitoring.pictures_seconds=60"])
    replay, kept = filled(InMemoryReplayBuffer(config.buffer)), Kept()
    with recorder(rare, replay, tmp_path, kept):
        until(lambda: len(kept.snapshots) > 3)
    assert len(kept.pictures) == 2
    never, kept = load(DEFAULT_CONFIG, [*SMALL, "monitoring.pictures_seconds=null"]), Kept()
    with recorder(never, replay, tmp_path, kept):
        pass
    assert (len(kept.pictures), len(kept.snapshots)) == (0, 1)


def test_an_unfilled_buffer_is_noted_without_pictures(
    tmp_path: Path, config: PipelineConfig
) -> None:
    kept = Kept()
    with recorder(config, InMemoryReplayBuffer(config.buffer), tmp_path, kept):
        until(lambda: len(kept.snapshots) > 2)
    assert (kept.pictures, kept.snapshots[-1].histograms()) == ([], {})


def test_a_buffer_that_is_away_is_noted_as_such(tmp_path: Path, config: PipelineConfig) -> None:
    kept = Kept()
    with RedisServer.start() as server:
        replay = filled(ReplayBuffer(config.buffer, url=server.url, run="away"))
        noted = recorder(config, replay, tmp_path, kept, Timeline(tmp_path, dict))
        noted.__enter__()
        until(lambda: len(kept.pictures) > 0)
    until(lambda: kept.snapshots[-1].buffer is None)
    noted.__exit__()
    replay.close()
    assert kept.closed
    assert kept.snapshots[-1].scalars()["synthesizers/rounds"] == 4
    assert (kept.snapshots[-1].step, kept.snapshots[-1].progress) == (0, None)
    assert lines(tmp_path / "timeline.jsonl")[-1]["buffer"] is None


def test_a_sink_that_fails_is_said_once_and_disturbs_no_other(
    tmp_path: Path, config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept()
    with recorder(
        config, filled(InMemoryReplayBuffer(config.buffer)), tmp_path, Broken(), kept, Broken()
    ):
        until(lambda: len(kept.snapshots) > 3 and len(kept.pictures) > 1)
    assert kept.closed
    said = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    # Of the first and the third sink, for each of what they cannot do.
    assert said == ["Broken does not record: no space left on device"] * 6


def test_a_sink_that_can_show_nothing_but_notes_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Blind(Kept):
        def show(self, pictures: Pictures) -> None:
            raise OSError("no space left on device")

    sink = Tolerated(Blind())
    for _ in range(3):
        sink.note(None)
        sink.show(None)
    assert [each.message for each in caplog.records] == [
        "Blind does not record: no space left on device"
    ]


class Stuck(Kept):
    """A sink of a server that does not answer until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def note(self, snapshot: Snapshot) -> None:
        self.goes_on.wait(60)
        super().note(snapshot)


def test_a_server_that_does_not_answer_delays_neither_the_record_nor_the_end(
    tmp_path: Path, config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, kept = Stuck(), Kept()
    replay = filled(InMemoryReplayBuffer(config.buffer))
    with recorder(config, replay, tmp_path, Detached(stuck, end_seconds=0.1), kept):
        until(lambda: len(kept.snapshots) > 2)
    assert kept.closed
    assert not stuck.snapshots
    assert "Stuck has not ended within 0 s: it lacks the end of the run" in caplog.text
    stuck.goes_on.set()
    until(lambda: stuck.closed)


def test_of_what_waits_for_a_server_the_newest_is_kept_and_told_at_the_end(
    tmp_path: Path, config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    kept, stuck = Kept(), Stuck()
    with recorder(config, InMemoryReplayBuffer(config.buffer), tmp_path, kept):
        pass
    sink = Detached(stuck)
    for second in range(3 * MOST_WAITING):
        sink.note(replace(kept.snapshots[0], elapsed_seconds=float(second)))
    stuck.goes_on.set()
    sink.close()
    seconds = [int(each.elapsed_seconds) for each in stuck.snapshots]
    assert seconds[-MOST_WAITING:] == [*range(2 * MOST_WAITING, 3 * MOST_WAITING)]
    assert len(seconds) <= MOST_WAITING + 1
    assert stuck.closed
    said = [each.message for each in caplog.records]
    assert said == ["Stuck is too slow: parts of the run are left out"]


def test_a_folder_that_cannot_be_written_ends_nothing(
    tmp_path: Path, config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    kept, out = Kept(), tmp_path / "gone"
    replay = filled(InMemoryReplayBuffer(config.buffer))
    with recorder(config, replay, out, Timeline(out, dict), kept):
        until(lambda: len(kept.snapshots) > 2)
        out.mkdir()
        until(lambda: (out / "timeline.jsonl").exists())
    assert "Timeline does not record" in caplog.text
    assert lines(out / "timeline.jsonl")[0]["event"] == "start"


def test_what_cannot_be_looked_at_is_logged_and_tried_again(
    tmp_path: Path, config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept()
    (tmp_path / "metrics.jsonl").mkdir()  # no file, as nobody expects
    with recorder(config, InMemoryReplayBuffer(config.buffer), tmp_path, kept):
        until(lambda: "the run is not recorded just now" in caplog.text)
        (tmp_path / "metrics.jsonl").rmdir()
        until(lambda: len(kept.snapshots) > 0)


def test_a_run_that_goes_on_appends_and_goes_on_counting(
    tmp_path: Path, config: PipelineConfig
) -> None:
    replay = filled(InMemoryReplayBuffer(config.buffer))
    with recorder(config, replay, tmp_path, Timeline(tmp_path, lambda: {"versions": {}})):
        until(lambda: (tmp_path / "pictures.jsonl").exists())
    before, pictures = recorded_seconds(tmp_path), lines(tmp_path / "pictures.jsonl")
    assert before > 0
    with (tmp_path / "timeline.jsonl").open("a") as file:
        file.write('{"torn')
    supervisor, sink = Supervisor(lambda number: None, 1), Timeline(tmp_path, dict)
    with Recorder(config, replay, supervisor, Totals, tmp_path, [sink], elapsed_seconds=before):
        pass
    text = (tmp_path / "timeline.jsonl").read_text()
    starts = [number for number, line in enumerate(text.splitlines()) if '"start"' in line]
    assert len(starts) == 2
    assert text.splitlines()[starts[1] - 1] == '{"torn'
    assert json.loads(text.splitlines()[-1])["elapsed_seconds"] > before
    assert lines(tmp_path / "pictures.jsonl")[: len(pictures)] == pictures
    files = [line["file"] for line in lines(tmp_path / "pictures.jsonl")]
    assert len(set(files)) == len(files) == len(pictures) + 1
    assert all((tmp_path / file).exists() for file in files)


def test_nothing_is_recorded_without_an_interval(config: PipelineConfig, tmp_path: Path) -> None:
    off = config.monitoring.model_copy(update={"interval_seconds": None})
    kept = Kept()
    replay = filled(InMemoryReplayBuffer(config.buffer, seed=0))
    timeline = Timeline(tmp_path, dict)
    off_config = config.model_copy(update={"monitoring": off})
    with recorder(off_config, replay, tmp_path, kept, timeline):
        pass
    assert (kept.snapshots, kept.pictures, kept.closed) == ([], [], True)
    assert list(tmp_path.iterdir()) == []
