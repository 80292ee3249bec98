"""The ``ssdkd`` command. Parsing is instant: torch and ray are imported only when work begins."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from buffer.config import absolute_paths
from buffer.errors import ConfigError, Interrupted, SsdkdError, Stopped
from buffer.logs import redacted
from deploy import __version__
from deploy.config import PAGE_PORT, load, locate, shipped
from deploy.display import Mode, shown
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
Progress = Annotated[
    Mode,
    typer.Option(help="How it is shown; auto: rich on a terminal, else plain lines in a log."),
]

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a run.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name: run.name.")]
Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's job server: http://HEAD:8265."
    ),
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
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with the run whose outputs are in this folder."),
    ] = None,
    progress: Progress = Mode.AUTO,
    ui: Annotated[bool, typer.Option(help="Show the run page while the run goes on.")] = False,
) -> None:
    """Run the whole pipeline; without CONFIG, the digits demo, or the run that goes on."""
    if ui:  # first, so that another port that is set wins
        assignments = [f"monitoring.page_port={PAGE_PORT}", *(assignments or [])]
    if resume is None:
        _execute(config, assignments, out, seed, progress)
        return
    if out is not None:
        raise ConfigError(f"--out ({out}) and --resume ({resume}): a run goes on where it was")
    written = resume / "config.yaml"
    if config is None and not written.is_file():
        raise ConfigError(f"--resume ({resume}): no config.yaml, no run has begun there")
    _execute(config or str(written), assignments, resume, seed, progress, resume="yes")


@app.command()
def validate(config: ConfigName = None, assignments: Assignments = None) -> None:
    """Check a configuration: settings, factories, weights, shapes, data. Starts nothing."""
    tables = load(locate(config), assignments or [])
    from deploy.validate import validate as check

    check(absolute_paths(tables))
    console.print("valid")


@app.command()
def evaluate(
    folder: Folder,
    data: Annotated[
        str | None, typer.Option(help="Test data instead of the run's own: .npz or import string.")
    ] = None,
) -> None:
    """Measure a finished run's student against its teacher on test data."""
    from deploy.evaluate import evaluate as measure

    for name, value in measure(folder, data).items():
        console.print(f"{name}: {value:.2f} %")


@app.command()
def report(folder: Folder) -> None:
    """Write the page of a run, finished or not, as one file: report.html in its folder."""
    from deploy.run_page import write

    console.print(str(write(folder)), highlight=False, soft_wrap=True)


@app.command()
def ui(
    folder: Folder,
    port: Annotated[int, typer.Option(help="0, or one that is taken: any that is free.")] = (
        PAGE_PORT
    ),
    host: Annotated[
        str, typer.Option(help="To listen on; 0.0.0.0 shows the run to the network.")
    ] = "127.0.0.1",
) -> None:
    """Show the page of a run, finished or going on, until Ctrl-C."""
    from deploy.live import serve

    serve(folder, host, port, console)


@app.command()
def configs() -> None:
    """List the shipped configurations."""
    for name, line in shipped().items():
        console.print(f"[bold]{name}[/bold]  {line}", highlight=False)


@app.command()
def submit(
    config: Annotated[str, typer.Argument(help="A YAML file or a shipped configuration's name.")],
    address: Address,
    out: Annotated[
        Path, typer.Option(help="Folder of the outputs, absolute, shared by all nodes.")
    ],
    assignments: Assignments = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Uploaded for the job; CONFIG is a file in it. Default: CONFIG alone."),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show what the job prints until it ends.")] = False,
) -> None:
    """Submit the pipeline to a cluster; goes on with a run that did not end."""
    from deploy.remote import submit as send

    raise typer.Exit(send(config, assignments or [], address, out, working_dir, follow, console))


@app.command()
def status(name: RunName, address: Address) -> None:
    """What a submitted run is doing, as JSON."""
    from deploy.remote import status as ask

    console.print_json(data=ask(name, address))


@app.command()
def scale(
    name: RunName,
    address: Address,
    synthesizers: Annotated[int, typer.Option(min=1, help="How many there should be.")],
) -> None:
    """Change the number of a run's synthesizers; what is too many drains."""
    from deploy.jobs import JobServer

    JobServer(address).order(name, "scale", str(synthesizers))
    console.print(f"{name}: {synthesizers} synthesizers wanted")


@app.command()
def stop(
    name: RunName,
    address: Address,
    now: Annotated[bool, typer.Option(help="Do not wait until the student is saved.")] = False,
) -> None:
    """End a run early; its student is saved as it is."""
    from deploy.jobs import JobServer

    server = JobServer(address)
    if now:
        server.stop(name)
    else:
        server.order(name, "stop")
    console.print(f"{name}: stopping")


@app.command()
def logs(
    name: RunName,
    address: Address,
    follow: Annotated[bool, typer.Option(help="Until the job ends.")] = False,
) -> None:
    """What the job of a run has printed."""
    from deploy.jobs import JobServer

    server = JobServer(address)
    for part in server.logs(server.find(name).id, follow=follow):
        console.out(part, end="", highlight=False)


def _execute(
    config: str | None,
    assignments: list[str] | None,
    out: Path | None,
    seed: int | None,
    progress: Mode,
    resume: Literal["no", "yes", "if unfinished"] = "no",
) -> None:
    with shown(progress) as display:
        try:
            result, folder = execute(
                config, assignments or [], display=display, out=out, seed=seed, resume=resume
            )
        except KeyboardInterrupt:
            raise Interrupted("interrupted before anything was started") from None
        display.result(result, folder)


def _reported(command: Callable[[], object]) -> None:
    """Runs a command; errors made on purpose are shown as one line each, not as tracebacks."""
    try:
        command()
    except Interrupted as error:
        errors.print(Text(redacted(str(error))), soft_wrap=True)
        sys.exit(128 + signal.SIGINT)
    except SsdkdError as error:
        errors.print("[red]error:[/red]", Text(redacted(str(error))), soft_wrap=True)
        sys.exit(2)


def _job(
    config: Annotated[str, typer.Option(help="A YAML file or a shipped configuration's name.")],
    assignments: Assignments = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the outputs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set run.seed=N.")] = None,
    progress: Progress = Mode.AUTO,
) -> None:
    """Run the whole pipeline as a Ray job; goes on if an earlier job of this run did not end."""
    try:
        _execute(config, assignments, out, seed, progress, resume="if unfinished")
    except Stopped as stopped:  # a job that does what it was told has not failed
        errors.print(Text(str(stopped)), soft_wrap=True)


def job() -> None:
    """Entry point of ``python -m deploy.pipeline``."""
    _reported(lambda: typer.run(_job))


def main() -> None:
    """Entry point of ``ssdkd``."""
    _reported(app)
