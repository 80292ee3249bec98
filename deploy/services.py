"""Starts the services of a run, waits for the student, ends them, and saves what they made."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import ray
import torch
from rich.console import Console

from buffer.addresses import cluster_address, redis_url
from buffer.connect import connect
from buffer.controller.service import start as start_controller
from buffer.errors import ConfigError, Interrupted, SsdkdError
from buffer.interface import Replay
from buffer.lease import RunLease
from buffer.server import RedisServer
from deploy import report
from deploy.config import PipelineConfig
from deploy.display import Display
from deploy.ending import Outcome, save
from deploy.supervisor import Supervisor
from deploy.validate import cpu_shares, machine_cpus
from distiller.background import Background
from distiller.service import CHECKPOINTS, end_early, fit
from synthesizer.service import forget as forget_synthesizers
from synthesizer.service import start as start_synthesizer

logger = logging.getLogger(__name__)

FINISH_SECONDS = 10.0
"""The training may take so long to save its student when a run is ended early."""
LOOK_SECONDS = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interrupt:
    """Notes SIGINT and SIGTERM while it is open, instead of dying of them."""

    def __init__(self) -> None:
        self._noted = threading.Event()

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._in_main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals; once more after Ray has started, which takes them for itself."""
        if self._in_main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def is_set(self) -> bool:
        """A signal came."""
        return self._noted.is_set()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.set()

    @staticmethod
    def _in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()


def run(config: PipelineConfig, out: Path, console: Console) -> dict[str, Any]:
    """Runs everything and writes the outputs.

    SIGINT and SIGTERM end the run early: what there is by then is saved all the same. They are
    noticed when training has begun, so that no service is left half started; a second signal
    changes nothing.

    Args:
        config: validated, with absolute file names and a teacher that exists.
        out: folder of the outputs.
        console: where progress is shown.

    Returns:
        What was written to ``result.json``.

    Raises:
        Interrupted: a signal ended the run; what there is was saved.
        SsdkdError: a service could not be started or kept running; likewise.
    """
    outcome = Outcome()
    with ExitStack() as stack:
        interrupt = stack.enter_context(_Interrupt())
        url = redis_url(config.buffer) or stack.enter_context(RedisServer.start()).url
        lease = stack.enter_context(RunLease(url, config.run.name))
        replay = connect(config.buffer, url=url, run=config.run.name, fresh=True)
        stack.callback(replay.close)
        stack.enter_context(cluster(config))
        interrupt.listen()
        report.clear(out)
        report.write_config(config, out)
        try:
            watch = _Watch(interrupt, lease, config.run.name)
            _train(config, url, replay, out, console, outcome, watch)
        except BaseException as error:
            outcome.error = error
            try:
                save(config, replay, outcome, out)
            except Exception:  # what ended the run is what the user has to know first
                logger.exception("what the run made by then could not be saved")
            raise
        return save(config, replay, outcome, out)


class _Watch:
    """What ends a run before its training does."""

    def __init__(self, interrupt: _Interrupt, lease: RunLease, name: str) -> None:
        self._interrupt, self._lease, self._name = interrupt, lease, name

    def check(self, supervisor: Supervisor) -> None:
        """Raises what should end the run now, if anything."""
        if self._interrupt.is_set():
            raise Interrupted("the run was interrupted; what there was by then is saved")
        if self._lease.lost:
            raise SsdkdError(
                f"run.name ({self._name}): another run has taken this name and emptied the buffer; "
                "what there was by then is saved"
            )
        if (failure := supervisor.failure()) is not None:
            raise SsdkdError(f"no synthesizer can be kept running: {failure}")


@contextmanager
def cluster(config: PipelineConfig) -> Iterator[None]:
    """A Ray cluster: the one that is named, the job's own, or a private one on this machine.

    Raises:
        ConfigError: services on other nodes could not reach a buffer that is private to this one.
    """
    address = cluster_address(config.run)
    common = {
        "namespace": f"ssdkd-{config.run.name}",
        "log_to_driver": config.run.log_level in ("debug", "info"),
        "logging_level": getattr(logging, config.run.log_level.upper()),
    }
    _connect(address, common)
    try:
        _check_reachable(config)
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None, common: Mapping[str, Any]) -> None:
    """Joins the cluster at an address, or starts a private one."""
    if address is None:
        ray.init(
            address="local",
            num_cpus=machine_cpus(),
            num_gpus=torch.cuda.device_count(),
            include_dashboard=False,
            **common,
        )
        return
    try:
        ray.init(address=address, **common)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"run.ray_address ({address}): no Ray cluster of this version answers there, nothing "
            f"was started: {error}"
        ) from error


def _check_reachable(config: PipelineConfig) -> None:
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    if redis_url(config.buffer) is None and nodes > 1:
        raise ConfigError(
            f"buffer.url (None): the cluster has {nodes} nodes, and a Redis server private to this "
            "one could not be reached from the others; set buffer.url or SSDKD_REDIS_URL"
        )


def _train(
    config: PipelineConfig,
    url: str,
    replay: Replay,
    out: Path,
    console: Console,
    outcome: Outcome,
    watch: _Watch,
) -> None:
    """Starts the services, waits for the student, stops the services."""
    actor_cpus, worker_cpus = cpu_shares(config, *_cluster_cpus())
    checkpoints = out / CHECKPOINTS
    forget_synthesizers(checkpoints)
    supervisor = Supervisor(
        lambda number: start_synthesizer(
            config, url=url, index=number, cpus=actor_cpus, checkpoints=checkpoints
        ),
        config.synthesizer.actors,
    )
    controller = _Controller(config, url, out) if config.controller.policy != "off" else None
    supervisor.start()
    try:
        with Display(replay, config.buffer.minimum, console):
            training = Background(
                lambda: fit(config, url=url, out=out, cpus=worker_cpus, began_seconds=0.0),
                end=lambda: end_early(out),
            )
            outcome.metrics = _wait(training, lambda: watch.check(supervisor))
    finally:
        supervisor.stop()
        outcome.totals = supervisor.totals()
        if controller is not None:
            outcome.controller_failure = controller.end()


def _cluster_cpus() -> tuple[float, float]:
    """CPUs of the cluster, and of its largest node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus = [node["Resources"].get("CPU", 0.0) for node in nodes]
    return sum(cpus), max(cpus, default=0.0)


class _Controller:
    """The controller of a run."""

    def __init__(self, config: PipelineConfig, url: str, out: Path) -> None:
        self._actor, self._run = start_controller(config, url=url, log=out / "controller.jsonl")

    def end(self) -> str | None:
        """Lets it finish its decision and ends it; why it had ended before, if it had."""
        failure = None
        try:
            ended, _ = ray.wait([self._run], timeout=0)
            ray.get(ended)
            ray.get(self._actor.stop.remote(), timeout=5.0)
        except ray.exceptions.GetTimeoutError:
            logger.info("the controller was busy for too long, its decision is not waited for")
        except ray.exceptions.RayError as error:
            failure = str(error)
            logger.error("the controller failed, the last parameters stayed in force: %s", error)
        ray.kill(self._actor)
        return failure


def _wait(training: Background, check: Callable[[], None]) -> Mapping[str, Any]:
    """The metrics of a training; whatever else ends a run is noticed meanwhile.

    Args:
        training: has begun.
        check: raises what should end the run.
    """
    while not training.done(LOOK_SECONDS):
        try:
            check()
        except SsdkdError:
            training.end(FINISH_SECONDS)
            raise
    return training.result()
