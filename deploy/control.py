"""Where a running pipeline takes orders: an actor by name, asked from anywhere in the cluster.

``python -m deploy.control RUN status | scale N | stop`` asks it, on any node; the commands of
``ssdkd`` do so from outside, by a job. The actor only keeps what is said: the pipeline looks in
several times a second, and does what it finds when it can.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from buffer.errors import SsdkdError

NAME = "pipeline"
ANSWER_SECONDS = 30.0
EXCHANGE_SECONDS = 5.0

logger = logging.getLogger(__name__)


Kind = Literal["status", "scale", "stop"]


def namespace(run: str) -> str:
    """The Ray namespace of a run: where its named actors are."""
    return f"ssdkd-{run}"


class Order(NamedTuple):
    """What a pipeline is asked to do."""

    kind: Kind
    number: int = 0
    """Synthesizers wanted."""


class Desk:
    """Keeps the orders that came in and the status that goes out. An actor."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {"phase": "starting"}
        self._orders: list[Order] = []

    def exchange(self, status: dict[str, Any]) -> list[Order]:
        """Takes the pipeline's status; the orders since the last time."""
        self._status = status
        orders, self._orders = self._orders, []
        return orders

    def status(self) -> dict[str, Any]:
        """What the pipeline said last."""
        return self._status

    def order(self, kind: Kind, number: int) -> None:
        """For the pipeline, when it looks in next."""
        self._orders.append(Order(kind, number))


class Control:
    """The pipeline's side of the desk."""

    def __init__(self) -> None:
        # With the pipeline; elsewhere, should it die. What it forgets it is told again.
        here = ray.get_runtime_context().get_node_id()
        self._desk: Any = (
            ray.remote(num_cpus=0)(Desk)
            .options(
                name=NAME,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
            )
            .remote()
        )

    def exchange(self, status: Mapping[str, Any]) -> list[Order]:
        """Says how things are; the orders that came in: none while the desk is not there."""
        try:
            orders: list[Order] = ray.get(
                self._desk.exchange.remote(dict(status)), timeout=EXCHANGE_SECONDS
            )
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            logger.warning("no orders can be taken now: %s", error)
            return []
        return orders


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks a pipeline in the cluster this runs on, and prints the answer as JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy.control", description=__doc__)
    parser.add_argument("run", help="name of the run")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("status")
    kinds.add_parser("stop")
    kinds.add_parser("scale").add_argument("number", type=int)
    options = parser.parse_args(arguments)
    ray.init(
        address="auto",
        namespace=namespace(options.run),
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        print(json.dumps(ask(options.run, options.kind, getattr(options, "number", 0))))
    except SsdkdError as error:
        print(json.dumps({"error": str(error)}))
        return 2
    finally:
        ray.shutdown()
    return 0


def ask(run: str, kind: Kind, number: int = 0) -> dict[str, Any]:
    """Gives an order to the pipeline of a run in the connected cluster; its last status.

    Raises:
        SsdkdError: there is no such pipeline, or it does not answer.
    """
    try:
        desk: Any = ray.get_actor(NAME)
        if kind != "status":
            ray.get(desk.order.remote(kind, number), timeout=ANSWER_SECONDS)
        status: dict[str, Any] = ray.get(desk.status.remote(), timeout=ANSWER_SECONDS)
    except (ValueError, ray.exceptions.RayError) as error:
        raise SsdkdError(
            f"run.name ({run}): no pipeline of this name takes orders in the cluster; if it has "
            f"just begun, try again ({type(error).__name__})"
        ) from error
    return status


if __name__ == "__main__":
    sys.exit(main())
