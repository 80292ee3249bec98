"""The second stage of configuration: everything a run needs is looked at before it starts.

Resolves factories and methods, opens weights and test data, checks shapes, counts CPUs and GPUs.
Takes no cluster resource: neither Redis nor Ray is started.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from buffer.addresses import cluster_address, redis_url
from buffer.config import IMPORT_STRING, ModelSpec
from buffer.controller.service import validate as validate_controller
from buffer.errors import ConfigError, ModelError
from buffer.models import NormalizedModel, build, check_outputs, resolve
from buffer.server import find_binary
from deploy.config import PipelineConfig
from deploy.fitting import Several, all_fit
from distiller.service import validate as validate_distiller
from distiller.validate import check_crops, check_hints
from synthesizer.inverter import validate as validate_synthesizer

logger = logging.getLogger(__name__)

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
LEAST_HUNDREDTHS = 10
"""Of a CPU: less than that is nobody's share."""


def validate(config: PipelineConfig) -> None:
    """Checks a configuration against the files, packages and hardware it names.

    Raises:
        ConfigError: naming field, value and consequence.
        ModelError: a network cannot be built, or weights do not fit it.
    """
    if redis_url(config.buffer) is None:
        find_binary()
    teacher = _teacher(config)
    check_outputs(teacher, config.teacher, field="teacher")
    student = _build(config.student, "student")
    check_outputs(student, config.student, field="student")
    check_crops(config, teacher, student)
    check_hints(config, teacher, student)
    validate_synthesizer(config, teacher)
    validate_distiller(config)
    validate_controller(config)
    _check_sinks(config)
    if cluster_address(config.run) is None:
        _fits_this_machine(config)


def _check_sinks(config: PipelineConfig) -> None:
    packages = {"tensorboard": "tensorboardX"}
    for name in config.monitoring.sinks:
        package = packages.get(name, name)
        if find_spec(package) is None:
            raise ConfigError(
                f"monitoring.sinks ({name}): the package {package} is not installed, nothing would "
                f"be recorded there; pip install 'ssdkd[{name}]'"
            )


def with_teacher(config: PipelineConfig, out: Path) -> PipelineConfig:
    """Makes the teacher if its weights are given as a function that trains one."""
    weights = config.teacher.weights
    if weights is None or not IMPORT_STRING.fullmatch(weights):
        return config
    path = resolve(weights)(config.teacher, out, config.run.seed)
    table = config.teacher.model_copy(update={"weights": str(path)})
    _build(table, "teacher")  # before actors try
    return config.model_copy(update={"teacher": table})


def set_threads() -> None:
    """As many CPU threads as this process may use; torch counts the machine's, not a container's.

    More of them than CPUs would slow small networks tenfold. ``OMP_NUM_THREADS`` may ask for fewer.
    """
    torch.set_num_threads(min(torch.get_num_threads(), machine_cpus()))


def machine_cpus() -> int:
    """CPUs this process may use, by its affinity and its container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_QUOTA.read_text().split()
        return max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return cpus


def cpu_shares(config: PipelineConfig, cpus: Sequence[float]) -> tuple[float, float]:
    """CPUs of one synthesizer actor and of one distiller worker.

    What is configured stays. The others all get the same: as much as lets everybody who may ever
    be wanted have room on the nodes, in hundredths, at least a tenth.

    Args:
        config: asks for so many actors and workers.
        cpus: of each node.
    """
    workers = config.distiller.most_workers
    actors = max(config.synthesizer.actors, config.synthesizer.max_actors or 0)
    nodes = {str(number): {"CPU": amount} for number, amount in enumerate(cpus)}

    def shares(hundredths: int) -> tuple[float, float]:
        open_share = hundredths / 100
        return config.synthesizer.cpus or open_share, config.distiller.cpus or open_share

    def too_much(hundredths: int) -> bool:
        actor, worker = shares(hundredths)
        return not all_fit(
            Several({"CPU": actor}, actors), nodes, beside=Several({"CPU": worker}, workers)
        )

    candidates = range(LEAST_HUNDREDTHS + 1, int(100 * max(cpus, default=0.0)) + 1)
    return shares(LEAST_HUNDREDTHS + bisect_left(candidates, True, key=too_much))


def _teacher(config: PipelineConfig) -> NormalizedModel:
    """The teacher, untrained if its weights are yet to be made."""
    spec = config.teacher
    if spec.weights is not None and IMPORT_STRING.fullmatch(spec.weights):
        resolve(spec.weights)
        spec = spec.model_copy(update={"weights": None})
    return _build(spec, "teacher")


def _build(spec: ModelSpec, field: str) -> NormalizedModel:
    try:
        return build(spec)
    except ModelError as error:
        raise ModelError(f"{field}: {error}") from error


def _fits_this_machine(config: PipelineConfig) -> None:
    cpus = machine_cpus()
    actor, worker = cpu_shares(config, [cpus])
    wanted = actor * config.synthesizer.actors + worker * config.distiller.workers
    if wanted > cpus + 1e-6:
        raise ConfigError(
            f"synthesizer.cpus ({actor:g}) x {config.synthesizer.actors} actors and "
            f"distiller.cpus ({worker:g}) x {config.distiller.workers} workers need {wanted:g} "
            f"CPUs, this machine has {cpus}: the last of them would wait forever"
        )
    gpus = (
        config.synthesizer.gpus * config.synthesizer.actors
        + config.distiller.gpus * config.distiller.workers
    )
    if gpus > (there := torch.cuda.device_count()):
        raise ConfigError(
            f"synthesizer.gpus ({config.synthesizer.gpus:g}) and distiller.gpus "
            f"({config.distiller.gpus:g}) need {gpus:g} GPUs, this machine has "
            f"{there}: the last service would wait forever"
        )
    if there > 0 and gpus == 0:
        logger.warning(
            "synthesizer.gpus (0) and distiller.gpus (0): this machine's GPUs (%d) stay idle; 0.5 "
            "each shares one, with distiller.workers 1",
            there,
        )
