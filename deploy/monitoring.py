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
from contextlib import suppress
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
from deploy.web import Page, WebServer

LOOK_SECONDS = 5.0
"""Between two looks which nodes there are."""
CLOSE_SECONDS = 5.0

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
        self._looked = -LOOK_SECONDS

    def __enter__(self) -> Self:
        if self._table.port is not None:
            self._server = WebServer(self._page, host=self._host, port=self._table.port)
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
        here: str = "127.0.0.1"
        if not self._private:
            here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return f"http://{here}:{self._server.port}"

    def look(self) -> None:
        """Starts exporters on nodes that have none; forgets those whose node has gone."""
        if self._server is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        nodes = node_addresses()
        self._exporters = {node: e for node, e in self._exporters.items() if node in nodes}
        for node, address in nodes.items():
            if node not in self._exporters:
                port = self._table.node_port
                actor = exporter.start(node, self._folder, self._host, port, self._level)
                reached = self._host if self._private else address
                self._exporters[node] = _Exporter(actor, reached)
            self._exporters[node].ask()

    @property
    def _host(self) -> str:
        return "127.0.0.1" if self._private else "0.0.0.0"

    def _targets(self) -> list[dict[str, Any]]:
        """Prometheus' HTTP service discovery: a group for the pipeline, and one a node."""
        known = [each for each in self._exporters.values() if each.port is not None]
        found = [("pipeline", (self.address or "").removeprefix("http://"))]
        found += [("node", f"{each.address}:{each.port}") for each in known]
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
        self.port: int | None = None
        self._asked: Any = None

    def ask(self) -> None:
        """Takes the answer to the last question if there is one, and asks again."""
        if self._asked is not None:
            ready, _ = ray.wait([self._asked], timeout=0)
            if not ready:
                return
            with suppress(ray.exceptions.RayError):
                self.port = ray.get(self._asked)
        self._asked = self.actor.port.remote()
