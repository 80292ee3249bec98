"""Starts the services of a run, waits for the student, ends them, and saves what they made."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

import ray
import torch
from rich.console import Console

from buffer.config import cluster_address, redis_url
from buffer.controller.service import start as start_controller
from buffer.errors import ConfigError, Interrupted, SsdkdError
from buffer.lease import RunLease
from buffer.models import build, from_bytes
from buffer.progress import StudentProgress
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from buffer.version import NEVER, Version
from deploy import report
from deploy.config import PipelineConfig
from deploy.display import Display
from deploy.supervisor import Supervisor, Totals
from deploy.validate import cpu_shares, machine_cpus
from distiller.service import CHECKPOINTS, fit
from synthesizer.service import forget as forget_synthesizers
from synthesizer.service import start as start_synthesizer

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


class _Outcome:
    """How the training part of a run went, as far as it went."""

    def __init__(self) -> None:
        self.metrics: Mapping[str, Any] = {}
        self.totals = Totals()


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
    with ExitStack() as stack:
        interrupt = stack.enter_context(_Interrupt())
        url = redis_url(config.buffer) or stack.enter_context(RedisServer.start()).url
        stack.enter_context(RunLease(url, config.run.name))
        report.clear(out)
        report.write_config(config, out)
        replay = ReplayBuffer(config.buffer, url=url, run=config.run.name, fresh=True)
        stack.callback(replay.close)
        stack.enter_context(cluster(config))
        interrupt.listen()
        outcome = _Outcome()
        try:
            _train(config, url, replay, out, console, outcome, interrupt)
        finally:
            result = _save(config, replay, outcome, out)
    return result


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
    if address is not None:
        ray.init(address=address, **common)
    else:
        ray.init(
            address="local",
            num_cpus=machine_cpus(),
            num_gpus=torch.cuda.device_count(),
            include_dashboard=False,
            **common,
        )
    try:
        _check_reachable(config)
        yield
    finally:
        ray.shutdown()


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
    replay: ReplayBuffer,
    out: Path,
    console: Console,
    outcome: _Outcome,
    interrupt: _Interrupt,
) -> None:
    """Starts the services, waits for the student, stops the services."""
    cpus = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    actor_cpus, worker_cpus = cpu_shares(config, cpus)
    checkpoints = out / CHECKPOINTS
    forget_synthesizers(checkpoints)
    supervisor = Supervisor(
        lambda number: start_synthesizer(
            config, url=url, index=number, cpus=actor_cpus, checkpoints=checkpoints
        ),
        config.synthesizer.actors,
    )
    controller = (
        None
        if config.controller.policy == "off"
        else start_controller(config, url=url, log=out / "controller.jsonl")
    )
    supervisor.start()
    try:
        with Display(replay, config.buffer.minimum, console):
            outcome.metrics = _wait(
                lambda: fit(config, url=url, out=out, cpus=worker_cpus, began_seconds=0.0),
                supervisor,
                interrupt,
            )
    finally:
        supervisor.stop()
        outcome.totals = supervisor.totals()
        if controller is not None:
            _end(controller)


def _end(controller: Any) -> None:
    """Lets the controller finish its decision, then ends the actor."""
    with suppress(ray.exceptions.RayError):
        ray.get(controller.stop.remote(), timeout=5.0)
    ray.kill(controller)


def _wait(
    training: Callable[[], Mapping[str, Any]],
    supervisor: Supervisor,
    interrupt: _Interrupt,
) -> Mapping[str, Any]:
    """Runs the training in a thread, so that signals and dead synthesizers are noticed here.

    Why a thread: in the main thread Ray Train installs a SIGINT handler of its own.
    """
    ended: list[Mapping[str, Any] | BaseException] = []

    def target() -> None:
        try:
            ended.append(training())
        except BaseException as error:  # handed to the main thread
            ended.append(error)

    thread = threading.Thread(target=target, name="training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        if interrupt.is_set():
            raise Interrupted("the run was interrupted; what there was by then is saved")
        if (failure := supervisor.failure()) is not None:
            raise SsdkdError(f"no synthesizer can be kept running: {failure}")
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def _save(
    config: PipelineConfig, replay: ReplayBuffer, outcome: _Outcome, out: Path
) -> dict[str, Any]:
    """Writes the student, the result and the picture; returns the result."""
    snapshot = replay.fetch_student(newer_than=NEVER)
    version = NEVER
    if snapshot is not None:
        version, weights = snapshot
        build(config.student, weights=from_bytes(weights))  # what is saved can be loaded
        report.write_atomically(out / "student.safetensors", weights)
    result = _result(config, replay, outcome, version)
    report.write_result(result, out)
    picture = report.gallery(replay, config.teacher.classes)
    if picture is not None:
        picture.save(out / "samples.png")
    return result


def _result(
    config: PipelineConfig, replay: ReplayBuffer, outcome: _Outcome, student: Version
) -> dict[str, Any]:
    """Everything ``result.json`` holds; what was not measured is ``None``."""
    info, totals, metrics = replay.info(), outcome.totals, outcome.metrics
    progress = replay.progress() or StudentProgress(elapsed_seconds=info.seconds)
    first = progress.inserted_at_first_step
    measured = ("teacher_accuracy", "student_accuracy", "agreement", "loyalty")
    return {
        "method": config.synthesizer.method,
        "seed": config.run.seed,
        **{name: metrics.get(name) for name in measured},
        "wall_seconds": progress.elapsed_seconds,
        "evaluation_seconds": progress.evaluation_seconds,
        "inversion_seconds": totals.busy_seconds,
        "distillation_seconds": progress.busy_seconds,
        "samples_inverted": info.inserted,
        "samples_drawn": progress.samples_drawn,
        "inserted_after_first_step": None if first is None else info.inserted - first,
        "first_step_at_seconds": progress.first_step_at_seconds,
        "synthesizer_idle_share": _share(totals.waiting_seconds, totals.busy_seconds),
        "distiller_idle_share": _share(progress.waiting_seconds, progress.busy_seconds),
        "synthesizer_rounds": totals.rounds,
        "synthesizer_restarts": totals.restarts,
        "buffer_capacity": config.buffer.capacity,
        "student_steps": student.step,
        "attempts": student.attempt,
        "curve": metrics.get("curve", []),
        "interrupted": not metrics,
        "config": report.public(config),
        "versions": report.versions(),
        "git_revision": report.git_revision(),
    }


def _share(part: float, rest: float) -> float | None:
    return part / (part + rest) if part + rest > 0 else None
