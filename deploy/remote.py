"""Runs on a cluster, as the commands see them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from buffer.errors import ConfigError, SsdkdError
from deploy.config import PipelineConfig, load, locate, shipped
from deploy.jobs import JobServer, staged
from deploy.report import public


def submit(
    config: str,
    assignments: list[str],
    address: str,
    out: Path,
    working_dir: Path | None,
    follow: bool,
    console: Console,
) -> int:
    """Submits a run; returns the command's exit status.

    Raises:
        ConfigError: the configuration is impossible, its file would not be on the cluster, the
            outputs would be lost, or the cluster cannot be reached.
    """
    if not out.is_absolute():
        raise ConfigError(
            f"--out ({out}) is not absolute: the job has a folder of its own on the head, which is "
            "lost with it; name one that all nodes share"
        )
    with ExitStack() as stack:
        files, name_there = _files(config, working_dir, stack)
        tables = load(locate(str(files / name_there) if files else config), assignments)
        name = tables.run.name
        _check_no_secrets(tables)
        server = JobServer(address)
        options = [part for each in assignments for part in ("--set", each)]
        arguments = ["--config", name_there, "--out", str(out), *options]
        identity, new = server.submit(name, arguments, files=files)
    console.print(f"{identity}: {'submitted' if new else 'runs already'}")
    if not follow:
        return 0
    for part in server.logs(identity, follow=True):
        console.out(part, end="", highlight=False)
    job = server.status(identity)
    if job.status != "SUCCEEDED":
        raise SsdkdError(f"the job ended as {job.status}: {job.message}")
    return 0


def status(name: str, address: str) -> dict[str, Any]:
    """The job of a run and, while it runs, what its pipeline says of itself."""
    server = JobServer(address)
    job = server.find(name)
    found = {"job": job.id, "job_status": job.status, "job_message": job.message}
    if job.status != "RUNNING":
        return found
    try:
        return found | server.order(name, "status")
    except SsdkdError as error:
        return found | {"phase": "unknown", "detail": str(error)}


def _check_no_secrets(config: PipelineConfig) -> None:
    if config.buffer.url is not None and public(config)["buffer"]["url"] is None:
        raise ConfigError(
            "buffer.url (not shown) may hold a password, and everybody who may look at jobs would "
            "see it; set SSDKD_REDIS_URL in the environment of the head instead"
        )


def _files(config: str, working_dir: Path | None, stack: ExitStack) -> tuple[Path | None, str]:
    """The folder to upload, and what the configuration is called on the cluster."""
    if working_dir is not None:
        path, root = Path(config), working_dir.resolve()
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        there = not inside.is_absolute() and (root / inside).is_file()
        if not there and config not in shipped():
            raise ConfigError(
                f"config ({config}) is no file in --working-dir ({working_dir}): it would not be "
                "on the cluster"
            )
        return working_dir, str(inside)
    if config in shipped() and not Path(config).is_file():
        return None, config
    folder, name = staged(locate(config))
    return Path(stack.enter_context(folder)), name
