"""What each Ray Train worker runs: the only place of the training that knows Ray Train."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypedDict, cast

import ray.train
import ray.train.torch
import torch
from prometheus_client import CollectorRegistry

from buffer import logs
from buffer.connect import connect
from buffer.errors import SsdkdError
from buffer.interface import Replay
from buffer.metrics import ClientMetrics, process_registry
from distiller import checkpoint
from distiller.agreement import LASTING
from distiller.config import DistillerFile
from distiller.metrics import DistillerMetrics
from distiller.ranks import Ranks
from distiller.tally import Origin
from distiller.trainer import NETWORKS, Trainer

logger = logging.getLogger(__name__)

JOURNAL = "metrics.jsonl"
ENDING = "stop"
"""A file of this name in the folder of outputs asks the training to end early.

Why a file: the workers write there anyway, whatever node they are on; it needs neither a live
driver nor a live buffer; and anybody can make one."""


class Settings(TypedDict):
    """What a worker is told: plain data, absolute paths (Ray changes the working folder).

    Ray Train keeps it with the run and shows it: no secrets.
    """

    config: dict[str, Any]
    """A :class:`~distiller.config.DistillerFile` as plain data, without the server's URL."""
    out: str
    """Folder of the outputs."""
    origin: tuple[float, int]
    """An :class:`~distiller.tally.Origin`."""
    threads: int
    """Threads of one worker's tensor operations."""


def train_loop(plain: dict[str, Any], *, url: str) -> SsdkdError | None:
    """Trains until the budget is spent, from the newest checkpoint if there is one.

    Args:
        plain: :class:`Settings`, as Ray Train hands them over.
        url: of the Redis server; may hold a password.

    Returns:
        An error that starting again would not mend: Ray Train would, if it were raised.
    """
    settings = cast(Settings, plain)
    torch.set_num_threads(settings["threads"])
    config = DistillerFile.model_validate(settings["config"])
    logging.getLogger().handlers.clear()  # Ray Train has put its own there
    rank = ray.train.get_context().get_world_rank()
    logs.configure(config.run.log_level, f"distiller-{rank}")
    registry = process_registry()
    observer = ClientMetrics(registry)
    try:
        with closing(
            connect(config.buffer, url=url, run=config.run.name, observer=observer)
        ) as replay:
            return _train(config, replay, settings, registry)
    except LASTING as error:
        if ray.train.get_context().get_world_size() > 1:
            raise  # the other ranks may wait for this one: only Ray can end them
        return error


def _train(
    config: DistillerFile, replay: Replay, settings: Settings, registry: CollectorRegistry
) -> SsdkdError | None:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)
    attempt = _begin_attempt(replay, ranks)
    out, measured = Path(settings["out"]), DistillerMetrics(registry)
    trainer = Trainer(
        config,
        replay,
        attempt=attempt,
        ranks=ranks,
        device=device,
        origin=Origin(*settings["origin"]),
        end_asked=(out / ENDING).exists,
        journal=out / JOURNAL,
        metrics=measured,
    )

    def save(figures: Mapping[str, Any]) -> None:
        with measured.blocked():
            report(trainer, ranks, figures)

    torch.manual_seed(trainer.seed(NETWORKS))
    resume(trainer)
    if attempt > 1 and ranks.leads:
        logger.warning("attempt %d of the training goes on at step %d", attempt, trainer.tally.step)
    with trainer:
        try:
            metrics = trainer.run(save=lambda: save(trainer.tally.as_metrics()))
        except LASTING as error:
            return error  # on every rank
        save(metrics)
    return None


def _begin_attempt(replay: Replay, ranks: Ranks) -> int:
    """One attempt number for all ranks, handed out to rank 0."""
    own = replay.begin_attempt("distiller") if ranks.leads else 0
    return int(ranks.gather([own])[0][0])


def resume(trainer: Trainer) -> None:
    """Goes on from the newest checkpoint Ray knows of, if there is one."""
    found = ray.train.get_checkpoint()
    if found is None:
        return
    with found.as_directory() as folder:
        trainer.load_state_dict(*checkpoint.load(Path(folder)))


def report(trainer: Trainer, ranks: Ranks, metrics: Mapping[str, Any]) -> None:
    """Hands Ray a checkpoint and metrics. A barrier: every rank calls it equally often."""
    if not ranks.leads:
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), trainer.pair.weights(), trainer.state_dict())
        saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(dict(metrics), checkpoint=saved)
