"""What trackers were told is read back with their own readers."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from buffer.config import BufferTable
from buffer.errors import ConfigError
from buffer.memory import InMemoryReplayBuffer
from buffer.progress import StudentProgress
from buffer.sample import Sample
from buffer.version import Version
from deploy import report, validate
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from deploy.pictures import draw
from deploy.sink import Histogram, Pictures, Sink, Snapshot, Synthesizers
from deploy.supervisor import Totals
from deploy.trackers import TENSORBOARD, moments, rows, sinks


def config(*names: str) -> PipelineConfig:
    chosen = ",".join(names)
    return load(DEFAULT_CONFIG, [f"monitoring.sinks=[{chosen}]"])


@pytest.fixture
def replay() -> InMemoryReplayBuffer:
    """30 samples of three classes, of grey 0, 100 and 200."""
    replay = InMemoryReplayBuffer(BufferTable(capacity=30, probe_capacity=0), seed=0)
    replay.insert(
        [
            Sample(
                image=np.full((1, 8, 8), i % 3 * 100, np.uint8),
                predicted_class=i % 3,
                confidence=0.75,
                disagreement=1.0 if i < 10 else 40.0,
            )
            for i in range(30)
        ],
        producer="p",
        sequence=1,
    )
    return replay


def snapshot(replay: InMemoryReplayBuffer, step: int) -> Snapshot:
    return Snapshot(
        time=1000.0 + step,
        elapsed_seconds=float(step),
        synthesizers=Synthesizers(2, {"running": 1}, Totals(busy_seconds=3.5)),
        buffer=replay.info(),
        params=replay.params(),
        progress=StudentProgress(version=Version(1, step), kl_mean=step / 10),
        student_accuracy=71.5,
    )


def told(sink: Sink, replay: InMemoryReplayBuffer) -> Pictures:
    """Tells a sink of two moments, and shows it pictures."""
    sink.note(snapshot(replay, 10))
    sink.note(snapshot(replay, 20))
    pictures = draw(replay, config().teacher, snapshot(replay, 20))
    assert pictures is not None
    sink.show(pictures)
    sink.close()
    return pictures


def test_tensorboard_reads_scalars_histograms_and_a_grid_per_class(
    replay: InMemoryReplayBuffer, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (sink,) = sinks(config("tensorboard"), tmp_path)
    pictures = told(sink, replay)
    read = EventAccumulator(
        str(tmp_path / TENSORBOARD), {"scalars": 0, "images": 0, "histograms": 0}
    ).Reload()
    expected = snapshot(replay, 20).scalars()
    del expected["buffer/seconds"]  # goes on
    assert set(read.Tags()["scalars"]) == {*expected, "buffer/seconds"}
    for name, value in expected.items():
        points = read.Scalars(name)
        assert [(each.step, each.wall_time) for each in points] == [(10, 1010.0), (20, 1020.0)]
        assert points[-1].value == pytest.approx(value, rel=1e-6)
    assert {"student/kl_mean", "student/accuracy", "buffer/inserted"} <= set(expected)
    assert read.Tags()["images"] == [f"samples/class_{label}" for label in range(3)]
    for label in range(3):
        (shown,) = read.Images(f"samples/class_{label}")
        grid = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
        count = int((pictures.predicted_classes == label).sum())
        assert grid.shape == (8, 8 * count, 3)
        assert set(np.unique(grid)) == {label * 100}
    histogram = read.Histograms("buffer/priority")[-1].histogram_value
    assert histogram.num == 30
    assert sum(histogram.bucket) == 30
    assert sorted(histogram.bucket)[-2:] == [10, 20]


def test_steps_do_not_go_back_while_the_buffer_is_away(
    replay: InMemoryReplayBuffer, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (sink,) = sinks(config("tensorboard"), tmp_path)
    now = snapshot(replay, 10)
    sink.note(now)
    sink.note(replace(now, buffer=None, params=None, progress=None))
    sink.close()
    read = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert [each.step for each in read.Scalars("synthesizers/wanted")] == [10, 10]


def test_wandb_takes_the_same_without_a_network(
    replay: InMemoryReplayBuffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["ssdkd", "run", "--set", "buffer.url=redis://:secret@redis"])
    (sink,) = sinks(config("wandb"), tmp_path)
    told(sink, replay)
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    data = written.read_bytes()
    for name in (b"student/kl_mean", b"buffer/priority", b"samples/class_2"):
        assert name in data
    assert b"secret" not in data
    assert not list((tmp_path / "wandb").rglob("wandb-metadata.json"))
    assert len(list((tmp_path / "wandb").rglob("*.png"))) == 3


@pytest.mark.filterwarnings("ignore")  # of MLflow about SQLAlchemy
def test_mlflow_takes_numbers_and_images_in_a_folder(
    replay: InMemoryReplayBuffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (sink,) = sinks(config("mlflow"), tmp_path)
    told(sink, replay)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'ssdkd'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("demo", "FINISHED")
    points = client.get_metric_history(run.info.run_id, "student/kl_mean")
    assert [(each.step, each.value) for each in points] == [(10, 1.0), (20, 2.0)]
    assert len(client.list_artifacts(run.info.run_id, "images")) >= 3


@pytest.mark.filterwarnings("ignore")  # of MLflow about SQLAlchemy
def test_mlflow_has_one_run_though_its_files_cannot_be_written(
    replay: InMemoryReplayBuffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow").write_text("no folder")
    (sink,) = sinks(config("mlflow"), tmp_path)
    told(sink, replay)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'ssdkd'")
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "student/kl_mean")
    assert (run.info.status, points[-1].step) == ("FINISHED", 20)


def test_tensorboard_does_not_keep_an_earlier_run_but_the_one_that_goes_on(
    replay: InMemoryReplayBuffer, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def steps() -> list[int]:
        read = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
        return [each.step for each in read.Scalars("synthesizers/wanted")]

    for goes_on, step, expected in ((False, 10, [10]), (False, 20, [20]), (True, 30, [20, 30])):
        (sink,) = sinks(config("tensorboard"), tmp_path)
        if not goes_on:
            report.clear(tmp_path)  # as the pipeline does, when the sinks have been made
        sink.note(snapshot(replay, step))
        sink.close()
        assert steps() == expected
        written = max((tmp_path / TENSORBOARD).iterdir())
        written.rename(written.with_name("events.out.tfevents.1"))  # names are of a second


def test_images_of_a_class_stand_side_by_side() -> None:
    images = np.arange(3 * 2 * 4 * 5, dtype=np.uint8).reshape(3, 2, 4, 5)
    pictures: Any = type("Some", (), {"images": images, "predicted_classes": np.array([1, 4, 4])})
    (first, one), (second, two) = rows(pictures)
    assert (first, one.shape) == (1, (4, 5, 3))
    assert (second, two.shape) == (4, (4, 10, 3))
    assert (two[:, 5:, 0] == images[2].mean(axis=0).round()).all()


def test_a_histogram_is_told_by_its_moments() -> None:
    assert moments(Histogram((0.0, 2.0, 4.0), (3.0, 1.0))) == {
        "min": 0.0,
        "max": 4.0,
        "num": 4.0,
        "sum": 6.0,
        "sum_squares": 12.0,
        "bucket_limits": [2.0, 4.0],
        "bucket_counts": [3.0, 1.0],
    }


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_sink_without_its_package_is_refused_before_anything_starts(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "find_spec", lambda _: None)
    message = (
        rf"monitoring.sinks \({name}\): the package {package} is not installed.*ssdkd\[{name}\]"
    )
    with pytest.raises(ConfigError, match=message):
        validate._check_sinks(config(name))
