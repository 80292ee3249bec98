"""Serves the page of a run while it goes on, or after it."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from rich.console import Console

from buffer.errors import ConfigError
from deploy import history, run_page
from deploy.config import MonitoringTable
from deploy.history import Since
from deploy.web import Page, WebServer, place

GOODBYE_SECONDS = 5.0
"""A page that has asked within this time is waited for so long, to be told how the run ended."""
HTML = "text/html; charset=utf-8"
NEWS = re.compile(r"/news/(\d{1,15})-(\d{1,15})-(\d{1,15})-(\d{1,15})")

logger = logging.getLogger(__name__)


class LivePage:
    """A server of the page of one run, in a thread; a context manager.

    Args:
        out: folder of the run.
        host: to listen on; whoever reaches it sees the run, its configuration and pictures.
        port: see :class:`~deploy.web.WebServer`.
        within: whether the run is that of this process: then it ends when this is left.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, out: Path, *, host: str, port: int, within: bool = False) -> None:
        self._out, self._within = out, within
        self._ended, self._told = threading.Event(), threading.Event()
        self._asked = -GOODBYE_SECONDS
        # Until the run has begun there may be an earlier one, of which nothing is shown as this.
        self._earlier = _written(out)
        self._server = WebServer(self._page, host=host, port=port)
        self.address = f"http://{place(host, self._server.port)}/"
        """Of the page."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._within and time.monotonic() - self._asked < GOODBYE_SECONDS:
            self._told.wait(GOODBYE_SECONDS)
        self._server.close()

    def _page(self, path: str) -> Page | None:
        if self._within and _written(self._out) == self._earlier:
            return Page(run_page.WAITING, HTML, status=503)
        if path == "/":
            return self._whole()
        if (asked := NEWS.fullmatch(path)) is not None:
            return self._news(Since(*map(int, asked.groups())))
        if (file := run_page.picture(self._out, path[1:])) is not None:
            return Page(file.read_bytes(), "image/png")
        return None

    def _whole(self) -> Page:
        try:
            return Page(run_page.live(self._out), HTML)
        except ConfigError:
            return Page(run_page.WAITING, HTML, status=503)

    def _news(self, since: Since) -> Page:
        self._asked, ended = time.monotonic(), self._ended.is_set()
        news = history.news(self._out, since, claimed=not ended if self._within else None)
        if ended:
            self._told.set()
        return Page(json.dumps(news, allow_nan=False).encode(), "application/json")


def _written(out: Path) -> tuple[int, int] | None:
    """Tells the configuration that a run wrote when it began from that of an earlier run."""
    with suppress(FileNotFoundError):
        status = (out / "config.yaml").stat()
        return status.st_ino, status.st_mtime_ns
    return None


@contextmanager
def shown(table: MonitoringTable, out: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Shows the page of this process' run while it goes on, if ``monitoring.page_port`` is set."""
    with ExitStack() as stack:
        if table.page_port is not None:
            host = table.page_host
            try:
                page = LivePage(out, host=host, port=table.page_port, within=True)
            except OSError as error:  # nothing that watches a run may end it
                logger.warning("monitoring.page_host (%s): no run page is shown: %s", host, error)
            else:
                stack.enter_context(page)
                note(f"run page: {page.address}")
        yield


def serve(out: Path, host: str, port: int, console: Console) -> None:
    """Shows the page of a run until Ctrl-C.

    Raises:
        ConfigError: no run has begun in the folder, or the address cannot be listened on.
    """
    history.run(out)
    try:
        page = LivePage(out, host=host, port=port)
    except OSError as error:
        raise ConfigError(f"--host ({host}): nothing can be shown there: {error}") from error
    with page, suppress(KeyboardInterrupt):
        console.print(f"{page.address} until Ctrl-C", highlight=False, soft_wrap=True)
        threading.Event().wait()
