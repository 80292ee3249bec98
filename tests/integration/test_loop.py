"""The loop of the method without Ray: images in, student out, priorities back, on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from buffer.models import NormalizedModel, build
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from buffer.version import Version
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from distiller.losses import kl_divergence
from distiller.step import DistillationStep
from synthesizer.actor import Synthesizer

CPU = torch.device("cpu")
SETTINGS = [
    "buffer.capacity=600",
    "buffer.probe_capacity=0",
    "synthesizer.batch_size=150",
    "synthesizer.kwargs.inner_steps=2",
    "distiller.batch_size=64",
    "distiller.crop_padding=0",
    "run.precision=float32",
]


@pytest.fixture(scope="module")
def config(digits_teacher: Path) -> PipelineConfig:
    return load(DEFAULT_CONFIG, [*SETTINGS, f"teacher.weights={digits_teacher}"])


@pytest.fixture
def replay(config: PipelineConfig) -> Iterator[ReplayBuffer]:
    with RedisServer.start() as server:
        store = ReplayBuffer(config.buffer, url=server.url, run="loop", seed=0)
        yield store
        store.close()


def step_of(config: PipelineConfig, student: NormalizedModel) -> DistillationStep:
    return DistillationStep(
        student,
        build(config.teacher).eval().requires_grad_(False),
        config.distiller,
        device=CPU,
        autocast=None,
        generator=torch.Generator().manual_seed(0),
    )


def train(step: DistillationStep, replay: ReplayBuffer, count: int, rate: float) -> None:
    for number in range(count):
        batch = replay.sample(64, seed=number)
        result = step(batch, learning_rate=rate)
        replay.update_priorities(batch.identities, result.priorities, version=Version(1, number))


def test_stored_priorities_rank_like_recomputed_kl_after_a_fresh_pass(
    config: PipelineConfig, replay: ReplayBuffer
) -> None:
    """Spearman correlation above 0.8 between draw probabilities and KL, over all stored items."""
    torch.manual_seed(0)
    synthesizer = Synthesizer(config, replay, producer="p", device=CPU, seed=0)
    while replay.info().inserted < config.buffer.capacity:
        synthesizer.step()
    student = build(config.student)
    step = step_of(config, student)
    train(step, replay, 60, 0.1)
    student.eval()
    # The fresh pass: the student stands still, priorities go to their fixed point.
    train(step, replay, 120, 0.0)
    batches = [replay.sample(4096, seed=seed) for seed in range(3)]
    identities = np.concatenate([batch.identities for batch in batches])
    _, first = np.unique(identities, return_index=True)
    images = np.concatenate([batch.images for batch in batches])[first]
    probabilities = np.concatenate([batch.probabilities for batch in batches])[first]
    assert len(first) > 0.95 * config.buffer.capacity
    with torch.no_grad():
        inputs = torch.from_numpy(images).float() / 255
        kl = kl_divergence(student(inputs), build(config.teacher).eval()(inputs))
    assert spearmanr(probabilities, kl.numpy()).statistic > 0.8
