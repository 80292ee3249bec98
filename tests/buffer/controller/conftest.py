"""Configurations and student progress for the controller's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from buffer.controller.config import ControllerFile
from buffer.params import SamplingParams, start_params
from buffer.parsing import parse
from buffer.progress import ProbeReport, StudentProgress
from buffer.version import Version

ConfigMaker = Callable[..., ControllerFile]
ProgressMaker = Callable[..., StudentProgress]


@pytest.fixture
def tables() -> dict[str, Any]:
    """Raw tables, free to be changed by a test. Nothing of the networks is ever built."""
    return {
        "run": {"steps": 100, "seed": 4},
        "teacher": {
            "factory": "no.such.module:teacher",
            "weights": "teacher.safetensors",
            "classes": 10,
            "image_shape": [1, 8, 8],
            "mean": [0.5],
            "std": [0.5],
        },
        "student": {"factory": "no.such.module:student"},
        "buffer": {"capacity": 16, "probe_capacity": 4, "probe_share": 0.2},
        "controller": {"policy": "learned", "interval_seconds": 10},
    }


@pytest.fixture
def configure(tables: dict[str, Any]) -> ConfigMaker:
    """``configure(controller={...}, buffer={...})`` changes single settings."""

    def make(**changes: dict[str, Any]) -> ControllerFile:
        merged = {name: {**table, **changes.get(name, {})} for name, table in tables.items()}
        return parse(ControllerFile, merged)

    return make


@pytest.fixture
def start(configure: ConfigMaker) -> SamplingParams:
    """The sampling parameters such a run starts with."""
    return start_params(configure().buffer)


@pytest.fixture
def progress() -> ProgressMaker:
    """``progress(version, params=(1, 2), after_kl=0.4)``: training, with one probe report."""

    def make(
        step: int,
        *,
        params: tuple[int, int] | None = None,
        phase: str = "distilling",
        **report: float,
    ) -> StudentProgress:
        values = {"before_kl": 1.0, "after_kl": 0.5, "seconds": 10.0, **report}
        probe = params and ProbeReport(
            params_version=Version(*params),
            members=4,
            before_agreement=0.5,
            after_agreement=0.6,
            **values,
        )
        return StudentProgress(version=Version(1, step), phase=phase, probe=probe)

    return make
