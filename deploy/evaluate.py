"""Measures the student of a finished run."""

from __future__ import annotations

from pathlib import Path

from buffer.errors import ConfigError
from buffer.models import build
from deploy.config import load
from deploy.validate import set_threads
from distiller.evaluation import EvaluationSet


def evaluate(folder: Path, data: str | None) -> dict[str, float]:
    """Accuracy of teacher and student, agreement and loyalty on test data, percent.

    Args:
        folder: output folder of a run.
        data: test data instead of the run's own.

    Raises:
        ConfigError: there is no finished run, or no test data.
    """
    student = folder / "student.safetensors"
    if not student.is_file():
        raise ConfigError(f"run ({folder}): no student.safetensors, no student was saved there")
    config = load(folder / "config.yaml")
    table = (
        config.evaluation if data is None else config.evaluation.model_copy(update={"data": data})
    )
    if table.data is None:
        raise ConfigError("evaluation.data (None): nothing to measure on; give --data")
    spec = config.student.model_copy(update={"weights": str(student)})
    set_threads()
    return EvaluationSet.load(table, config.teacher).compare(build(config.teacher), build(spec))
