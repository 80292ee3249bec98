"""Inversion and distillation beside their floors: the passes that nobody can do without.

``python -m tests.benchmarks.floors`` measures a round of the synthesizer and a step of the
distiller as the services make them (teacher, adversary, augmentation, optimiser, judging,
priorities; without Redis) against a loop of only the forward and backward passes that these need,
at the same precision and memory format. Both services at once, with a core each, as on the machine
that they share; ``--device cuda`` on a GPU. Networks are those of a shipped configuration with
random weights. ``--threads 2`` shows what it costs if both take the whole machine for theirs.

Medians of blocks by turns, ratios to the figures of the last run on such a machine, which are in
``records/floors.json`` (``--keep`` replaces them), and a line that says what moved.
"""

from __future__ import annotations

import argparse
import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from buffer.memory import InMemoryReplayBuffer
from buffer.models import build
from buffer.version import NEVER
from deploy import report
from deploy.config import CONFIGS, PipelineConfig, load
from distiller.losses import soft_target_loss
from distiller.step import precision
from distiller.trainer import Trainer
from synthesizer.generators import ConvGenerator
from synthesizer.inverter import Inverter, build_inverter
from synthesizer.methods.fast_meta import FastMetaTable
from synthesizer.teacher import freeze
from tests.benchmarks.studies.figures import moved
from tests.benchmarks.studies.study import RECORDS

BLOCKS = 7
GPU_CALLS = 20
"""In a block; a GPU is waited for once, at its end."""
STORED = RECORDS / "floors.json"
FLOOR = "floor"
UNAUGMENTED = {"crop_padding": 0, "flip": False, "mixup": 0.0}
CACHED = {"teacher_logits": "cached", "hint_layers": (), **UNAUGMENTED}
Work = Callable[[], object]
Figures = dict[str, float]


def inversion(config: PipelineConfig, device: torch.device) -> dict[str, Work]:
    """A round, and its floor."""
    inverter = inverter_of(config, device)
    student, teacher = inverter.context.student, inverter.context.teacher
    assert student is not None
    settings = FastMetaTable.model_validate(config.synthesizer.kwargs)
    shape, batch = config.teacher.image_shape, config.synthesizer.batch_size
    generator = ConvGenerator(shape, latent_dim=settings.latent_dim, width=settings.width)
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    latents = torch.randn(batch, settings.latent_dim, device=device, requires_grad=True)
    labels = torch.randint(config.teacher.classes, (batch,), device=device)

    def bare() -> None:
        for _ in range(settings.inner_steps):
            latents.grad = None
            generator.zero_grad()
            with precision(device, inverter.context.autocast):
                images = generator(latents)
                outputs = teacher.logits(images), student(images)
            sum(F.cross_entropy(output.float(), labels) for output in outputs).backward()

    return {"round": lambda: inverter.round(born=NEVER), FLOOR: bare}


def inverter_of(config: PipelineConfig, device: torch.device) -> Inverter:
    """At work, with a student as adversary."""
    inverter = build_inverter(config, "synthesizer-0", device, 0)
    inverter.context.student = freeze(build(config.student), device)
    inverter.context.warmed_up = True
    inverter.method.prepare(inverter.context)
    return inverter


