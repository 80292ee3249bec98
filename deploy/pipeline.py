"""The main job: starts buffer, controller, synthesizers and distiller; ends them; writes results.

``python -m deploy.pipeline --config FILE`` is what ``ray job submit`` runs; ``ssdkd run`` is the
same with a progress bar.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import torch
from rich.console import Console

from buffer.config import redis_url
from buffer.controller.service import start as start_controller
from buffer.errors import SsdkdError
from buffer.models import build, from_bytes
from buffer.params import SamplingParams
from buffer.params import start_params as of_draws
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from buffer.version import NEVER
from deploy import report
from deploy.auth import cluster_address
from deploy.config import PipelineConfig
from deploy.display import Display
from deploy.supervisor import Supervisor, Totals
from deploy.validate import cpu_shares, machine_cpus
from distiller.service import fit
from synthesizer.service import start as start_synthesizer

logger = logging.getLogger(__name__)


class Interrupted(SsdkdError):
    """The user, or the cluster, asked the run to end early."""


def run(config: PipelineConfig, out: Path, console: Console) -> dict[str, Any]:
    """Runs everything and writes the outputs.

    Args:
        config: validated, with absolute file names and a teacher that exists.
        out: folder of the outputs.
        console: where progress is shown.

    Returns:
        What was written to ``result.json``.

    Raises:
        SsdkdError: a service could not be started or kept running; what there is was saved.
    """
    report.clear(out)
    report.write_config(config, out)
    with ExitStack() as stack:
        url = redis_url(config.buffer) or stack.enter_context(RedisServer.start()).url
        replay = ReplayBuffer(
            config.buffer, url=url, run=config.run.name, params=start_params(config)
        )
        stack.callback(replay.close)
        stack.enter_context(cluster(config))
        replay.reset()
        outcome = _train(config, url, replay, out, console)
        result = _result(config, replay, outcome)
        _save(config, replay, result, out)
    if outcome.error is not None:
        raise outcome.error
    return result


def start_params(config: PipelineConfig) -> SamplingParams:
    """The sampling parameters a run starts with."""
    inversion = {
        "difficulty_exponent": config.synthesizer.difficulty_exponent,
        "adversarial_weight": config.synthesizer.adversarial_weight,
    }
    return of_draws(config.buffer).model_copy(update=inversion)


@contextmanager
def cluster(config: PipelineConfig) -> Iterator[None]:
    """A Ray cluster: the one that is named, the job's own, or a private one on this machine."""
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
        yield
    finally:
        ray.shutdown()


class _Outcome:
    """How the training part of a run went."""

    def __init__(self) -> None:
        self.metrics: Mapping[str, Any] = {}
        self.totals = Totals()
        self.error: SsdkdError | None = None


def _train(
    config: PipelineConfig, url: str, replay: ReplayBuffer, out: Path, console: Console
) -> _Outcome:
    """Starts the services, waits for the student, stops the services."""
    outcome = _Outcome()
    cpus = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    actor_cpus, worker_cpus = cpu_shares(config, cpus)
    supervisor = Supervisor(
        lambda number: start_synthesizer(config, url=url, index=number, cpus=actor_cpus),
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
                lambda: fit(config, url=url, out=out, cpus=worker_cpus), supervisor
            )
    except SsdkdError as error:
        outcome.error = error
    finally:
        with _deaf():
            supervisor.stop()
            outcome.totals = supervisor.totals()
            if controller is not None:
                _end(controller)
    return outcome


def _end(controller: Any) -> None:
    """Lets the controller finish its decision, then ends the actor."""
    with suppress(ray.exceptions.RayError):
        ray.get(controller.stop.remote(), timeout=5.0)
    ray.kill(controller)


def _wait(training: Callable[[], Mapping[str, Any]], supervisor: Supervisor) -> Mapping[str, Any]:
    """Runs the training in a thread, so that Ctrl-C and dead synthesizers are noticed here.

    Why a thread: in the main thread Ray Train installs a SIGINT handler of its own.
    """
    ended: list[Mapping[str, Any] | BaseException] = []

    def target() -> None:
        try:
            ended.append(training())
        except BaseException as error:  # handed to the main thread
            ended.append(error)

    thread = threading.Thread(target=target, name="training", daemon=True)
    with _interruptible() as interrupted:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if interrupted.is_set():
                raise Interrupted("the run was interrupted")
            if (failure := supervisor.failure()) is not None:
                raise SsdkdError(f"no synthesizer can be kept running: {failure}")
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns SIGINT and SIGTERM into an event while it lasts."""
    event = threading.Event()

    def note(signum: int, frame: FrameType | None) -> None:
        event.set()

    with _handlers(note):
        yield event


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignores further Ctrl-C while services are being ended."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in signals]
    try:
        yield
    finally:
        for number, previous in zip(signals, before, strict=True):
            signal.signal(number, previous)


def _result(config: PipelineConfig, replay: ReplayBuffer, outcome: _Outcome) -> dict[str, Any]:
    """Everything ``result.json`` holds; what was not measured is ``None``."""
    info, progress, metrics = replay.info(), replay.progress(), outcome.metrics
    totals = outcome.totals
    busy = progress.busy_seconds if progress else 0.0
    waiting = progress.waiting_seconds if progress else 0.0
    first = progress.inserted_at_first_step if progress else None
    return {
        "method": config.synthesizer.method,
        "seed": config.run.seed,
        "teacher_accuracy": metrics.get("teacher_accuracy"),
        "student_accuracy": metrics.get("student_accuracy"),
        "agreement": metrics.get("agreement"),
        "loyalty": metrics.get("loyalty"),
        "wall_seconds": progress.elapsed_seconds if progress else info.seconds,
        "evaluation_seconds": progress.evaluation_seconds if progress else 0.0,
        "inversion_seconds": totals.busy_seconds,
        "distillation_seconds": busy,
        "samples_inverted": info.inserted,
        "samples_drawn": progress.samples_drawn if progress else 0,
        "inserted_after_first_step": None if first is None else info.inserted - first,
        "first_step_at_seconds": progress.first_step_at_seconds if progress else None,
        "synthesizer_idle_share": _share(totals.waiting_seconds, totals.busy_seconds),
        "distiller_idle_share": _share(waiting, busy),
        "synthesizer_rounds": totals.rounds,
        "synthesizer_restarts": totals.restarts,
        "buffer_capacity": config.buffer.capacity,
        "student_steps": progress.version.step if progress else 0,
        "attempts": progress.version.attempt if progress else 0,
        "curve": metrics.get("curve", []),
        "interrupted": outcome.error is not None,
        "config": config.model_dump(mode="json"),
        "versions": report.versions(),
        "git_revision": report.git_revision(),
    }


def _share(part: float, rest: float) -> float | None:
    return part / (part + rest) if part + rest > 0 else None


def _save(
    config: PipelineConfig, replay: ReplayBuffer, result: Mapping[str, Any], out: Path
) -> None:
    snapshot = replay.fetch_student(newer_than=NEVER)
    if snapshot is not None:
        weights = snapshot[1]
        build(config.student, weights=from_bytes(weights))
        report.write_atomically(out / "student.safetensors", weights)
    picture = report.gallery(replay, config.teacher.classes)
    if picture is not None:
        picture.save(out / "samples.png")
    report.write_result(result, out)


if __name__ == "__main__":
    from deploy.cli import job

    job()
