"""The ``ssdkd`` command. Parsing is instant: torch and ray are imported only when work begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from buffer.errors import SsdkdError
from deploy import __version__
from deploy.auth import lock_private_cluster
from deploy.config import PipelineConfig, load, locate, shipped

app = typer.Typer(
    name="ssdkd",
    help="Distil a student from a teacher without any of the teacher's training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

ConfigName = Annotated[
    str | None,
    typer.Argument(metavar="[CONFIG]", help="A YAML file or a shipped configuration's name."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override one setting; repeatable."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ssdkd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    # Import strings may name modules of the folder the command is called in.
    sys.path.insert(0, os.getcwd())


@app.command()
def run(
    config: ConfigName = None,
    assignments: Assignments = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the outputs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set run.seed=N.")] = None,
) -> None:
    """Run the whole pipeline; without CONFIG, the digits demo."""
    execute(config, assignments or [], out=out, seed=seed)


@app.command()
def validate(config: ConfigName = None, assignments: Assignments = None) -> None:
    """Check a configuration: settings, factories, weights, shapes, data. Starts nothing."""
    tables = load(locate(config), assignments or [])
    from deploy.validate import absolute
    from deploy.validate import validate as check

    check(absolute(tables))
    console.print("valid")


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of a run.")],
    data: Annotated[
        str | None, typer.Option(help="Test data instead of the run's own: .npz or import string.")
    ] = None,
) -> None:
    """Measure a finished run's student against its teacher on test data."""
    from deploy.evaluate import evaluate as measure

    for name, value in measure(folder, data).items():
        console.print(f"{name}: {value:.2f} %")


@app.command()
def configs() -> None:
    """List the shipped configurations."""
    for name, line in shipped().items():
        console.print(f"[bold]{name}[/bold]  {line}", highlight=False)


def execute(
    config: str | None, assignments: list[str], *, out: Path | None, seed: int | None
) -> None:
    """Parses, validates and runs a configuration; shows the result as a table."""
    seeded = [*assignments, f"run.seed={seed}"] if seed is not None else assignments
    tables = load(locate(config), seeded)
    folder = (out or Path(tables.run.out.format(name=tables.run.name))).resolve()
    _run(tables, folder)


def _run(tables: PipelineConfig, folder: Path) -> None:
    lock_private_cluster(tables.run)
    from deploy import pipeline, report
    from deploy.validate import absolute, validate, with_teacher

    tables = absolute(tables)
    validate(tables)
    folder.mkdir(parents=True, exist_ok=True)
    with console.status("preparing the teacher"):
        tables = with_teacher(tables, folder)
    try:
        result = pipeline.run(tables, folder, console)
    except pipeline.Interrupted as error:
        errors.print(f"[yellow]{error}[/yellow]; what there was is in {folder}")
        raise typer.Exit(130) from error
    console.print(report.summary(result, folder))


def reported(command: Callable[[], object]) -> None:
    """Runs a command; errors made on purpose are shown as messages, not as tracebacks."""
    try:
        command()
    except SsdkdError as error:
        errors.print("[red]error:[/red]", Text(str(error)))
        sys.exit(2)


def _job(
    config: Annotated[str, typer.Option(help="A YAML file or a shipped configuration's name.")],
    assignments: Assignments = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the outputs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set run.seed=N.")] = None,
) -> None:
    """Run the whole pipeline as a Ray job."""
    execute(config, assignments or [], out=out, seed=seed)


def job() -> None:
    """Entry point of ``python -m deploy.pipeline``."""
    reported(lambda: typer.run(_job))


def main() -> None:
    """Entry point of ``ssdkd``."""
    reported(app)
