"""The Ray edge: the controller as an actor that is made from plain data."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from buffer import logs
from buffer.connect import connect
from buffer.controller.actor import Controller
from buffer.controller.arms import choose
from buffer.controller.config import ControllerFile, settings
from buffer.controller.metrics import ControllerMetrics
from buffer.errors import BufferUnavailable, ConfigError
from buffer.metrics import ClientMetrics, process_registry
from buffer.params import start_params
from buffer.parsing import parse

FINISH_SECONDS = 5.0
"""A decision in hand may take so long when a run ends."""
LOOK_SECONDS = 5.0
"""Between two looks for a buffer that is away."""

logger = logging.getLogger(__name__)


class ControllerService:
    """The controller behind Ray. Constructed from plain data only.

    It does nothing until ``run`` is called, which occupies the actor's main thread; the other
    methods answer meanwhile from the concurrency group ``control``.

    Args:
        config: the tables of :class:`~buffer.controller.config.ControllerFile` as JSON.
        url: of the Redis server.
        journal: file of decisions and rewards, on the actor's node.
    """

    def __init__(self, config: str, *, url: str, journal: str) -> None:
        self._tables = parse(ControllerFile, json.loads(config))
        logs.configure(self._tables.run.log_level, "controller")
        self._url, self._journal = url, Path(journal)
        self._stopping = threading.Event()
        self._controller: Controller | None = None
        self._waits_because: str | None = None

    def run(self) -> None:
        """Decides until :meth:`stop`; see :meth:`~buffer.controller.actor.Controller.run`.

        Why the buffer is looked for here: an actor whose constructor fails is never started again,
        and the buffer may be away when this process follows one that died.
        """
        self._controller = self._begin()
        if self._controller is not None and not self._stopping.is_set():
            self._controller.run()

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """See :meth:`~buffer.controller.actor.Controller.status`.

        Until there is one, its ``reason`` alone, or nothing.
        """
        if self._controller is not None:
            return self._controller.status()
        return {} if self._waits_because is None else {"reason": self._waits_because}

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Lets :meth:`run` end."""
        self._stopping.set()
        if self._controller is not None:
            self._controller.stop()

    def _begin(self) -> Controller | None:
        """A controller, once the buffer is there; ``None`` if it was stopped before."""
        registry = process_registry()
        observer, metrics = ClientMetrics(registry), ControllerMetrics(registry)
        while not self._stopping.is_set():
            try:
                return self._connected(observer, metrics)
            except BufferUnavailable as error:
                if self._waits_because is None:
                    logger.warning("no decisions until the buffer is there: %s", error)
                self._waits_because = str(error)
            self._stopping.wait(LOOK_SECONDS)
        return None

    def _connected(self, observer: ClientMetrics, metrics: ControllerMetrics) -> Controller:
        table, run = self._tables.buffer, self._tables.run.name
        replay = connect(table, url=self._url, run=run, observer=observer)
        try:
            return Controller(self._tables, replay, journal=self._journal, metrics=metrics)
        except BaseException:
            replay.close()
            raise


# A dictionary, because Ray's type hints do not know concurrency groups.
OPTIONS: dict[str, Any] = {"num_cpus": 0, "concurrency_groups": {"control": 2}}

ControllerActor = ray.remote(**OPTIONS)(ControllerService)


def create(config: ControllerFile, *, url: str, log: Path) -> Any:
    """Creates the actor ``controller`` in the namespace of the driver.

    It does nothing until its ``run`` is called. Ray restarts it whenever its process dies, ``run``
    included, and it goes on from the journal.

    Args:
        config: validated; tables of other services are left out of what the actor gets.
        url: of the Redis server, reachable from every node.
        log: the journal; the actor prefers this node, where that file is.

    Returns:
        The handle of a :data:`ControllerActor`.
    """
    known = config.model_dump_json(include=set(ControllerFile.model_fields))
    here = ray.get_runtime_context().get_node_id()
    return ControllerActor.options(
        name="controller",
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
    ).remote(known, url=url, journal=str(log))


def start(config: ControllerFile, *, url: str, log: Path) -> tuple[Any, Any]:
    """The actor of :func:`create`, running, and what :func:`ray.get` gives when it has ended."""
    actor = create(config, url=url, log=log)
    return actor, actor.run.remote()


def end(actor: Any, run: Any) -> str | None:
    """Lets the controller finish its decision and ends it; why it had ended before, if it had.

    Args:
        actor: of :func:`start`.
        run: likewise.
    """
    failure = None
    try:
        ended, _ = ray.wait([run], timeout=0)
        ray.get(ended)
        ray.get(actor.stop.remote(), timeout=FINISH_SECONDS)
    except ray.exceptions.GetTimeoutError:
        logger.info("the controller was busy for too long, its decision is not waited for")
    except ray.exceptions.RayError as error:
        failure = logs.brief(error)
        logger.error("the controller failed, the last parameters stayed in force: %s", failure)
    ray.kill(actor)
    return failure


def validate(config: ControllerFile) -> None:
    """Checks the controller's table against the buffer's.

    Raises:
        ConfigError: naming field, value and consequence.
    """
    table, store = config.controller, config.buffer
    if table.policy == "off":
        return
    chosen = settings(table)
    if table.policy == "fixed":
        return
    for field in ("probe_capacity", "probe_share"):
        if getattr(store, field) == 0:
            raise ConfigError(
                f"buffer.{field} (0): without probe samples there is no reward, and the policy "
                f"{table.policy} would never decide; set controller.policy to fixed or off"
            )
    start = start_params(store)
    if len(choose(chosen, start, uniform=store.selector == "uniform")) < 2:
        raise ConfigError(
            f"controller.kwargs.arms ({{}}): the policy {table.policy} has nothing to choose from"
        )
