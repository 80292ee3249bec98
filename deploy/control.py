"""Where a running pipeline takes orders: an actor by name, asked from anywhere in the cluster.

``python -m deploy.control RUN status | scale N | stop`` asks it, on any node; the commands of
``ssdkd`` do so from outside, by a job. The actor only keeps what is said: the pipeline looks in
every second, and does what it finds when it can.

An order is carried out once, and whoever gave it is told so. The desk hands it out until the
pipeline has answered it, and whoever gave it says it again until there is an answer, so that
neither a lost message nor a desk that is started again loses it; the pipeline knows it by its
identity.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from buffer.errors import BufferUnavailable, SsdkdError
from buffer.interface import Replay

NAME = "pipeline"
ANSWER_SECONDS = 30.0
EXCHANGE_SECONDS = 5.0
LOOK_SECONDS = 0.2

logger = logging.getLogger(__name__)


Kind = Literal["status", "scale", "stop"]


def namespace(run: str) -> str:
    """The Ray namespace of a run: where its named actors are."""
    return f"ssdkd-{run}"


class Order(NamedTuple):
    """What a pipeline is asked to do."""

    identity: str
    kind: Kind
    number: int = 0
    """Synthesizers wanted."""


class Answer(NamedTuple):
    """What became of an order."""

    refusal: str | None
    """Why it was not carried out, if it was not."""


class Desk:
    """Keeps the orders that came in, their answers, and the status that goes out. An actor."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {"phase": "starting"}
        self._orders: dict[str, Order] = {}
        self._answers: dict[str, Answer] = {}

    def exchange(self, status: dict[str, Any]) -> list[Order]:
        """Takes the pipeline's status; the orders that it has not answered."""
        self._status = status
        return list(self._orders.values())

    def answer(self, answers: dict[str, Answer]) -> None:
        """Takes the pipeline's answers, by the orders' identities."""
        self._answers |= answers
        for identity in answers:
            self._orders.pop(identity, None)

    def status(self) -> dict[str, Any]:
        """What the pipeline said last."""
        return self._status

    def order(self, identity: str, kind: Kind, number: int) -> Answer | None:
        """For the pipeline, when it looks in next; its answer, when there is one.

        To say the same order again changes nothing.
        """
        if identity not in self._answers:
            self._orders[identity] = Order(identity, kind, number)
        return self._answers.get(identity)


class Control:
    """The pipeline's side of the desk.

    Args:
        run: name of the run.

    Raises:
        SsdkdError: another pipeline of this name has its desk in the cluster.
    """

    def __init__(self, run: str) -> None:
        # With the pipeline; elsewhere, should it die. What it forgets it is told again.
        here = ray.get_runtime_context().get_node_id()
        self._answers: dict[str, Answer] = {}
        try:
            self._desk: Any = (
                ray.remote(num_cpus=0)(Desk)
                .options(
                    name=NAME,
                    max_restarts=-1,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
                )
                .remote()
            )
        except ray.exceptions.ActorAlreadyExistsError as error:
            raise SsdkdError(
                f"run.name ({run}): another pipeline of this name is alive in this cluster, and "
                "orders could not tell the two apart; stop that one first, or give this run "
                "another name"
            ) from error

    def exchange(self, status: Mapping[str, Any], obey: Callable[[Order], str | None]) -> None:
        """Says how things are, and has the orders that came in carried out, each of them once.

        Nothing happens while the desk is not there: it is asked again the next time.

        Args:
            status: plain data.
            obey: carries out an order; why not, if it does not.
        """
        try:
            orders: list[Order] = self._said(self._desk.exchange.remote(dict(status)))
            for order in orders:
                if order.identity not in self._answers:
                    self._answers[order.identity] = Answer(obey(order))
            if orders:
                answers = {order.identity: self._answers[order.identity] for order in orders}
                self._said(self._desk.answer.remote(answers))
        except ray.exceptions.RayError as error:
            logger.warning("no orders can be taken now: %s", error)

    @staticmethod
    def _said(reply: Any) -> Any:
        return ray.get(reply, timeout=EXCHANGE_SECONDS)


def progress_of(replay: Replay) -> dict[str, Any]:
    """How far a run is, by its buffer, as plain data."""
    try:
        info, progress = replay.info(), replay.progress()
    except BufferUnavailable as error:
        return {"phase": "waiting for the buffer", "buffer": str(error)}
    size = {"size": info.size, "inserted": info.inserted, "sampled": info.sampled}
    if progress is None:
        return {"phase": "filling", "buffer": size}
    return {
        "phase": progress.phase,
        "buffer": size,
        "step": progress.version.step,
        "attempt": progress.version.attempt,
        "elapsed_share": progress.elapsed_share,
        "agreement": progress.agreement,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks a pipeline in the cluster this runs on, and prints the answer as JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy.control", description=__doc__)
    parser.add_argument("run", help="name of the run")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("status")
    kinds.add_parser("stop")
    kinds.add_parser("scale").add_argument("number", type=_positive)
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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} synthesizers cannot be: the fewest are 1")
    return number


def ask(run: str, kind: Kind, number: int = 0) -> dict[str, Any]:
    """Gives an order to the pipeline of a run in the connected cluster, and waits for the answer.

    Returns:
        Its last status, if that was asked for; else nothing.

    Raises:
        SsdkdError: there is no such pipeline, it refuses, or it has not confirmed
            the order in time.
    """
    try:
        desk: Any = ray.get_actor(NAME)
    except ValueError as error:
        if kind == "status":
            return {"phase": "starting"}
        raise SsdkdError(
            f"run.name ({run}): no pipeline of this name takes orders in the cluster; if it has "
            "just begun, try again"
        ) from error
    if kind == "status":
        try:
            status: dict[str, Any] = ray.get(desk.status.remote(), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            raise SsdkdError(
                f"run.name ({run}): its pipeline cannot be asked now ({type(error).__name__})"
            ) from error
        return status
    answer = _answered(run, desk, Order(uuid.uuid4().hex, kind, number))
    if answer.refusal is not None:
        raise SsdkdError(answer.refusal)
    return {}


def _answered(run: str, desk: Any, order: Order) -> Answer:
    """Has the desk keep an order until the pipeline has answered it."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer: Answer | None = ray.get(desk.order.remote(*order), timeout=left)
        except ray.exceptions.ActorDiedError as error:
            raise SsdkdError(
                f"run.name ({run}): its pipeline has ended, and had not confirmed the order"
            ) from error
        except ray.exceptions.RayError:  # it is started again
            answer = None
        if answer is not None:
            return answer
        time.sleep(LOOK_SECONDS)
    raise SsdkdError(
        f"run.name ({run}): its pipeline has not confirmed the order within {ANSWER_SECONDS:g} s, "
        "and may still carry it out; see what it says of itself: ssdkd status"
    )


if __name__ == "__main__":
    sys.exit(main())
