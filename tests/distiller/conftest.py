"""Small networks and configurations for the distiller's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from buffer.models import build
from buffer.parsing import override, parse
from buffer.sample import IDENTITY_DTYPE, Batch, Sample, Split
from buffer.version import Version
from distiller.config import DistillerFile
from distiller.networks import digits_cnn

SampleMaker = Callable[..., list[Sample]]
ConfigMaker = Callable[..., DistillerFile]
BatchMaker = Callable[..., Batch]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher's weights: random, but with clearly different logits for different images."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = digits_cnn(width=4)
        with torch.no_grad():
            network.linear.weight.mul_(20.0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path


@pytest.fixture
def make_config(teacher_weights: Path) -> ConfigMaker:
    """Builds a configuration of tiny networks from ``table.key=value`` overrides."""

    def make(*assignments: str) -> DistillerFile:
        raw: dict[str, Any] = {
            "run": {"steps": 20, "precision": "float32"},
            "teacher": {
                "factory": "distiller.networks:digits_cnn",
                "kwargs": {"width": 4},
                "weights": str(teacher_weights),
                "classes": 10,
                "image_shape": [1, 8, 8],
                "mean": [0.3],
                "std": [0.4],
            },
            "student": {"factory": "distiller.networks:digits_cnn", "kwargs": {"width": 2}},
            "buffer": {"capacity": 64, "min_size_to_sample": 32, "probe_capacity": 16},
            "distiller": {
                "batch_size": 16,
                "temperature": 4.0,
                "learning_rate": 0.05,
                "crop_padding": 1,
                "flip": False,
            },
        }
        return parse(DistillerFile, override(raw, assignments))

    return make


@pytest.fixture
def make_batch() -> BatchMaker:
    """Builds a batch of random images, as a buffer would answer a draw."""

    def make(
        count: int = 16,
        *,
        seed: int = 0,
        weights: NDArray[np.float64] | None = None,
        weight_mean: float = 1.0,
        logits: NDArray[np.float32] | None = None,
        params_version: Version = Version(0, 0),  # noqa: B008
    ) -> Batch:
        random = np.random.default_rng(seed)
        return Batch(
            images=random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8),
            targets={} if logits is None else {"logits": logits},
            target_labels=np.full(count, -1),
            predicted_classes=np.zeros(count, np.int64),
            confidences=np.ones(count, np.float32),
            identities=np.zeros(count, IDENTITY_DTYPE),
            probabilities=np.full(count, 1 / count),
            weights=np.ones(count) if weights is None else weights,
            weight_mean=weight_mean,
            ages=np.zeros(count, np.int64),
            params_version=params_version,
            population=count,
        )

    return make


@pytest.fixture
def make_samples(make_config: ConfigMaker) -> SampleMaker:
    """Random images with the tiny teacher's logits, as a synthesizer would insert them."""
    teacher = build(make_config().teacher).eval()

    def make(count: int, *, seed: int = 0, split: Split = "train", step: int = 0) -> list[Sample]:
        images = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
        with torch.no_grad():
            logits = teacher(torch.from_numpy(images).float() / 255)
        confidences = logits.softmax(dim=1).amax(dim=1).tolist()
        return [
            Sample(
                image=image,
                predicted_class=int(row.argmax()),
                confidence=confidence,
                disagreement=1.0,
                targets={"logits": row.numpy()},
                split=split,
                born=Version(0, step),
            )
            for image, row, confidence in zip(images, logits, confidences, strict=True)
        ]

    return make
