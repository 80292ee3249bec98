"""The loop of the method without Ray: images in, student out, priorities back, on a real Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from buffer.interface import UpdateCounts
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from buffer.version import Version
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from distiller.losses import kl_divergence
from distiller.trainer import Trainer
from synthesizer.actor import Synthesizer

STEPS, RECENT = 500, 20
SETTINGS = [
    "run.seconds=null",
    f"run.steps={STEPS}",
    "run.precision=float32",
    "evaluation.data=null",
    "buffer.capacity=600",
    "buffer.probe_capacity=0",
    # However fast the machine is, some 1,500 samples come in while the student trains.
    "buffer.samples_per_insert=20",
    "buffer.error_buffer=3000",
    "synthesizer.batch_size=150",
    "synthesizer.kwargs.inner_steps=2",
    "distiller.batch_size=64",
]


class Recorder(ReplayBuffer):
    """A real buffer that notes in which step, and which row of its batch, a priority was set."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.updated: dict[object, tuple[int, int]] = {}

    def update_priorities(
        self, identities: NDArray[np.void], priorities: Any, *, version: Version
    ) -> UpdateCounts:
        rows = enumerate(identities.tolist())
        self.updated |= {identity: (version.step, row) for row, identity in rows}
        return super().update_priorities(identities, priorities, version=version)


@pytest.fixture
def replay(config: PipelineConfig) -> Iterator[Recorder]:
    with RedisServer.start() as server:
        store = Recorder(config.buffer, url=server.url, run="loop", seed=0)
        yield store
        store.close()


@pytest.fixture
def config(digits_teacher: Path, request: pytest.FixtureRequest) -> PipelineConfig:
    settings = [f"teacher.weights={digits_teacher}", f"distiller.crop_padding={request.param}"]
    return load(DEFAULT_CONFIG, [*SETTINGS, *settings])


@contextmanager
def inserting(config: PipelineConfig, replay: ReplayBuffer) -> Iterator[None]:
    """A synthesizer that has filled the buffer, and goes on."""
    worker = Synthesizer(config, replay, producer="p", device=torch.device("cpu"), seed=0)
    while replay.info().size < config.buffer.capacity:
        worker.step()
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join()


def stored(replay: ReplayBuffer) -> dict[object, tuple[NDArray[np.uint8], float]]:
    """The image and the draw probability of nearly every item; the second ranks like priority."""
    free = {"samples_per_insert": None, "version": Version(9, 9)}
    assert replay.set_params(replay.params().model_copy(update=free))
    batches = [replay.sample(4096, seed=seed) for seed in range(4)]
    return {
        identity: (image, float(probability))
        for batch in batches
        for identity, image, probability in zip(
            batch.identities.tolist(), batch.images, batch.probabilities, strict=True
        )
    }


@pytest.mark.parametrize("config", [0, 1], indirect=True, ids=["plain", "cropped"])
def test_stored_priorities_rank_like_the_kl_of_the_student_that_came_of_them(
    config: PipelineConfig, replay: Recorder
) -> None:
    """Spearman correlation above 0.8, for items whose priority was set in the last steps.

    The student moves until the end, its BatchNorm layers see batches in training and remembered
    moments here, new samples come in meanwhile, and each priority holds an importance weight of its
    own. KL is recomputed for what the student was shown of an item: a crop, if it augments. Of the
    whole 8x8 image such a priority tells little (0.3 to 0.6 here): for one student that stands
    still, the KL of two crops of one image correlate by only 0.2 to 0.45.
    """
    shown: list[Tensor] = []
    with inserting(config, replay), Trainer(config, replay, attempt=1) as trainer:
        teacher = trainer.pair.teacher
        hook = teacher.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].clone()))
        trainer.run(save=lambda: None)
        hook.remove()
    assert len(shown) == STEPS
    assert replay.info().inserted > 3 * config.buffer.capacity
    items, views, probabilities = stored(replay), [], []
    for identity, (image, probability) in items.items():
        step, row = replay.updated.get(identity, (0, 0))
        if step > STEPS - RECENT:
            views.append(shown[step - 1][row])
            probabilities.append(probability)
            if config.distiller.crop_padding == 0:
                assert torch.equal(views[-1], torch.from_numpy(image.copy()).float() / 255)
    assert len(views) > config.buffer.capacity / 3
    student, inputs = trainer.pair.student.eval(), torch.stack(views)
    with torch.no_grad():
        kl = kl_divergence(student(inputs), teacher(inputs))
    assert spearmanr(probabilities, kl.numpy()).statistic > 0.8
