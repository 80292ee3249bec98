"""Starts the services of a run, waits for the student, ends them, and saves what they made."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from buffer.addresses import cluster_address, redis_url
from buffer.connect import connect
from buffer.errors import (
    ConfigError,
    ProtocolMismatch,
)
from buffer.interface import Replay
from buffer.lease import HELD_SECONDS, RunLease
from buffer.server import RedisServer
from deploy import report, resume
from deploy.cluster import check_nodes, cluster, unreachable
from deploy.config import PipelineConfig
from deploy.display import Display
from deploy.ending import Outcome, save
from deploy.interrupt import Interrupt
from deploy.monitoring import variables
from deploy.operation import Operation
from deploy.resume import Keeper, State
from deploy.supervisor import Totals
from distiller.service import CHECKPOINTS
from synthesizer.service import forget as forget_synthesizers

logger = logging.getLogger(__name__)


def run(
    config: PipelineConfig,
    out: Path,
    display: Display,
    *,
    earlier: State | None = None,
    waits: bool = False,
) -> dict[str, Any]:
    """Runs everything and writes the outputs.

    SIGINT and SIGTERM end the run early: what there is by then is saved all the same. They are
    noticed while nodes are waited for and when training has begun, so that no service is left half
    started; a second signal changes nothing.

    Args:
        config: validated, with absolute file names and a teacher that exists.
        out: folder of the outputs.
        display: shows how far it is.
        earlier: the state of the run's last pipeline, if this one goes on from it.
        waits: whether the run's last pipeline may have died just now, and still hold its name.

    Returns:
        What was written to ``result.json``.

    Raises:
        Interrupted: a signal ended the run, or an order (``Stopped``); what there is was saved.
        SsdkdError: a service could not be started or kept running; likewise.
    """
    outcome = Outcome(earlier=earlier.totals if earlier else Totals())
    checkpoints, resumes = out / CHECKPOINTS, earlier is not None
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        url = redis_url(config.buffer) or stack.enter_context(RedisServer.start()).url
        if (problem := unreachable(url)) is not None:
            raise ConfigError(f"{problem}; nothing was started")
        patience = 2 * HELD_SECONDS if waits else 0.0
        lease = stack.enter_context(RunLease(url, config.run.name, patience_seconds=patience))
        replay = _open(config, url, resumes=resumes)
        stack.callback(replay.close)
        environment = variables(config)
        display.enter("starting")
        stack.enter_context(cluster(config, environment))
        interrupt.listen()
        if cluster_address(config.run) is not None:  # this machine has been looked at
            check_nodes(config, url, out)
        operation = Operation(
            config, url, replay, out, outcome, interrupt, resumes=resumes, environment=environment
        )
        # Nothing was refused: from here on what an earlier run left is replaced.
        if earlier is None:
            resume.forget(checkpoints)
            report.clear(out)
            forget_synthesizers(checkpoints)
        report.write_config(config, out)
        state = resume.begin(replay, config.run.name, checkpoints, earlier)
        keeper = Keeper(
            replay,
            checkpoints,
            lambda: state._replace(totals=outcome.all_totals()),
            config.run.snapshot_seconds,
        )
        with keeper:
            try:
                operation.run(interrupt, lease, display)
            except BaseException as error:
                outcome.error = error
                display.enter("saving")
                try:
                    save(config, replay, outcome, out)
                except Exception:  # what ended the run is what the user has to know first
                    logger.exception("what the run made by then could not be saved")
                raise
            display.enter("saving")
            result = save(config, replay, outcome, out)
            keeper.finish()
            return result


def _open(config: PipelineConfig, url: str, *, resumes: bool) -> Replay:
    """The buffer of a run: empty, unless the run goes on and its own can be used."""
    # Who only looks at samples gains nothing from remembering those that it has seen.
    table = config.buffer.model_copy(update={"cache_mebibytes": 0})
    try:
        return connect(table, url=url, run=config.run.name, fresh=not resumes)
    except ProtocolMismatch as error:
        if not resumes:
            raise
        logger.warning("the buffer that is there is not used: %s", error)
        return connect(table, url=url, run=config.run.name, fresh=True)
