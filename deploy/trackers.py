"""Sinks for the tools in which people compare runs: TensorBoard, Weights & Biases, MLflow.

Their packages are extras, imported only when a run uses them. Each begins when the first snapshot
is noted; those that talk to servers do so in threads of their own, so that no run waits for them.

Letters in shapes: M images, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy import report
from deploy.config import PipelineConfig
from deploy.detached import END_SECONDS, Detached
from deploy.sink import Histogram, Pictures, Sink, Snapshot

TENSORBOARD = "tensorboard"
"""Folder of the events, in that of a run's outputs."""
FLUSH_SECONDS = 10
INIT_SECONDS = 30.0
"""W&B's server may take so long to make a run; then it is asked again."""
PROJECT = "ssdkd"
"""Of W&B, and the experiment of MLflow, unless their own variables name another."""


def sinks(config: PipelineConfig, out: Path) -> list[Sink]:
    """The sinks of ``monitoring.sinks``, whose packages are installed.

    Args:
        config: the run.
        out: folder of its outputs.
    """
    makers: dict[str, Callable[[PipelineConfig, Path], Sink]] = {
        "tensorboard": TensorBoard,
        "wandb": lambda *run: Detached(WeightsAndBiases(*run)),
        "mlflow": lambda *run: Detached(MLflow(*run)),
    }
    return [makers[name](config, out) for name in config.monitoring.sinks]


class TensorBoard:
    """Event files in the folder of the outputs, written by tensorboardX.

    The step is the student's; while it is not known it stays what it was.

    Args:
        config: the run; its name is TensorBoard's, too, if its folder has it.
        out: folder of the outputs.
    """

    def __init__(self, config: PipelineConfig, out: Path) -> None:
        self._out, self._step = out, 0
        self._writer: Any = None

    def note(self, snapshot: Snapshot) -> None:
        """Scalars and histograms."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            folder = str(self._out / TENSORBOARD)
            self._writer = SummaryWriter(logdir=folder, flush_secs=FLUSH_SECONDS)
        self._step = max(self._step, snapshot.step)
        when = {"global_step": self._step, "walltime": snapshot.time}
        for name, value in snapshot.scalars().items():
            self._writer.add_scalar(name, value, **when)
        for name, histogram in snapshot.histograms().items():
            self._writer.add_histogram_raw(name, **moments(histogram), **when)

    def show(self, pictures: Pictures) -> None:
        """A row of images for each class."""
        if self._writer is None:
            return
        for label, row in rows(pictures):
            self._writer.add_image(
                f"samples/class_{label}", row, pictures.step, pictures.time, dataformats="HWC"
            )

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run of W&B, with the credentials and the mode of its own settings and variables.

    The horizontal axis is the student's step.

    Args:
        config: the run.
        out: folder of the outputs, where W&B keeps its files.
    """

    def __init__(self, config: PipelineConfig, out: Path) -> None:
        self._config, self._out = config, out
        self._run: Any = None

    def note(self, snapshot: Snapshot) -> None:
        """Scalars and histograms."""
        import wandb

        if self._run is None:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=self._config.run.name,
                dir=str(self._out),
                config=report.public(self._config),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    # Its metadata hold our command line, in which a URL may hold a password.
                    x_disable_meta=True,
                    # Its threads and its process would keep ours from ending for longer.
                    init_timeout=INIT_SECONDS,
                    finish_timeout=END_SECONDS,
                ),
            )
            self._run.define_metric("*", step_metric="step")
        values: dict[str, Any] = {"step": snapshot.step, **snapshot.scalars()}
        for name, histogram in snapshot.histograms().items():
            values[name] = wandb.Histogram(
                np_histogram=(np.array(histogram.counts), np.array(histogram.edges))
            )
        self._run.log(values)

    def show(self, pictures: Pictures) -> None:
        """A row of images for each class."""
        import wandb

        if self._run is not None:
            found = {f"samples/class_{label}": wandb.Image(row) for label, row in rows(pictures)}
            self._run.log({"step": pictures.step, **found})

    def close(self) -> None:
        """Sends what is left, and ends W&B's own process."""
        if self._run is not None:
            import wandb

            self._run.finish()
            wandb.teardown()


class MLflow:
    """A run of MLflow's tracking server, or of a folder among the outputs if none is named.

    It knows no histograms: those are left out.

    Args:
        config: the run.
        out: folder of the outputs.
    """

    def __init__(self, config: PipelineConfig, out: Path) -> None:
        self._config, self._out = config, out
        self._client: Any = None
        self._run = ""

    def note(self, snapshot: Snapshot) -> None:
        """Scalars."""
        from mlflow.entities import Metric

        if self._client is None:
            self._begin()
        stamp = int(1000 * snapshot.time)
        values = snapshot.scalars().items()
        metrics = [Metric(name, value, stamp, snapshot.step) for name, value in values]
        self._client.log_batch(self._run, metrics=metrics)

    def show(self, pictures: Pictures) -> None:
        """A row of images for each class."""
        if self._client is None:
            return
        for label, row in rows(pictures):
            self._client.log_image(self._run, row, key=f"samples_class_{label}", step=pictures.step)

    def close(self) -> None:
        """Says that the run has ended."""
        if self._client is not None:
            self._client.set_terminated(self._run)

    def _begin(self) -> None:
        from mlflow import MlflowClient

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        server = os.environ.get("MLFLOW_TRACKING_URI")
        here = (self._out / "mlflow").as_uri()
        client = MlflowClient(server or f"sqlite:///{self._out / 'mlflow.db'}")
        known = client.get_experiment_by_name(name)
        experiment = (
            client.create_experiment(name, artifact_location=None if server else here)
            if known is None
            else known.experiment_id
        )
        self._run = client.create_run(experiment, run_name=self._config.run.name).info.run_id
        self._client = client  # before what may fail: each time another run would be made
        client.log_dict(self._run, report.public(self._config), "config.json")


def rows(pictures: Pictures) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each class with its images side by side: ``[H, M * W, 3]``, grey unless they are RGB."""
    images = pictures.images
    if images.shape[1] != 3:
        grey = images.mean(axis=1, keepdims=True).round().astype(np.uint8)
        images = np.repeat(grey, 3, axis=1)
    for label in np.unique(pictures.predicted_classes):
        of_class = images[pictures.predicted_classes == label]
        yield int(label), np.concatenate(list(of_class.transpose(0, 2, 3, 1)), axis=1)


def moments(histogram: Histogram) -> dict[str, Any]:
    """What TensorBoard wants to know of a histogram; its bins count as their middles."""
    edges, counts = np.array(histogram.edges), np.array(histogram.counts)
    middles = (edges[:-1] + edges[1:]) / 2
    return {
        "min": edges[0],
        "max": edges[-1],
        "num": counts.sum(),
        "sum": counts @ middles,
        "sum_squares": counts @ middles**2,
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }
