"""One exporter a node: what the processes of a run there have counted, for Prometheus to fetch.

Its processes keep their metrics in files (the multiprocess mode of ``prometheus_client``), so that
neither a scrape nor the exporter takes time of theirs, and counters do not fall when one of them
dies: its successor goes on beside its file.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import ray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from buffer import logs
from deploy.web import Page, WebServer

_OF_A_PROCESS = re.compile(r"gauge_live\w+_(\d+)\.db")


def exposition(registry: CollectorRegistry) -> Page:
    """Metrics in Prometheus' text format."""
    return Page(generate_latest(registry), CONTENT_TYPE_LATEST)


class NodeMetrics:
    """The metrics of all processes that write to a folder.

    Args:
        folder: on this node; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._registry = CollectorRegistry()
        MultiProcessCollector(self._registry, path=str(folder))  # type: ignore[no-untyped-call]

    def page(self, path: str) -> Page | None:
        """``/metrics`` and ``/health``."""
        if path == "/health":
            return Page(b"ok\n")
        if path != "/metrics":
            return None
        self._forget_the_dead()
        return exposition(self._registry)

    def _forget_the_dead(self) -> None:
        """What a process that has died was doing is not shown for ever; what it counted stays."""
        for file in self._folder.glob("gauge_live*.db"):
            if (name := _OF_A_PROCESS.fullmatch(file.name)) and not _lives(int(name[1])):
                mark_process_dead(int(name[1]), path=str(self._folder))  # type: ignore[no-untyped-call]


class Exporter:
    """Serves a node's metrics; an actor.

    Args:
        folder: see :class:`NodeMetrics`.
        host: to listen on.
        port: see :class:`~deploy.web.WebServer`.
        level: of its log.
    """

    def __init__(self, folder: str, host: str, port: int, level: str) -> None:
        logs.configure(level, "exporter")
        self._folder = Path(folder)
        self._server = WebServer(NodeMetrics(self._folder).page, host=host, port=port)

    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    def close(self) -> None:
        """Ends it; what the node's processes have written is deleted."""
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def start(node: str, folder: str, host: str, port: int, level: str) -> Any:
    """The actor of a node, by Ray's name for it; it goes on when its process dies."""
    return (
        ray.remote(num_cpus=0, max_restarts=-1)(Exporter)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(folder, host, port, level)
    )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
