"""A small HTTP server in a thread: pages that are made when they are asked for."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)


class Page(NamedTuple):
    """An answer to a GET."""

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200


def place(host: str, port: int) -> str:
    """Host and port as a URL has them: an address of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class WebServer:
    """Answers GET and HEAD from a thread of its own, until closed.

    Args:
        page: the page of a path (without its query), ``None`` if there is none. Called from several
            threads; what it raises is logged and answered with 500.
        host: address to listen on, of IPv4 or IPv6; ``0.0.0.0`` or ``::`` for all.
        port: 0 for any that is free; one that is taken is replaced by one that is free, because
            nothing that watches a run may end it.

    Raises:
        OSError: the address or the port may not be listened on.
    """

    def __init__(self, page: Callable[[str], Page | None], *, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"page": staticmethod(page)})
        try:
            self._server = _Server(host, port, handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._server = _Server(host, 0, handler)
            logger.warning("port %d of %s is taken: listening on %d", port, host, self.port)
        self._thread = Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Two runs on one machine must not share a port.
    allow_reuse_port = False

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A viewer that goes before it has its answer is no news."""
        logger.debug("no answer to %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    page: Callable[[str], Page | None]
    timeout = 30.0

    def do_GET(self) -> None:
        found = self._made()
        self.send_response(found.status)
        self.send_header("Content-Type", found.kind)
        self.send_header("Content-Length", str(len(found.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found.body)

    do_HEAD = do_GET  # noqa: N815

    def _made(self) -> Page:
        path = urlsplit(self.path).path
        try:
            return self.page(path) or Page(f"nothing at {path}\n".encode(), status=404)
        except Exception:  # a page that cannot be made must not end who serves it
            logger.exception("%s could not be made", path)
            return Page(b"failed, see the log\n", status=500)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)
