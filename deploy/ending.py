"""Saves what a run made, however it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buffer.errors import BufferUnavailable, Interrupted
from buffer.interface import BufferInfo, Replay
from buffer.logs import redacted
from buffer.models import build, from_bytes
from buffer.progress import StudentProgress
from buffer.version import NEVER, Version
from deploy import report, run_page
from deploy.config import PipelineConfig
from deploy.supervisor import Totals
from distiller.service import CHECKPOINTS, JOURNAL

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How the training part of a run went, as far as it went."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    earlier: Totals = field(default_factory=Totals)
    """What the synthesizers of pipelines before did, of which this one goes on."""
    totals: Callable[[], Totals] = Totals
    """What its own did so far."""
    controller_failure: str | None = None
    error: BaseException | None = None
    git_revision: str | None = field(default_factory=report.git_revision)
    """Of the code as it was when the run began, whatever is committed meanwhile."""

    def all_totals(self) -> Totals:
        """What all synthesizers of the run did."""
        return self.earlier + self.totals()


def save(config: PipelineConfig, replay: Replay, outcome: Outcome, out: Path) -> dict[str, Any]:
    """Writes the student, the result and the picture.

    If the buffer is gone the student is that of the newest checkpoint, and what only the buffer
    knew is ``None``.

    Returns:
        What was written to ``result.json``.
    """
    try:
        student, info, progress = _student(replay), replay.info(), replay.progress()
    except BufferUnavailable as error:
        logger.warning("the buffer is gone, the student is that of the last checkpoint: %s", error)
        student, info, progress = _checkpointed(out), None, None
    version = NEVER
    if student is not None:
        version, weights = student
        build(config.student, weights=from_bytes(weights))  # what is saved can be loaded
        report.write_atomically(out / "student.safetensors", weights)
    result = _result(config, outcome, info, progress) | {
        "student_steps": version.step,
        "attempts": _attempts(out),
    }
    report.write_result(result, out)
    if info is not None and (picture := report.gallery(replay, config.teacher.classes)):
        picture.save(out / "samples.png")
    try:
        run_page.write(out, claimed=False)
    except Exception:  # the result is saved; a page can be made of it at any time
        logger.exception("no %s was made; `ssdkd report %s` makes one", run_page.REPORT, out)
    return result


def _student(replay: Replay) -> tuple[Version, bytes] | None:
    """The newest snapshot, unless that is of a student that has not learnt anything."""
    snapshot = replay.fetch_student(newer_than=NEVER)
    return snapshot if snapshot is not None and snapshot[0].step > 0 else None


def _checkpointed(out: Path) -> tuple[Version, bytes] | None:
    """The student of the newest checkpoint; its version from the journal, as near as that is."""
    found = sorted(
        (out / CHECKPOINTS).rglob("student.safetensors"), key=lambda path: path.stat().st_mtime
    )
    lines = _journal(out)
    if not found or not lines:
        return None
    return Version(*lines[-1]["version"]), found[-1].read_bytes()


def _attempts(out: Path) -> int:
    """How often the training began or resumed."""
    return len({line["version"][0] for line in _journal(out)})


def _journal(out: Path) -> list[dict[str, Any]]:
    path = out / JOURNAL
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


def _result(
    config: PipelineConfig,
    outcome: Outcome,
    info: BufferInfo | None,
    progress: StudentProgress | None,
) -> dict[str, Any]:
    """Everything ``result.json`` holds but the student's own; what is not known is ``None``."""
    totals, metrics = outcome.all_totals(), outcome.metrics
    seen = progress or StudentProgress(elapsed_seconds=info.seconds if info else 0.0)
    first, inserted = seen.inserted_at_first_step, info.inserted if info else None
    if first is not None and inserted is not None and inserted < first:
        inserted = None  # the buffer was lost, and with it what it had counted
    known = progress is not None
    return {
        "method": config.synthesizer.method,
        "seed": config.run.seed,
        **{
            name: metrics.get(name)
            for name in ("teacher_accuracy", "student_accuracy", "agreement", "loyalty")
        },
        "wall_seconds": seen.elapsed_seconds if info else None,
        "evaluation_seconds": seen.evaluation_seconds if known else None,
        "inversion_seconds": totals.busy_seconds,
        "distillation_seconds": seen.busy_seconds if known else None,
        "samples_inverted": inserted,
        "samples_drawn": seen.samples_drawn if info else None,
        "inserted_after_first_step": (
            None if first is None or inserted is None else inserted - first
        ),
        "first_step_at_seconds": seen.first_step_at_seconds,
        "synthesizer_idle_share": _share(totals.waiting_seconds, totals.busy_seconds),
        "distiller_idle_share": _share(seen.waiting_seconds, seen.busy_seconds),
        "synthesizer_rounds": totals.rounds,
        "synthesizer_restarts": totals.restarts,
        "controller_failure": outcome.controller_failure,
        "buffer_capacity": config.buffer.capacity,
        "curve": metrics.get("curve", []),
        "interrupted": isinstance(outcome.error, Interrupted),
        "error": None if outcome.error is None else redacted(str(outcome.error)),
        "config": report.public(config),
        "versions": report.versions(),
        "git_revision": outcome.git_revision,
    }


def _share(part: float, rest: float) -> float | None:
    return part / (part + rest) if part + rest > 0 else None
