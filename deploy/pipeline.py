"""The main job, from a configuration's name to its outputs.

``ssdkd run`` and ``python -m deploy.pipeline --config FILE``, which ``ray job submit`` runs, are
the same. Ray and torch are imported only when the configuration has been parsed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.logging import RichHandler

from buffer.errors import ConfigError
from deploy.auth import lock_private_cluster
from deploy.config import load, locate

if TYPE_CHECKING:
    from deploy.resume import State


def execute(
    config: str | None,
    assignments: list[str],
    *,
    console: Console,
    out: Path | None = None,
    seed: int | None = None,
    resume: Literal["no", "yes", "if unfinished"] = "no",
) -> tuple[dict[str, Any], Path]:
    """Parses, validates and runs a configuration.

    Args:
        config: a file, a shipped configuration's name, or ``None`` for the demo.
        assignments: ``table.key=value`` overrides.
        console: where progress is shown.
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
    logging.basicConfig(
        level=tables.run.log_level.upper(),
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    folder = (out or tables.run.folder).resolve()
    lock_private_cluster(tables.run)
    from buffer.config import absolute_paths
    from deploy import services
    from deploy.folder import claimed
    from deploy.validate import set_threads, validate, with_teacher

    set_threads()
    tables = absolute_paths(tables)
    validate(tables)
    with claimed(folder):
        earlier = _earlier(folder, tables.run.name, resume)
        with console.status("preparing the teacher"):
            tables = with_teacher(tables, folder)
        return services.run(tables, folder, console, earlier=earlier), folder


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
