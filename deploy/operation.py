"""The services of a run while they work: started, watched, told what was ordered, and ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buffer.controller.service import end as end_controller
from buffer.controller.service import start as start_controller
from buffer.errors import BufferUnavailable, Interrupted, SsdkdError, Stopped
from buffer.interface import Replay
from buffer.lease import RunLease
from buffer.logs import brief
from deploy import report, trackers
from deploy.cluster import await_nodes, cluster_cpus
from deploy.config import PipelineConfig
from deploy.control import Control, Order, progress_of
from deploy.display import Display
from deploy.ending import Outcome
from deploy.fitting import Several
from deploy.interrupt import Interrupt
from deploy.monitoring import Monitoring
from deploy.outlook import Outlook
from deploy.placement import Places, Reservation
from deploy.rates import Seconds
from deploy.recorder import Recorder
from deploy.scaling import Autoscaler
from deploy.supervisor import Supervisor
from deploy.timeline import Timeline, recorded_seconds
from deploy.validate import cpu_shares
from distiller.background import Background, Watch
from distiller.service import CHECKPOINTS, JOURNAL, end_early, fit, resources
from synthesizer.service import start as start_synthesizer

logger = logging.getLogger(__name__)

FINISH_SECONDS = 10.0
"""The training may take so long to save its student when a run is ended early."""
LOOK_SECONDS = 0.2
EXCHANGE_SECONDS = 1.0
"""Between two looks at the desk, where orders come in."""


class Operation:
    """The services of a run.

    Args:
        config: as given to :func:`deploy.services.run`.
        url: of the Redis servers.
        replay: the run's buffer.
        out: folder of the outputs.
        outcome: takes what the run made, however it ends.
        interrupt: whether somebody wants the run to end.
        resumes: whether it goes on from an earlier pipeline.
        environment: of the run's processes.

    Raises:
        ConfigError: the cluster has no room for them.
        Interrupted: nobody wants the run any more.
    """

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
        self._recorder = Recorder(
            config,
            replay,
            self._supervisor,
            outcome.all_totals,
            out,
            [Timeline(out, report.environment), *trackers.sinks(config, out)],
            elapsed_seconds=recorded_seconds(out) if resumes else replay.info().seconds,
        )
        self._reservation = Reservation(config.run.name, places)
        table, self._autoscaler = config.synthesizer, None
        if table.max_actors is not None:
            self._autoscaler = Autoscaler(table.min_actors or 1, table.max_actors)
        self._exchanged, self._stop_ordered = 0.0, False

    def run(self, interrupt: Interrupt, lease: RunLease, display: Display) -> None:
        """Starts the services, waits for the student, stops the services."""
        with self._monitoring:  # to their last moment: its end deletes what they write
            self._work(interrupt, lease, display)

    def _work(self, interrupt: Interrupt, lease: RunLease, display: Display) -> None:
        config = self._config
        controller = (
            None
            if config.controller.policy == "off"
            else start_controller(config, url=self._url, log=self._out / "controller.jsonl")
        )
        try:
            self._supervisor.start()
            self._reserve()
            display.watch(Outlook(self._replay, self._supervisor, config.buffer.minimum).look)
            with self._recorder:
                if self._monitoring.address is not None:
                    display.note(f"metrics: {self._monitoring.address}/metrics")
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
            display.enter("ending")
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
            raise SsdkdError(f"no synthesizer can be kept running: {brief(failure)}") from failure

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
