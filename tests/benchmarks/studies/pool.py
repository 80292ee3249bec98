"""Synthetic images from the generators of finished runs, to ask students of other runs about."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from buffer.models import NormalizedModel, autocast_dtype, build
from buffer.params import start_params
from buffer.version import Version
from deploy.config import PipelineConfig, load
from distiller.evaluation import agreement
from distiller.step import precision
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
    inverter.context.student, inverter.context.warmed_up = student_of(out, config), True
    inverter.context.params = start_params(config.buffer)
    made: list[Tensor] = []
    while len(made) < count:
        # Each round begins with the generator as it was: what it learns here is no run's.
        inverter.method.load_state_dict(saved["method"])
        inverter.method.prepare(inverter.context)
        samples = inverter.round(born=Version(0, 0)).samples
        made += [torch.from_numpy(sample.image) for sample in samples]
    return torch.stack(made[:count])


def pool_of(out: Path, count: int) -> Tensor:
    """As :func:`images_of`, made once and kept in the run's folder."""
    kept = out / f"pool-{count}.npy"
    if not kept.exists():
        np.save(kept, images_of(out, count).numpy())
    return torch.from_numpy(np.load(kept, allow_pickle=False))


@torch.no_grad()
def logits(model: NormalizedModel, images: Tensor) -> Tensor:
    """``[N, K]``, in the precision that runs have by default."""
    with precision(CPU, autocast_dtype("auto", CPU)):
        parts = [model(part.float().div(255.0)).float() for part in images.split(CHUNK)]
    return torch.cat(parts)


def agreements(outs: Mapping[Name, Path], count: int) -> dict[Name, dict[Name, float]]:
    """How often each run's student agrees with its teacher on images of each run, percent.

    Args:
        outs: folders of the runs, by name; all with images of one shape.
        count: images of each run.

    Returns:
        By student, then by whose images they are.
    """
    images = torch.stack([pool_of(out, count) for out in outs.values()])  # [runs, count, C, H, W]
    answers: dict[str, Tensor] = {}
    found = {}
    for name, out in outs.items():
        config = load(out / "config.yaml")
        teacher = config.teacher.model_dump_json()
        if teacher not in answers:  # most studies have one for all runs
            asked = logits(freeze(build(config.teacher), CPU), images.flatten(0, 1))
            answers[teacher] = asked.unflatten(0, images.shape[:2])
        given = logits(student_of(out, config), images.flatten(0, 1)).unflatten(0, images.shape[:2])
        found[name] = {
            source: agreement(ours, wanted)
            for source, ours, wanted in zip(outs, given, answers[teacher], strict=True)
        }
    return found
