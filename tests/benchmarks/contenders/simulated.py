"""What the simulations have in common: what is stored, the run's configuration, a meter.

Imports neither torch nor ray: each simulated distiller imports it too.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import redis

from buffer.connect import connect
from buffer.interface import Replay
from buffer.parsing import parse
from synthesizer.config import SynthesizerFile

ROUND_SECONDS, STEP_SECONDS = 1.0, 0.1
"""What a round and a step take a GPU that gets some 10 TFLOP/s out of them: computed, and not
measured. At both sizes 5 inner steps of a round are about 10 TFLOP, a student's step is 1.2 to 1.5:
batches of 256 with a ResNet-34 as teacher at 32 pixels, of 64 with a ResNet-50 at 224, and a
ResNet-18 as student."""
SNAPSHOT_SECONDS = 5.0
"""Between two student snapshots: the distiller's default."""
MODULE = "tests.benchmarks.contenders.simulated_synthesizer"


class Setting(NamedTuple):
    """What is stored, and how much of it at a time."""

    pixels: int
    batch: int
    classes: int
    capacity: int
    parameters: int
    """Of the student, 4 bytes each."""

    @property
    def title(self) -> str:
        what = f"3x{self.pixels}x{self.pixels}, {self.classes:,} classes, batches of {self.batch}"
        return f"{what}, student of {4 * self.parameters / 1e6:.0f} MB"


SHIPPED = Setting(32, 256, 10, 5_000, 270_000)
"""As in the shipped configuration: the student is a ResNet-20."""
SMALL = SHIPPED._replace(parameters=11_200_000)
LARGE = Setting(224, 64, 1_000, 2_500, 11_700_000)


class Meter:
    """What servers, separated by commas, and their machine work meanwhile."""

    def __init__(self, url: str) -> None:
        self._clients = [redis.Redis.from_url(each) for each in url.split(",")]
        self.restart()

    def restart(self) -> None:
        """Counts from now on."""
        self._begun = self._counts()

    def read(self) -> dict[str, float]:
        """Since the restart: bytes into the servers and out of them, processor seconds of theirs
        and of the machine (without what was niced there), and what share of cores these were."""
        now = self._counts()
        spent = {key: now[key] - self._begun[key] for key in now}
        machine = spent["machine"] / spent["seconds"] / (psutil.cpu_count() or 1)
        shares = {"share": spent["cpu"] / spent["seconds"], "machine_share": machine}
        return spent | {name: 100.0 * share for name, share in shares.items()}

    def _counts(self) -> dict[str, float]:
        machine, totals = psutil.cpu_times(), Counter[str]()
        for client in self._clients:
            cpu, stats = client.info("cpu"), client.info("stats")
            totals["cpu"] += cpu["used_cpu_user"] + cpu["used_cpu_sys"]
            totals["in"] += stats["total_net_input_bytes"]
            totals["out"] += stats["total_net_output_bytes"]
        busy = machine.user + machine.system
        return {**totals, "seconds": time.monotonic(), "machine": busy}


def configuration(setting: Setting, folder: Path, seconds: float, **how: Any) -> SynthesizerFile:
    """A run with a simulated GPU whose rounds take so long; ``how`` goes to the buffer."""
    import safetensors.torch

    from tests.benchmarks.contenders.simulated_synthesizer import Glance

    weights = folder / f"teacher{setting.classes}.safetensors"
    safetensors.torch.save_file(Glance(setting.classes).state_dict(), weights)
    seen: dict[str, Any] = {"factory": f"{MODULE}:Glance", "kwargs": {"classes": setting.classes}}
    teacher = {
        "weights": str(weights),
        "classes": setting.classes,
        "image_shape": [3, setting.pixels, setting.pixels],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    student = {"kwargs": {"classes": setting.classes, "others": setting.parameters}}
    limits = {"capacity": setting.capacity, "samples_per_insert": 1.0, "error_buffer": 1e9}
    table = {"batch_size": setting.batch, "kwargs": {"seconds": seconds}}
    tables = {
        "run": {"name": f"scaling-{setting.pixels}", "steps": 1},
        "teacher": seen | teacher,
        "student": seen | student,
        "buffer": limits | how,
        "synthesizer": {"method": f"{MODULE}:Sleeps", **table},
    }
    return parse(SynthesizerFile, tables)


def snapshot(config: SynthesizerFile) -> bytes:
    """A student, as a distiller publishes it."""
    from buffer.models import build, to_bytes

    return to_bytes(build(config.student))


def one_synthesizer(config: SynthesizerFile, replay: Replay, producer: str) -> Any:
    """A synthesizer in this process."""
    import torch

    from synthesizer.actor import Synthesizer

    return Synthesizer(config, replay, producer=producer, device=torch.device("cpu"))


def filled(config: SynthesizerFile, url: str) -> Replay:
    """A full buffer."""
    replay = connect(config.buffer, url=url, run=config.run.name, fresh=True)
    synthesizer = one_synthesizer(config, replay, "filler")
    while replay.info().size < config.buffer.capacity:
        synthesizer.step()
    return replay


def row(*cells: object) -> None:
    """Prints a line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
