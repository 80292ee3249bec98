"""Runs the controller against a running Redis: ``python -m buffer.controller``.

In the Ray cluster of ``run.ray_address`` or ``RAY_ADDRESS``; without either in this process, since
a loop that mostly sleeps needs no cluster of its own.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from buffer import logs
from buffer.addresses import cluster_address, needed_redis_url
from buffer.controller.config import ControllerFile
from buffer.errors import ConfigError, SsdkdError
from buffer.parsing import override, parse, read_raw

if TYPE_CHECKING:
    from types import FrameType

POLL_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until Ctrl-C or the end of the training; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        config = parse(ControllerFile, override(read_raw(options.config), options.set))
        if config.controller.policy == "off":
            raise ConfigError("controller.policy (off): there is nothing to run")
        url = needed_redis_url(config.buffer, "controller")
        logs.configure(config.run.log_level, "controller")
        _run(config, url)
    except SsdkdError as error:
        print(f"controller: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m buffer.controller", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override a setting"
    )
    return parser


def _run(config: ControllerFile, url: str) -> None:
    # Imported late: --help and configuration errors need neither ray nor redis.
    from buffer.controller.service import validate

    validate(config)
    journal = config.run.folder.resolve() / "controller.jsonl"
    address = cluster_address(config.run)
    if address is None:
        _run_here(config, url, journal)
    else:
        _run_in_cluster(config, url, journal, address)


def _run_here(config: ControllerFile, url: str, journal: Path) -> None:
    from buffer.connect import connect
    from buffer.controller.actor import Controller

    replay = connect(config.buffer, url=url, run=config.run.name)
    try:
        controller = Controller(config, replay, journal=journal)
        _on_signal(controller.stop)
        controller.run()
    finally:
        replay.close()


def _run_in_cluster(config: ControllerFile, url: str, journal: Path, address: str) -> None:
    import ray

    from buffer.connect import connect
    from buffer.controller.service import create

    connect(config.buffer, url=url, run=config.run.name).close()  # the actor would wait for it
    ray.init(address=address, namespace=f"ssdkd-{config.run.name}")
    asked = threading.Event()
    _on_signal(asked.set)
    try:
        actor = create(config, url=url, log=journal)
        running = [actor.run.remote()]
        while running and not asked.is_set():
            ended, running = ray.wait(running, timeout=POLL_SECONDS)
            ray.get(ended)
    except ray.exceptions.RayError as error:
        raise SsdkdError(f"the controller failed: {error}") from error
    finally:
        ray.shutdown()


def _on_signal(call: Callable[[], None]) -> None:
    """Calls on Ctrl-C and SIGTERM; ``call`` must be safe wherever the main thread is."""

    def note(signum: int, frame: FrameType | None) -> None:
        call()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)


if __name__ == "__main__":
    raise SystemExit(main())
