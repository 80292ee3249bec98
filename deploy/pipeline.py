"""The main job, from a configuration's name to its outputs.

``ssdkd run`` and ``python -m deploy.pipeline --config FILE``, which ``ray job submit`` runs, are
the same. Ray and torch are imported only when the configuration has been parsed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from buffer.config import IMPORT_STRING
from buffer.errors import ConfigError
from deploy import logs
from deploy.auth import lock_private_cluster
from deploy.config import PipelineConfig, load, locate

if TYPE_CHECKING:
    from deploy.display import Display
    from deploy.resume import State


def execute(
    config: str | None,
    assignments: list[str],
    *,
    display: Display,
    out: Path | None = None,
    seed: int | None = None,
    resume: Literal["no", "yes", "if unfinished"] = "no",
) -> tuple[dict[str, Any], Path]:
    """Parses, validates and runs a configuration.

    Args:
        config: a file, a shipped configuration's name, or ``None`` for the demo.
        assignments: ``table.key=value`` overrides.
        display: shows how far it is, and the logs.
        out: folder of the outputs; default: the configuration's.
        seed: short for the override of ``run.seed``.
        resume: whether to go on from what an earlier pipeline of the run left in the folder.

    Returns:
        The result, and the folder it was written to.

    Raises:
        ConfigError, ModelError: refused before anything was started.
        Interrupted, SsdkdError: see :func:`deploy.services.run`.
    """
    seeded = assignments if seed is None else [*assignments, f"run.seed={seed}"]
    tables = load(locate(config), seeded)
    logs.configure("warning" if display.quiet else tables.run.log_level, display.logs)
    folder = (out or tables.run.folder).resolve()
    lock_private_cluster(tables.run)
    from buffer.config import absolute_paths
    from deploy import services
    from deploy.folder import claimed
    from deploy.live import shown
    from deploy.validate import set_threads, validate, with_teacher

    set_threads()
    tables = absolute_paths(tables)
    validate(tables)
    with claimed(folder):
        earlier = _earlier(folder, tables.run.name, resume)
        if earlier is not None:
            tables = as_before(tables, folder)
        display.enter("preparing the teacher")
        tables = with_teacher(tables, folder)
        with shown(tables.monitoring, folder, display.note):
            result = services.run(tables, folder, display, earlier=earlier, waits=resume != "no")
        return result, folder


def as_before(config: PipelineConfig, folder: Path) -> PipelineConfig:
    """The configuration of a run that goes on, with the teacher that it has had made.

    Raises:
        ConfigError: what the run has learnt so far is of no use to what is asked for now.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return config
    before = load(path, [])
    if IMPORT_STRING.fullmatch(config.teacher.weights or ""):
        made = before.teacher.weights
        kept = made if made is not None and Path(made).is_file() else config.teacher.weights
        config, before = _with_weights(config, kept), _with_weights(before, kept)
    now, then = _essentials(config), _essentials(before)
    for field, value in now.items():
        if value != then[field]:
            raise ConfigError(
                f"{field} ({value}) is {then[field]} in {path}: a run that goes on there would mix "
                "what it learnt from both; choose another run.out, or leave it as it was"
            )
    return config


def _with_weights(config: PipelineConfig, weights: str | None) -> PipelineConfig:
    teacher = config.teacher.model_copy(update={"weights": weights})
    return config.model_copy(update={"teacher": teacher})


def _essentials(config: PipelineConfig) -> dict[str, Any]:
    """The settings without which what has been learnt is of no use."""
    models = {"teacher": config.teacher, "student": config.student}
    return {"synthesizer.method": config.synthesizer.method} | {
        f"{name}.{field}": value for name, spec in models.items() for field, value in spec
    }


def _earlier(
    folder: Path, name: str, resume: Literal["no", "yes", "if unfinished"]
) -> State | None:
    """The state of the pipeline to go on from, if any.

    Raises:
        ConfigError: there is none, and one was asked for.
    """
    from deploy.resume import read
    from distiller.service import CHECKPOINTS

    state = None if resume == "no" else read(folder / CHECKPOINTS)
    ours = state is not None and state.run == name and not state.finished
    if resume == "yes" and not ours:
        found = (
            "holds no run that could go on"
            if state is None
            else f"holds the run {state.run}, which has finished"
            if state.run == name
            else f"holds the run {state.run}, not {name}"
        )
        raise ConfigError(f"run.out ({folder}) {found}: there is nothing to resume")
    return state if ours else None


if __name__ == "__main__":
    from deploy.cli import job

    job()
