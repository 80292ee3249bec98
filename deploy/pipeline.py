"""The main job, from a configuration's name to its outputs.

``ssdkd run`` and ``python -m deploy.pipeline --config FILE``, which ``ray job submit`` runs, are
the same. Ray and torch are imported only when the configuration has been parsed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from deploy.auth import lock_private_cluster
from deploy.config import load, locate


def execute(
    config: str | None,
    assignments: list[str],
    *,
    console: Console,
    out: Path | None = None,
    seed: int | None = None,
) -> tuple[dict[str, Any], Path]:
    """Parses, validates and runs a configuration.

    Args:
        config: a file, a shipped configuration's name, or ``None`` for the demo.
        assignments: ``table.key=value`` overrides.
        console: where progress is shown.
        out: folder of the outputs; default: the configuration's.
        seed: short for the override of ``run.seed``.

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
        with console.status("preparing the teacher"):
            tables = with_teacher(tables, folder)
        return services.run(tables, folder, console), folder


if __name__ == "__main__":
    from deploy.cli import job

    job()