def distillation(config: PipelineConfig, device: torch.device) -> dict[str, Work]:
    """A step on a batch that is there, and its floor."""
    inverter, replay = inverter_of(config, device), InMemoryReplayBuffer(config.buffer, seed=0)
    for sequence in range(1 + config.buffer.minimum // config.synthesizer.batch_size):
        made = inverter.round(born=NEVER)
        replay.insert(made.samples, producer="synthesizer-0", sequence=sequence)
    cached = config.distiller.model_copy(update=CACHED)
    trainer, with_cached = (
        Trainer(config.model_copy(update={"distiller": table}), replay, attempt=1, device=device)
        for table in (config.distiller, cached)
    )
    batch = replay.sample(config.distiller.batch_size)
    images = torch.from_numpy(batch.images).to(device).float().div(255.0)
    images = images.contiguous(memory_format=torch.channels_last)
    autocast = inverter.context.autocast

    def bare() -> None:
        trainer.pair.student.zero_grad()
        with precision(device, autocast):
            with torch.no_grad():
                wanted: Tensor = trainer.pair.teacher(images)
            given = trainer.pair.student(images)
        soft_target_loss(given, wanted, temperature=4.0).mean().backward()  # type: ignore[no-untyped-call]

    return {
        "step": lambda: trainer.step(batch, learning_rate=0.01),
        "step, cached logits": lambda: with_cached.step(batch, learning_rate=0.01),
        FLOOR: bare,
    }


SIDES = {"inversion": inversion, "distillation": distillation}


def measure(side: str, name: str, device: torch.device, threads: int) -> None:
    """Median seconds of each work of a side, by turns; begins and ends when the other side does.

    Says on standard output when it is ready and what it found; goes on working until standard input
    is closed, so that the other side has company to its end.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        works = SIDES[side](configured(name, Path(folder)), device)
    times: dict[str, list[float]] = {what: [] for what in works}
    on_gpu = device.type == "cuda"
    calls = GPU_CALLS if on_gpu else 1
    for work in works.values():
        for _ in range(calls):
            work()  # warms up
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(BLOCKS):
        for what, work in works.items():
            begun = time.perf_counter()
            for _ in range(calls):
                work()
            if on_gpu:
                torch.cuda.synchronize()
            times[what].append((time.perf_counter() - begun) / calls)
    medians = {what: statistics.median(spent) for what, spent in times.items()}
    print(json.dumps(medians), flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for work in works.values():
            work()


def configured(name: str, folder: Path) -> PipelineConfig:
    """A shipped configuration with a teacher that knows nothing."""
    path = folder / "teacher.safetensors"
    config = load(CONFIGS / f"{name}.yaml", ["evaluation.data=null", f"teacher.weights={path}"])
    network = build(config.teacher.model_copy(update={"weights": None})).network
    safetensors.torch.save_file(dict(network.state_dict()), path)
    return config


def both(name: str, device: str, threads: int) -> dict[str, Figures]:
    """Both sides at once, each in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.floors", name, "--device", device]
    command += ["--threads", str(threads)]
    pipe = subprocess.PIPE
    children = {
        side: subprocess.Popen([*command, "--side", side], stdin=pipe, stdout=pipe, text=True)
        for side in SIDES
    }
    for child in children.values():
        if _line(child) != "ready":
            raise SystemExit("a side could not begin")
    for child in children.values():
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    found = {side: json.loads(_line(child) or "{}") for side, child in children.items()}
    for child in children.values():
        child.communicate()
    return found


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def table(found: dict[str, Figures], last: dict[str, Figures]) -> str:
    """Markdown: each side beside its floor, and beside the last run's figures."""
    lines = [
        "| | ms | times its floor | times the last |",
        "|---|---|---|---|",
    ]
    for side, figures in found.items():
        before, floor = last.get(side, {}), figures[FLOOR]
        for what, ours in figures.items():
            moved = f"{ours / before[what]:.2f}" if what in before else "-"
            cells = f"{1e3 * ours:.1f} | {ours / floor:.2f} | {moved}"
            lines.append(f"| {side}: {what} | {cells} |")
    return "\n".join(lines)


def flat(found: dict[str, Figures]) -> Figures:
    """The figures of both sides under names of their own."""
    return {f"{side}: {what}": ms for side, each in found.items() for what, ms in each.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", nargs="?", default="cifar10-resnet20")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--keep", action="store_true", help="the figures, for the next run")
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        device = torch.device(options.device)
        measure(options.side, options.config, device, options.threads)
        return
    stored: dict[str, Any] = json.loads(STORED.read_text()) if STORED.exists() else {}
    machine = report.machine()
    on_gpu = torch.device(options.device).type == "cuda"
    where = ", ".join(machine["gpus"]) if on_gpu else machine["processor"]
    config = load(CONFIGS / f"{options.config}.yaml", ["teacher.weights=x"])
    sizes = f"rounds of {config.synthesizer.batch_size}, steps of {config.distiller.batch_size}"
    key = f"{options.config}, {sizes}, on {where}, {options.threads} threads"
    found = both(options.config, options.device, options.threads)
    last = stored.get(key, {})
    print(f"{key}, {report.versions()['torch']}\n\n{table(found, last)}\n")
    print(moved(flat(found), flat(last)))
    if options.keep:
        stored[key] = found
        report.write_atomically(STORED, (json.dumps(stored, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
