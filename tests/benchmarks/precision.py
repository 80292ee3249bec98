"""bfloat16 autocast against float32: a student step and an inversion round, side by side.

ResNet-20 on 3x32x32 with random weights, batch 128, one thread. Prints medians and their ratio.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from buffer.models import build
from deploy.config import CONFIGS, PipelineConfig, load
from distiller.losses import soft_target_loss
from synthesizer.inverter import build_method
from synthesizer.methods import Context
from synthesizer.teacher import Teacher

REPEATS, BATCH = 5, 128
CPU = torch.device("cpu")


def student_step(config: PipelineConfig, dtype: torch.dtype | None) -> Callable[[], None]:
    """Teacher forward, student forward and backward, update."""
    teacher = build(config.teacher).eval().requires_grad_(False)
    student = build(config.student)
    for model in (teacher, student):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            with torch.no_grad():
                wanted = teacher(images)
            given = student(images)
        optimizer.zero_grad()
        soft_target_loss(given, wanted, temperature=4.0).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def inversion_round(config: PipelineConfig, dtype: torch.dtype | None) -> Callable[[], None]:
    """One round of the configured method, without an adversary."""
    teacher = Teacher(build(config.teacher), classes=config.teacher.classes, device=CPU)
    context = Context(teacher, CPU, torch.Generator().manual_seed(0), autocast=dtype)
    method = build_method(config)
    method.prepare(context)
    return lambda: (method.round(context), None)[1]


def compare(name: str, slow: Callable[[], None], fast: Callable[[], None]) -> None:
    """Alternates both, so that a noisy machine hurts them alike."""
    times: tuple[list[float], list[float]] = ([], [])
    slow(), fast()
    for _ in range(REPEATS):
        for work, spent in zip((slow, fast), times, strict=True):
            begun = time.perf_counter()
            work()
            spent.append(time.perf_counter() - begun)
    float32, bfloat16 = map(statistics.median, times)
    print(f"| {name} | {float32:.2f} s | {bfloat16:.2f} s | {float32 / bfloat16:.1f} |")


def main() -> None:
    """Prints a Markdown table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "teacher.safetensors"
        spec = load(CONFIGS / "cifar10-resnet20.yaml", ["teacher.weights=none"]).student
        safetensors.torch.save_file(dict(build(spec).network.state_dict()), weights)
        config = load(CONFIGS / "cifar10-resnet20.yaml", [f"teacher.weights={weights}"])
        print("| work | float32 | bfloat16 | ratio |")
        print("|---|---|---|---|")
        for name, make in (("student step", student_step), ("inversion round", inversion_round)):
            compare(name, make(config, None), make(config, torch.bfloat16))


if __name__ == "__main__":
    main()
