"""``python -m distiller``: trains a student from a running buffer on a running Ray cluster."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buffer import logs
from buffer.addresses import needed_cluster_address, needed_redis_url
from buffer.config import absolute_paths
from buffer.errors import ConfigError, Interrupted, SsdkdError
from buffer.parsing import override, parse, read_raw
from distiller.background import Background, Watch
from distiller.config import DistillerFile

if TYPE_CHECKING:
    from types import FrameType

POLL_SECONDS = 0.5
FINISH_SECONDS = 30.0
"""The training may take so long to save the student after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses first and imports the heavy part afterwards, so that ``--help`` is instant.

    Returns:
        0; 2 if the configuration is impossible, 130 after Ctrl-C or SIGTERM, 1 if the training
        could not start or failed for another reason.
    """
    options = _parser().parse_args(arguments)
    try:
        config = parse(DistillerFile, override(read_raw(options.config), options.set))
        # Ray runs the workers in a folder of its own.
        config = absolute_paths(config)
        url = needed_redis_url(config.buffer, "distiller")
        address = needed_cluster_address(config.run, "distiller")
        logs.configure(config.run.log_level, "distiller")
        metrics = _run(config, url, address, resume=options.resume)
    except KeyboardInterrupt:
        print("distiller: interrupted before the training began", file=sys.stderr)
        return 128 + signal.SIGINT
    except SsdkdError as error:
        print(f"distiller: {error}", file=sys.stderr)
        if isinstance(error, Interrupted):
            return 128 + signal.SIGINT
        return 2 if isinstance(error, ConfigError) else 1
    print(json.dumps(metrics, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distiller", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of all tables")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override a setting"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in run.out"
    )
    return parser


def _run(config: DistillerFile, url: str, address: str, *, resume: bool) -> dict[str, Any]:
    from distiller.validate import check_networks, validate

    validate(config)
    check_networks(config)
    import ray

    from distiller.service import JOURNAL, end_early, fit

    out = config.run.folder.resolve()
    cpus = config.distiller.cpus or 1.0
    ray.init(
        address=address,
        namespace=f"ssdkd-{config.run.name}",
        log_to_driver=config.run.log_level in ("debug", "info"),
    )
    try:
        metrics = _wait(
            Background(
                lambda: fit(config, url=url, out=out, cpus=cpus, resume=resume),
                end=lambda: end_early(out),
            ),
            Watch(out / JOURNAL, config.distiller.max_waiting_seconds),
        )
    finally:
        ray.shutdown()
    return dict(metrics)


def _wait(training: Background, watch: Watch) -> Mapping[str, Any]:
    """The training's metrics; after Ctrl-C or SIGTERM lets it save the student.

    Raises:
        Interrupted: a signal came; the message says what was saved.
        SsdkdError: the training failed, or says nothing any more.
    """
    asked = threading.Event()

    def note(signum: int, frame: FrameType | None) -> None:
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    while not training.done(POLL_SECONDS):
        watch.check()
        if asked.is_set() and not training.end(FINISH_SECONDS):
            raise Interrupted(
                f"the training was asked to end and did not within {FINISH_SECONDS:g} s; its "
                "newest checkpoint stays, --resume goes on from it"
            )
    return training.result()


if __name__ == "__main__":
    sys.exit(main())
