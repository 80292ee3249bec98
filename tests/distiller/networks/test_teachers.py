"""The networks are the ones that the shared teachers were trained as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from buffer.config import EvaluationTable, ModelSpec
from buffer.models import build
from distiller.evaluation import EvaluationSet

SHARED = Path(os.environ.get("SSDKD_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
IMAGES = 1000
CIFAR10 = {"classes": 10, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR100 = {"classes": 100, "mean": (0.507, 0.487, 0.441), "std": (0.267, 0.256, 0.276)}


@pytest.mark.skipif(
    not (SHARED / "teachers").is_dir(),
    reason="no shared teachers: set SSDKD_SHARED to their folder",
)
@pytest.mark.parametrize(
    ("factory", "weights", "data", "facts", "accuracy"),
    [
        ("resnet20", "cifar10_resnet20.pt", "cifar10_test.npz", CIFAR10, 91.73),
        ("resnet56", "cifar10_resnet56.pt", "cifar10_test.npz", CIFAR10, 93.39),
        ("resnet32s", "cifar100_resnet32s.pt", "cifar100_test.npz", CIFAR100, 71.69),
    ],
)
def test_shared_teachers_load_and_reach_their_accuracy(factory, weights, data, facts, accuracy):
    spec = ModelSpec(
        factory=f"distiller.networks:{factory}",
        weights=str(SHARED / "teachers" / weights),
        image_shape=(3, 32, 32),
        **facts,
    )
    test = EvaluationSet.load(EvaluationTable(data=str(SHARED / "data" / data)), spec)
    first = EvaluationSet(test.images[:IMAGES], test.labels[:IMAGES])
    model = build(spec).to(memory_format=torch.channels_last)
    # Three standard errors of a share measured on so many images.
    tolerance = 300 * (accuracy / 100 * (1 - accuracy / 100) / IMAGES) ** 0.5
    assert first.accuracy(model) == pytest.approx(accuracy, abs=tolerance)
