"""Starts the training as a Ray Train job and waits for its end."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result

from buffer.errors import SsdkdError
from distiller.config import DistillerFile
from distiller.validate import validate
from distiller.worker import Settings, train_loop

CHECKPOINTS = "checkpoints"
JOURNAL = "metrics.jsonl"
HEALTH_CHECK_SECONDS = "0.5"


def fit(
    config: DistillerFile, *, url: str, out: Path, cpus: float, resume: bool = False
) -> Mapping[str, Any]:
    """Trains the student on the connected Ray cluster; returns when the budget is spent.

    Workers that die are started again from the newest checkpoint, ``distiller.max_failures`` times.

    Args:
        config: validated, with absolute file names.
        url: of the Redis server, as the workers reach it.
        out: folder of the outputs, absolute, shared by all nodes: ``metrics.jsonl`` and
            ``checkpoints/`` are written there.
        cpus: of one worker; fractions let workers share one.
        resume: go on from the newest checkpoint in ``out`` instead of starting anew.

    Returns:
        The final metrics (see :meth:`distiller.reporter.Reporter.finish`).

    Raises:
        SsdkdError: the training cannot go on, or failed more often than
            ``distiller.max_failures``.
        KeyboardInterrupt: Ctrl-C; the workers are gone, checkpoints and snapshots stay.
    """
    # A report waits for the next health check: at the default of two seconds, that long.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_SECONDS)
    if not resume:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        (out / JOURNAL).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _interruptible():
            result = cast(Result, ray_trainer(config, url=url, out=out, cpus=cpus).fit())
    except TrainingFailedError as error:
        raise _translated(error) from error
    if result.return_value is not None:
        raise cast(SsdkdError, result.return_value)
    return cast(Mapping[str, Any], result.metrics)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Makes Ctrl-C mean what it means elsewhere.

    In the main thread Ray Train replaces the handler for good, and ends the process from it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)


def ray_trainer(config: DistillerFile, *, url: str, out: Path, cpus: float) -> TorchTrainer:
    """The training as Ray Train runs it; arguments as in :func:`fit`.

    Ray Train shows the loop's configuration with the run: the server's URL, which may hold a
    password, is bound to the loop instead.
    """
    table = config.distiller
    public = config.model_copy(update={"buffer": config.buffer.model_copy(update={"url": None})})
    settings = Settings(
        config=public.model_dump(mode="json", include=set(DistillerFile.model_fields)),
        journal=str(out / JOURNAL),
        threads=max(1, math.floor(cpus)),
    )
    return TorchTrainer(
        cast(Callable[[dict[str, Any]], None], partial(train_loop, url=url)),
        train_loop_config=cast(dict[str, Any], settings),
        torch_config=TorchConfig(backend="nccl" if table.gpus > 0 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=table.workers,
            use_gpu=table.gpus > 0,
            resources_per_worker=_resources(cpus, table.gpus),
        ),
        run_config=RunConfig(
            name="distiller",
            storage_path=str(out / CHECKPOINTS),
            failure_config=FailureConfig(max_failures=table.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus > 0 else {"CPU": cpus}


def _translated(error: TrainingFailedError) -> SsdkdError:
    """The first worker's own words, without Ray's frames around them."""
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return SsdkdError(f"the training failed: {error}")
    rank, cause = min(error.worker_failures.items())
    if isinstance(cause, SsdkdError):
        return SsdkdError(f"the training failed on worker {rank}: {cause}")
    first = (str(cause).strip().splitlines() or ["no message"])[0]
    return SsdkdError(
        f"the training failed on worker {rank}: {type(cause).__name__}: {first} "
        "(more in Ray's logs of the worker)"
    )


__all__ = ["CHECKPOINTS", "JOURNAL", "fit", "validate"]
