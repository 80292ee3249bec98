"""Synthetic images from the generators of finished runs, to ask students of other runs about."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from buffer.models import NormalizedModel, build
from buffer.version import Version
from deploy.config import PipelineConfig, load
from distiller.evaluation import agreement
from synthesizer.checkpoint import Checkpoint
from synthesizer.inverter import build_inverter, subject
from synthesizer.teacher import freeze

CPU = torch.device("cpu")
CHUNK = 256
SEED = 7919
"""Of the pool's latents; no run has it."""
Name = TypeVar("Name", bound=Hashable)


def student_of(out: Path, config: PipelineConfig) -> NormalizedModel:
    """The student that a run made."""
    weights = str(out / "student.safetensors")
    return freeze(build(config.student.model_copy(update={"weights": weights})), CPU)


def images_of(out: Path, count: int) -> Tensor:
    """Images by a run's first generator as it was at the end, its student being the adversary.

    Args:
        out: folder of the run.
        count: how many.

    Returns:
        ``[count, C, H, W]`` uint8.
    """
    config = load(out / "config.yaml")
    inverter = build_inverter(config, "synthesizer-0", CPU, SEED)
    saved = Checkpoint(
        out / "checkpoints" / "synthesizer-0.pt", subject=subject(config), interval_seconds=0
    ).load()
    if saved is None:
        raise SystemExit(f"{out} has no generator")
    inverter.method.load_state_dict(saved["method"])
    inverter.context.student, inverter.context.warmed_up = student_of(out, config), True
    inverter.method.prepare(inverter.context)
    rounds = -(-count // config.synthesizer.batch_size)
    made = [
        torch.from_numpy(sample.image)
        for _ in range(rounds)
        for sample in inverter.round(born=Version(0, 0)).samples
    ]
    return torch.stack(made[:count])


@torch.no_grad()
def logits(model: NormalizedModel, images: Tensor) -> Tensor:
    """``[N, K]`` in float32."""
    parts = images.split(CHUNK)
    return torch.cat([model(part.float().div(255.0)) for part in parts])


def agreements(outs: Mapping[Name, Path], count: int) -> dict[Name, float]:
    """How often each run's student agrees with its teacher on images of all other runs, percent.

    Args:
        outs: folders of the runs, by name; all with images of one shape.
        count: images of each run.
    """
    images = {name: images_of(out, count) for name, out in outs.items()}
    found = {}
    for name, out in outs.items():
        config = load(out / "config.yaml")
        others = torch.cat([each for other, each in images.items() if other != name])
        student, teacher = student_of(out, config), freeze(build(config.teacher), CPU)
        found[name] = agreement(logits(student, others), logits(teacher, others))
    return found
