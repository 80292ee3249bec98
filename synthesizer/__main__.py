"""Runs the configured synthesizers on a running Ray cluster, against a running Redis."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buffer import logs
from buffer.addresses import needed_cluster_address, needed_redis_url
from buffer.config import IMPORT_STRING, absolute_paths
from buffer.errors import ConfigError, SsdkdError
from buffer.parsing import override, parse, read_raw
from synthesizer.config import SynthesizerFile

if TYPE_CHECKING:
    from types import FrameType

FINISH_SECONDS = 30.0
"""Rounds in hand may take so long to end after Ctrl-C."""

logger = logging.getLogger("synthesizer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until Ctrl-C or until a synthesizer fails; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        raw = override(read_raw(options.config), options.set)
        config = with_files(parse(SynthesizerFile, raw))
        url = needed_redis_url(config.buffer, "synthesizer")
        address = needed_cluster_address(config.run, "synthesizer")
        logs.configure(config.run.log_level, "synthesizer")
        _run(config, url, address, resume=options.resume)
    except SsdkdError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def with_files(config: SynthesizerFile) -> SynthesizerFile:
    """The configuration with file names that mean the same in the actors' folders.

    Raises:
        ConfigError: the teacher's weights are a function.
    """
    weights = config.teacher.weights
    if weights is not None and IMPORT_STRING.fullmatch(weights):
        raise ConfigError(
            f"teacher.weights ({weights}) is a function that makes a teacher, which only the "
            "pipeline calls: each synthesizer would invert another one; give the file that it wrote"
        )
    return absolute_paths(config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m synthesizer", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="replaces one setting; may be repeated",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from what was learned, as found in run.out"
    )
    return parser


def _run(config: SynthesizerFile, url: str, address: str, *, resume: bool) -> None:
    # Imported late: --help and configuration errors need neither torch nor ray.
    import ray

    from buffer.models import build
    from synthesizer.inverter import validate
    from synthesizer.service import forget, start

    validate(config, build(config.teacher))
    checkpoints = config.run.folder.resolve() / "checkpoints"
    if not resume:
        forget(checkpoints)
    ray.init(address=address, namespace=f"ssdkd-{config.run.name}", log_to_driver=False)
    try:
        actors = [
            start(config, url=url, index=index, checkpoints=checkpoints)
            for index in range(config.synthesizer.actors)
        ]
        _supervise(actors)
    finally:
        ray.shutdown()


def _supervise(actors: list[Any]) -> None:
    """Waits for Ctrl-C or SIGTERM, then lets rounds in hand finish; a failed actor ends all."""
    import ray

    stop_asked = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stop_asked
        stop_asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    runs = [actor.run.remote() for actor in actors]
    try:
        while not stop_asked:
            ended, _ = ray.wait(runs, timeout=0.5)
            if ended:
                ray.get(ended)
    except ray.exceptions.RayError as error:
        raise SsdkdError(f"a synthesizer failed: {error}") from error
    finally:
        for actor in actors:
            actor.stop.remote()
        ray.wait(runs, num_returns=len(runs), timeout=FINISH_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
