"""Starts the training as a Ray Train job and waits for its end.

Not for the main thread of a program that wants its signals: there Ray Train takes SIGINT for
itself, for good.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

from ray.exceptions import RayActorError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result

from buffer.connect import connect
from buffer.errors import SsdkdError
from distiller import checkpoint
from distiller.config import DistillerFile
from distiller.tally import Origin
from distiller.validate import validate
from distiller.worker import ENDING, JOURNAL, Settings, train_loop

CHECKPOINTS = "checkpoints"
NAME = "distiller"
"""Of the training in Ray Train, and of its folder among the checkpoints."""
HEALTH_CHECK_SECONDS = "0.5"
RESIZE_SECONDS = 30.0
"""How often an elastic training looks whether there is room for another number of workers."""


def fit(
    config: DistillerFile,
    *,
    url: str,
    out: Path,
    cpus: float,
    resume: bool = False,
    began_seconds: float | None = None,
) -> Mapping[str, Any]:
    """Trains the student on the connected Ray cluster; returns when the budget is spent.

    Workers that die are started again from the newest checkpoint, ``distiller.max_failures`` times.

    Args:
        config: validated, with absolute file names.
        url: of the Redis server, as the workers reach it.
        out: folder of the outputs, absolute, shared by all nodes: ``metrics.jsonl``,
            ``checkpoints/distiller``, and in the end ``student.safetensors``, are written there.
        cpus: of one worker; fractions let workers share one.
        resume: go on from the newest checkpoint in ``out`` instead of starting anew.
        began_seconds: age of the buffer when the training's clock began: 0 if the run began with
            its buffer. Default: now, with what the checkpoint says (or nothing) spent.

    Returns:
        The final metrics (see :meth:`distiller.reporter.Reporter.finish`).

    Raises:
        BufferUnavailable: the server cannot be reached, nothing was started.
        Interrupted: the training was asked to end early (:func:`end_early`).
        SsdkdError: it cannot go on, or its workers died once too often.
    """
    # A report waits for the next health check: at the default of two seconds, that long.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_SECONDS)
    origin = _origin(config, url, began_seconds)
    _prepare(out, resume=resume)
    return _result(ray_trainer(config, url=url, out=out, cpus=cpus, origin=origin), out)


def end_early(out: Path) -> None:
    """Asks the training in ``out`` to end: it publishes and saves what the student is by then.

    Returns at once; :func:`fit` raises ``Interrupted`` when it is done, within seconds of training.
    A training that has not begun yet may overlook it: ask until it has ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / ENDING).touch()


def _origin(config: DistillerFile, url: str, began_seconds: float | None) -> Origin:
    """Where a training begins that starts now."""
    with closing(connect(config.buffer, url=url, run=config.run.name)) as replay:
        published = replay.progress()
        now = replay.info().seconds
    return Origin(
        seconds=now if began_seconds is None else began_seconds,
        attempt=0 if published is None else published.version.attempt,
    )


def _prepare(out: Path, *, resume: bool) -> None:
    """Makes the folder; what an earlier training left there goes, unless this one goes on."""
    out.mkdir(parents=True, exist_ok=True)
    (out / ENDING).unlink(missing_ok=True)
    if not resume:
        shutil.rmtree(out / CHECKPOINTS / NAME, ignore_errors=True)
        (out / JOURNAL).unlink(missing_ok=True)
        (out / checkpoint.STUDENT).unlink(missing_ok=True)


def _result(trainer: TorchTrainer, out: Path) -> Mapping[str, Any]:
    """Runs the training; the student of its newest checkpoint is kept however it ended.

    Not if the workers died once too often: it is still among the checkpoints then.
    """
    try:
        result = cast(Result, trainer.fit())
    except TrainingFailedError as error:
        raise _translated(error) from error
    except RayActorError as error:
        # Not started again here: what it had reserved for the workers stays taken as long as the
        # driver lives, unless the cluster has a dashboard.
        raise SsdkdError(
            "the training failed: the process that watches over its workers died; its newest "
            f"checkpoint stays, --resume goes on from it ({_first_line(error)})"
        ) from error
    if result.checkpoint is not None:
        _keep_student(result.checkpoint, out)
    if result.return_value is not None:
        raise cast(SsdkdError, result.return_value)
    return cast(Mapping[str, Any], result.metrics)


def _keep_student(saved: Checkpoint, out: Path) -> None:
    """Copies the student out of a checkpoint, so that a reader sees it whole or not at all."""
    partial_file = out / f"{checkpoint.STUDENT}.partial"
    with saved.as_directory() as folder:
        shutil.copyfile(Path(folder) / checkpoint.STUDENT, partial_file)
    os.replace(partial_file, out / checkpoint.STUDENT)


def ray_trainer(
    config: DistillerFile, *, url: str, out: Path, cpus: float, origin: Origin
) -> TorchTrainer:
    """The training as Ray Train runs it; arguments as in :func:`fit`.

    Ray Train shows the loop's configuration with the run: the server's URL, which may hold a
    password, is bound to the loop instead.
    """
    table = config.distiller
    public = config.model_copy(update={"buffer": config.buffer.model_copy(update={"url": None})})
    settings = Settings(
        config=public.model_dump(mode="json", include=set(DistillerFile.model_fields)),
        out=str(out),
        origin=(origin.seconds, origin.attempt),
        threads=max(1, math.floor(cpus)),
    )
    return TorchTrainer(
        cast(Callable[[dict[str, Any]], None], partial(train_loop, url=url)),
        train_loop_config=cast(dict[str, Any], settings),
        torch_config=TorchConfig(backend="nccl" if table.gpus > 0 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(
                table.workers if table.max_workers is None else (table.workers, table.max_workers)
            ),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=table.gpus > 0,
            resources_per_worker=resources(cpus, table.gpus),
        ),
        run_config=RunConfig(
            name=NAME,
            storage_path=str(out / CHECKPOINTS),
            failure_config=FailureConfig(max_failures=table.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )


def resources(cpus: float, gpus: float) -> dict[str, float]:
    """What one process needs, in Ray's words."""
    return {"CPU": cpus, "GPU": gpus} if gpus > 0 else {"CPU": cpus}


def _translated(error: TrainingFailedError) -> SsdkdError:
    """The first worker's own words, without Ray's frames around them."""
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return SsdkdError(f"the training failed: {error}")
    rank, cause = min(error.worker_failures.items())
    if isinstance(cause, SsdkdError):
        return SsdkdError(f"the training failed on worker {rank}: {cause}")
    return SsdkdError(
        f"the training failed on worker {rank}: {type(cause).__name__}: {_first_line(cause)} "
        "(more in Ray's logs of the worker)"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


__all__ = ["CHECKPOINTS", "JOURNAL", "end_early", "fit", "resources", "validate"]
