"""Fixtures of the synthesizer's tests: a tiny trained teacher and a configuration around it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Factory strings in the tests' configurations name modules of this folder.
sys.path.insert(0, str(Path(__file__).parent))

import tiny_teachers
from faulty_replay import FaultyReplay

from buffer.models import NormalizedModel, build
from buffer.parsing import parse
from synthesizer import patience
from synthesizer.config import SynthesizerFile
from synthesizer.methods import Context
from synthesizer.teacher import Teacher, freeze

CPU = torch.device("cpu")

# Networks this small only lose by a second thread, badly so on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "bn_cnn.pt"
    torch.save(tiny_teachers.trained_weights(), path)
    return path


@pytest.fixture
def tables(weights_file: Path) -> dict[str, Any]:
    """Raw tables, free to be changed by a test."""
    return {
        "run": {"steps": 10, "precision": "float32"},
        "teacher": {
            "factory": "tiny_teachers:bn_cnn",
            "weights": str(weights_file),
            "classes": tiny_teachers.CLASSES,
            "image_shape": list(tiny_teachers.IMAGE_SHAPE),
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "student": {"factory": "tiny_teachers:bn_cnn", "kwargs": {"width": 4}},
        "buffer": {"capacity": 64, "probe_capacity": 8, "probe_share": 0.125},
        "synthesizer": {
            "batch_size": 16,
            "crop_padding": 1,
            "kwargs": {"inner_steps": 2, "latent_dim": 8, "width": 8},
        },
    }


@pytest.fixture
def configure(tables: dict[str, Any]) -> Callable[..., SynthesizerFile]:
    """``configure(synthesizer={...}, buffer={...})`` changes single settings."""

    def make(**changes: dict[str, Any]) -> SynthesizerFile:
        merged = {name: {**table, **changes.get(name, {})} for name, table in tables.items()}
        return parse(SynthesizerFile, merged)

    return make


@pytest.fixture
def config(configure: Callable[..., SynthesizerFile]) -> SynthesizerFile:
    return configure()


@pytest.fixture
def student(config: SynthesizerFile) -> NormalizedModel:
    torch.manual_seed(3)
    return freeze(build(config.student), CPU)


@pytest.fixture
def context(config: SynthesizerFile) -> Context:
    """Before the first student: teacher and randomness only."""
    teacher = Teacher(build(config.teacher), classes=config.teacher.classes, device=CPU)
    return Context(teacher=teacher, device=CPU, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def replay(config: SynthesizerFile) -> FaultyReplay:
    return FaultyReplay(config)


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_BACKOFF_SECONDS", 0.01)
