"""Starts the services of a run, waits for the student, ends them, and saves what they made."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from buffer.addresses import redis_url
from buffer.connect import connect
from buffer.controller.service import end as end_controller
from buffer.controller.service import start as start_controller
from buffer.errors import (
    BufferUnavailable,
    ConfigError,
    Interrupted,
    ProtocolMismatch,
    SsdkdError,
    Stopped,
)
from buffer.interface import Replay
from buffer.lease import HELD_SECONDS, RunLease
from buffer.server import RedisServer
from deploy import report, resume
from deploy.cluster import await_nodes, check_nodes, cluster, cluster_cpus, unreachable
from deploy.config import PipelineConfig
from deploy.control import Control, Order, progress_of
from deploy.display import Display
from deploy.ending import Outcome, save
from deploy.fitting import Several
from deploy.interrupt import Interrupt
from deploy.monitoring import Monitoring, variables
from deploy.placement import Places, Reservation
from deploy.resume import Keeper, State
from deploy.scaling import Autoscaler, Seconds
from deploy.supervisor import Supervisor, Totals
from deploy.validate import cpu_shares
from distiller.background import Background, Watch
from distiller.service import CHECKPOINTS, JOURNAL, end_early, fit, resources
from synthesizer.service import forget as forget_synthesizers
from synthesizer.service import start as start_synthesizer

logger = logging.getLogger(__name__)

FINISH_SECONDS = 10.0
"""The training may take so long to save its student when a run is ended early."""
LOOK_SECONDS = 0.2
EXCHANGE_SECONDS = 1.0
"""Between two looks at the desk, where orders come in."""


def run(
    config: PipelineConfig,
    out: Path,
    console: Console,
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
        console: where progress is shown.
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
        stack.enter_context(cluster(config, environment))
        interrupt.listen()
        check_nodes(config, url, out)
        pipeline = _Pipeline(
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
                pipeline.run(interrupt, lease, console)
            except BaseException as error:
                outcome.error = error
                try:
                    save(config, replay, outcome, out)
                except Exception:  # what ended the run is what the user has to know first
                    logger.exception("what the run made by then could not be saved")
                raise
            result = save(config, replay, outcome, out)
            keeper.finish()
            return result


def _open(config: PipelineConfig, url: str, *, resumes: bool) -> Replay:
    """The buffer of a run: empty, unless the run goes on and its own can be used."""
    try:
        return connect(config.buffer, url=url, run=config.run.name, fresh=not resumes)
    except ProtocolMismatch as error:
        if not resumes:
            raise
        logger.warning("the buffer that is there is not used: %s", error)
        return connect(config.buffer, url=url, run=config.run.name, fresh=True)


class _Pipeline:
    """The services of a run while they work."""

    def __init__(
        self,
        config: PipelineConfig,
        url: str,
        replay: Replay,
        out: Path,
        outcome: Outcome,
        interrupt: Interrupt,
        *,
        resumes: bool,
        environment: Mapping[str, str],
    ) -> None:
        self._config, self._url, self._replay, self._out = config, url, replay, out
        self._outcome, self._resumes = outcome, resumes
        self._control = Control(config.run.name)
        actor_cpus, self._worker_cpus = cpu_shares(config, cluster_cpus())
        actor = resources(actor_cpus, config.synthesizer.gpus)
        worker = resources(self._worker_cpus, config.distiller.gpus)
        await_nodes(config, actor, worker, interrupted=interrupt.is_set)
        places = Places(actor, Several(worker, config.distiller.workers))

        def start(number: int) -> Any:
            place = places.of(number)
            return place and start_synthesizer(
                config,
                url=url,
                index=number,
                cpus=actor_cpus,
                checkpoints=out / CHECKPOINTS,
                place=place,
            )

        self._supervisor = Supervisor(
            start, config.synthesizer.actors, stays=places.tenable, leave=places.give_up
        )
        outcome.totals = self._supervisor.totals
        self._monitoring = Monitoring(config, replay, self._supervisor, environment)
        self._reservation = Reservation(config.run.name, places)
        table, self._autoscaler = config.synthesizer, None
        if table.max_actors is not None:
            self._autoscaler = Autoscaler(table.min_actors or 1, table.max_actors)
        self._exchanged, self._stop_ordered = 0.0, False

    def run(self, interrupt: Interrupt, lease: RunLease, console: Console) -> None:
        """Starts the services, waits for the student, stops the services."""
        config = self._config
        controller = (
            None
            if config.controller.policy == "off"
            else start_controller(config, url=self._url, log=self._out / "controller.jsonl")
        )
        try:
            self._supervisor.start()
            self._reserve()
            with self._monitoring, Display(self._replay, config.buffer.minimum, console):
                if self._monitoring.address is not None:
                    console.print(f"metrics: {self._monitoring.address}/metrics", highlight=False)
                training = Background(self._train, end=lambda: end_early(self._out))
                watch = Watch(self._out / JOURNAL, config.distiller.max_waiting_seconds)
                while not training.done(LOOK_SECONDS):
                    try:
                        watch.check()
                        self._check(interrupt, lease)
                        self._exchange()
                    except SsdkdError:
                        training.end(FINISH_SECONDS)
                        raise
                self._outcome.metrics = training.result()
        finally:
            self._supervisor.stop()
            self._reservation.end()
            if controller is not None:
                self._outcome.controller_failure = end_controller(*controller)

    def _train(self) -> Any:
        return fit(
            self._config,
            url=self._url,
            out=self._out,
            cpus=self._worker_cpus,
            resume=self._resumes,
            began_seconds=None if self._resumes else 0.0,
        )

    def _check(self, interrupt: Interrupt, lease: RunLease) -> None:
        """Raises what should end the run now, if anything."""
        if interrupt.is_set():
            raise Interrupted("the run was interrupted; what there was by then is saved")
        if lease.lost:
            raise SsdkdError(
                f"run.name ({self._config.run.name}): another run has taken this name and emptied "
                "the buffer; what there was by then is saved"
            )
        if (failure := self._supervisor.failure()) is not None:
            raise SsdkdError(f"no synthesizer can be kept running: {failure}")

    def _exchange(self) -> None:
        """Says how things are, and does what was ordered."""
        now = time.monotonic()
        if now - self._exchanged < EXCHANGE_SECONDS:
            return
        self._exchanged = now
        self._monitoring.look()
        self._autoscale(now)
        self._reserve()
        self._control.exchange(self._status(), self._obey)
        if self._stop_ordered:
            raise Stopped("the run was stopped; what there was by then is saved")

    def _obey(self, order: Order) -> str | None:
        """Carries out an order; why not, if it cannot be."""
        if order.kind == "stop":
            self._stop_ordered = True
        else:
            self._scale(order.number)
        return None

    def _scale(self, wanted: int) -> None:
        if self._autoscaler is not None and not self._autoscaler.allows(wanted):
            logger.warning("synthesizer.max_actors: %d by hand ends automatic scaling", wanted)
            self._autoscaler = None
        self._supervisor.scale(wanted)
        self._supervisor.release()

    def _status(self) -> dict[str, Any]:
        return {
            "run": self._config.run.name,
            "out": str(self._out),
            "monitoring": self._monitoring.address,
            "synthesizers_wanted": self._supervisor.wanted,
            "scaling": "by hand" if self._autoscaler is None else "automatic",
            "synthesizers": self._supervisor.describe(),
        } | progress_of(self._replay)

    def _reserve(self) -> None:
        wanted = self._supervisor.wanted
        if self._config.distiller.max_workers is not None:
            # A training that makes room for those who can have none has none left itself.
            wanted -= self._supervisor.homeless()
        self._reservation.renew(wanted)

    def _autoscale(self, now: float) -> None:
        if self._autoscaler is None:
            return
        try:
            progress = self._replay.progress()
        except BufferUnavailable:
            return
        if progress is None or progress.phase != "distilling":
            return
        totals = self._supervisor.totals()
        wanted = self._autoscaler.wanted(
            self._supervisor.wanted,
            Seconds(totals.busy_seconds, totals.waiting_seconds),
            Seconds(progress.busy_seconds, progress.waiting_seconds),
            complete=self._supervisor.complete(),
            now=now,
        )
        if wanted != self._supervisor.wanted:
            self._supervisor.scale(wanted)
