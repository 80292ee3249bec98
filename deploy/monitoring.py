"""Lets a run be watched: its own metrics, an exporter on each node, and where all of them are.

The pipeline answers under one port: ``/metrics`` (the buffer, the student, the pipeline),
``/health``, and ``/targets``, Prometheus' HTTP service discovery, which lists the pipeline and the
exporters of all nodes as they come and go.
"""

from __future__ import annotations

import json
import logging
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from prometheus_client import CollectorRegistry

from buffer.addresses import cluster_address
from buffer.interface import Replay
from buffer.metrics import FOLDER, BufferCollector
from deploy import exporter
from deploy.cluster import node_addresses
from deploy.config import PipelineConfig
from deploy.metrics import SupervisorCollector
from deploy.supervisor import Supervisor
from deploy.web import Page, WebServer, place

LOOK_SECONDS = 5.0
"""Between two looks which nodes there are."""
RETRY_SECONDS = 60.0
"""Until a node whose exporter could not work gets another."""
CLOSE_SECONDS = 5.0
LOOPBACK = "127.0.0.1"

logger = logging.getLogger(__name__)


def variables(config: PipelineConfig) -> dict[str, str]:
    """The environment variables that have a run's processes keep their metrics where we look."""
    if config.monitoring.port is None:
        return {}
    # A new one each time: what an earlier pipeline counted is not counted again.
    name = f"ssdkd-{config.run.name}-{secrets.token_hex(4)}"
    return {FOLDER: str(Path(tempfile.gettempdir(), name))}


class Monitoring:
    """Watches a pipeline for as long as it is entered; does nothing without ``monitoring.port``.

    Args:
        config: the tables ``run``, ``buffer`` and ``monitoring``.
        replay: asked at every scrape.
        supervisor: likewise.
        environment: of the run's processes (see :func:`variables`).
    """

    def __init__(
        self,
        config: PipelineConfig,
        replay: Replay,
        supervisor: Supervisor,
        environment: Mapping[str, str],
    ) -> None:
        self._table, self._run = config.monitoring, config.run.name
        self._level = config.run.log_level
        self._folder = environment.get(FOLDER, "")
        # What is private to this machine is not shown to others.
        self._private = cluster_address(config.run) is None
        self._registry = CollectorRegistry()
        self._registry.register(BufferCollector(replay, config.buffer.minimum))
        self._registry.register(SupervisorCollector(supervisor))
        self._server: WebServer | None = None
        self._exporters: dict[str, _Exporter] = {}
        self._told: set[str] = set()
        self._looked = -LOOK_SECONDS

    def __enter__(self) -> Self:
        port = self._table.port
        if port is not None:
            try:
                self._server = WebServer(self._page, host=_listening(self._here()), port=port)
            except OSError as error:  # nothing that watches a run may end it
                logger.warning("monitoring.port (%d): no metrics are exported: %s", port, error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is None:
            return
        self._server.close()
        closing = [each.actor.close.remote() for each in self._exporters.values()]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for each in self._exporters.values():
            ray.kill(each.actor)

    @property
    def address(self) -> str | None:
        """Where the pipeline answers, as others reach it."""
        if self._server is None:
            return None
        return f"http://{place(self._here(), self._server.port)}"

    def look(self) -> None:
        """Starts exporters on nodes that have none; forgets those whose node has gone."""
        now = time.monotonic()
        if self._server is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked, exporters = now, dict[str, _Exporter]()
        for node, address in node_addresses().items():
            known = self._exporters.get(node)
            if known is None or (known.failure and now - known.began > RETRY_SECONDS):
                known = self._start(node, LOOPBACK if self._private else address)
            exporters[node] = known
            known.ask()
            if known.failure is not None and node not in self._told:
                self._told.add(node)
                logger.warning(
                    "node %s: no metrics of its services, its exporter died, another is started "
                    "every %g s: %s",
                    *(address, RETRY_SECONDS, known.failure),
                )
        self._exporters = exporters  # at once: who asks for the targets reads it meanwhile

    def _start(self, node: str, address: str) -> _Exporter:
        host, port = _listening(address), self._table.node_port
        return _Exporter(exporter.start(node, self._folder, host, port, self._level), address)

    def _here(self) -> str:
        if self._private:
            return LOOPBACK
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return address

    def _targets(self) -> list[dict[str, Any]]:
        """Prometheus' HTTP service discovery: a group for the pipeline, and one a node."""
        found = [("pipeline", (self.address or "").removeprefix("http://"))]
        for each in self._exporters.values():
            if each.port is not None:
                found.append(("node", place(each.address, each.port)))
        return [
            {"targets": [target], "labels": {"run": self._run, "exporter": kind}}
            for kind, target in found
        ]

    def _page(self, path: str) -> Page | None:
        if path == "/metrics":
            return exporter.exposition(self._registry)
        if path == "/targets":
            return Page(json.dumps(self._targets()).encode(), "application/json")
        return Page(b"ok\n") if path == "/health" else None


class _Exporter:
    """One node's, and where it listens: elsewhere perhaps, when it was started again."""

    def __init__(self, actor: Any, address: str) -> None:
        self.actor, self.address = actor, address
        self.began = time.monotonic()
        self.port: int | None = None
        self.failure: str | None = None
        self._asked: Any = None

    def ask(self) -> None:
        """Takes the answer to the last question if there is one, and asks again."""
        if self.failure is not None:
            return
        if self._asked is not None:
            ready, _ = ray.wait([self._asked], timeout=0)
            if not ready:
                return
            try:
                self.port = ray.get(self._asked)
            except ray.exceptions.ActorDiedError as error:  # it does not come back by itself
                self.port = None
                # The last line is what was raised there, above it is Ray's traceback.
                self.failure = (str(error).strip().splitlines() or ["no message"])[-1]
                ray.kill(self.actor)
                return
            except ray.exceptions.RayError:
                pass
        self._asked = self.actor.port.remote()


def _listening(address: str) -> str:
    """Where to listen to be reached there; what is private to this machine stays so."""
    if address == LOOPBACK:
        return address
    return "::" if ":" in address else "0.0.0.0"
