"""The ``ssdkd`` command. Parsing is instant: torch and ray are imported only when work begins."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from buffer.config import absolute_paths
from buffer.errors import Interrupted, SsdkdError
from deploy import __version__
from deploy.config import load, locate, shipped
from deploy.pipeline import execute

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
    # Import strings may name modules of the folder the command is called in; ours come first.
    sys.path.append(os.getcwd())


@app.command()
def run(
    config: ConfigName = None,
    assignments: Assignments = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the outputs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set run.seed=N.")] = None,
) -> None:
    """Run the whole pipeline; without CONFIG, the digits demo."""
    _execute(config, assignments, out, seed)


@app.command()
def validate(config: ConfigName = None, assignments: Assignments = None) -> None:
    """Check a configuration: settings, factories, weights, shapes, data. Starts nothing."""
    tables = load(locate(config), assignments or [])
    from deploy.validate import validate as check

    check(absolute_paths(tables))
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


def _execute(
    config: str | None, assignments: list[str] | None, out: Path | None, seed: int | None
) -> None:
    try:
        result, folder = execute(config, assignments or [], console=console, out=out, seed=seed)
    except KeyboardInterrupt:
        raise Interrupted("interrupted before anything was started") from None
    from deploy.report import summary

    console.print(summary(result, folder))


def _reported(command: Callable[[], object]) -> None:
    """Runs a command; errors made on purpose are shown as messages, not as tracebacks."""
    try:
        command()
    except Interrupted as error:
        errors.print(Text(str(error)))
        sys.exit(128 + signal.SIGINT)
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
    _execute(config, assignments, out, seed)


def job() -> None:
    """Entry point of ``python -m deploy.pipeline``."""
    _reported(lambda: typer.run(_job))


def main() -> None:
    """Entry point of ``ssdkd``."""
    _reported(app)
