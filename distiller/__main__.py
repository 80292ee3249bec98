"""``python -m distiller``: trains a student from a running buffer on a running Ray cluster."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from buffer.config import absolute_paths, needed_cluster_address, needed_redis_url
from buffer.errors import SsdkdError
from buffer.parsing import override, parse, read_raw
from distiller.config import DistillerFile


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses first and imports the heavy part afterwards, so that ``--help`` is instant.

    Returns:
        0, or 2 if the training could not start or failed.
    """
    options = _parser().parse_args(arguments)
    try:
        config = parse(DistillerFile, override(read_raw(options.config), options.set))
        # Ray runs the workers in a folder of its own.
        config = absolute_paths(config)
        print(json.dumps(_fit(config, resume=options.resume), indent=2))
    except SsdkdError as error:
        print(f"distiller: {error}", file=sys.stderr)
        return 2
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


def _fit(config: DistillerFile, *, resume: bool) -> dict[str, object]:
    url = needed_redis_url(config.buffer, "distiller")
    address = needed_cluster_address(config.run, "distiller")
    from distiller.validate import check_networks, validate

    validate(config)
    check_networks(config)
    import ray

    from distiller.service import fit

    ray.init(address=address, namespace=f"ssdkd-{config.run.name}")
    try:
        out = config.run.folder.resolve()
        cpus = config.distiller.cpus or 1.0
        return dict(fit(config, url=url, out=out, cpus=cpus, resume=resume))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
