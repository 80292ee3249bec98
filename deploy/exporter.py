"""One exporter a node: what the processes of a run there have counted, for Prometheus to fetch.

Its processes keep their metrics in files (the multiprocess mode of ``prometheus_client``), so that
neither a scrape nor the exporter takes time of theirs, and counters do not fall when one of them
dies: its successor goes on beside its file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from buffer import logs
from deploy.web import Page, WebServer

ABANDONED_SECONDS = 3600.0
"""A folder of dead processes that nobody has touched for so long is that of a killed pipeline."""
KEPT = ("counter", "histogram", "gauge_max")
"""Kinds of files that outlive their process."""
FOLD_FROM = 3
"""So many files of dead processes become one."""
_FOLDED = "_dead.db"
_FOLDER = re.compile(r"ssdkd-.+-[0-9a-f]{8}")
_OF_A_PROCESS = re.compile(r"\w+_(\d+)\.(db|new|exporter)")

logger = logging.getLogger(__name__)


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
        here = os.open(self._folder, os.O_RDONLY)
        try:
            # No file goes while somebody reads: other threads, exporters of nodes of one machine.
            fcntl.flock(here, fcntl.LOCK_EX)
            self._forget_the_dead()
            for kind in KEPT:
                self._fold(kind)
            return exposition(self._registry)
        finally:
            os.close(here)

    def _forget_the_dead(self) -> None:
        """What a process that has died was doing is not shown for ever; what it counted stays."""
        for file in self._folder.glob("gauge_live*.db"):
            if (process := _process(file)) is not None and not _lives(process):
                mark_process_dead(process, path=str(self._folder))  # type: ignore[no-untyped-call]

    def _fold(self, kind: str) -> None:
        """One file for all the dead: where synthesizers come and go, theirs would only add up."""
        files = [file for file in self._folder.glob(f"{kind}_*.db") if _of_the_dead(file)]
        if len(files) < FOLD_FROM:
            return
        new, folded = self._folder / f"{kind}_{os.getpid()}.new", self._folder / (kind + _FOLDED)
        try:
            _write_sum(files, new)
        except OSError as error:
            logger.debug("%d files of the dead stay, no room for their sum: %s", len(files), error)
            new.unlink(missing_ok=True)
            return
        new.replace(folded)
        for file in files:
            if file != folded:
                file.unlink()


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
        with suppress(OSError):  # the disk is full
            # While this process lives nobody takes the folder to be abandoned.
            (self._folder / f"of_{os.getpid()}.exporter").touch()
        forget_abandoned(self._folder.parent)

    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    def close(self) -> None:
        """Ends it; what the node's processes have written is deleted."""
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _write_sum(files: Sequence[Path], new: Path) -> None:
    """Adds up what is in files of one kind.

    Raises:
        OSError: the disk has no room for it; looked for beforehand, see :mod:`buffer.metric_files`.
    """
    new.write_bytes(bytes(sum(each.stat().st_size for each in files)))
    total = MmapedDict(str(new))  # type: ignore[no-untyped-call]
    names = [str(each) for each in files]
    for metric in MultiProcessCollector.merge(names, accumulate=False):  # type: ignore[no-untyped-call]
        for sample in metric.samples:
            labels = sample.labels
            key = mmap_key(
                *(metric.name, sample.name, list(labels), list(labels.values())),
                metric.documentation,
            )
            value = sample.value
            if metric.type != "gauge" and not value.is_integer():
                # Added up in another order it may come out a bit lower, which to Prometheus would
                # be a counter that began anew.
                value *= 1 + 1e-12
            total.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    total.close()  # type: ignore[no-untyped-call]
    with new.open("rb") as file:
        used = int.from_bytes(file.read(4), sys.byteorder)
    os.truncate(new, used)


def start(node: str, folder: str, host: str, port: int, level: str) -> Any:
    """The actor of a node, by Ray's name for it; it goes on when its process dies."""
    return (
        ray.remote(num_cpus=0, max_restarts=-1)(Exporter)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(folder, host, port, level)
    )


def forget_abandoned(folder: Path) -> None:
    """Deletes what killed pipelines left: their exporters had no time to.

    Only folders of this user, named like those of pipelines, with nothing in them but files named
    after processes that are all dead, none of it newer than :data:`ABANDONED_SECONDS`.
    """
    for each in folder.glob("ssdkd-*"):
        with suppress(OSError):  # somebody else deletes it just now, or may and we may not
            if _FOLDER.fullmatch(each.name) and not each.is_symlink() and _abandoned(each):
                for file in each.iterdir():
                    file.unlink()
                each.rmdir()


def _abandoned(folder: Path) -> bool:
    files = list(folder.iterdir())
    if not all(_of_the_dead(file) for file in files):
        return False
    states = [path.lstat() for path in (folder, *files)]
    newest = max(state.st_mtime for state in states)
    ours = all(state.st_uid == os.geteuid() for state in states)
    return ours and time.time() - newest > ABANDONED_SECONDS


def _of_the_dead(file: Path) -> bool:
    process = _process(file)
    return file.name.endswith(_FOLDED) if process is None else not _lives(process)


def _process(file: Path) -> int | None:
    """Whose file it is, by its name."""
    name = _OF_A_PROCESS.fullmatch(file.name)
    return int(name[1]) if name and file.is_file() and not file.is_symlink() else None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
