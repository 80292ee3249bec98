"""The web server, over real sockets."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest

from deploy.web import Page, WebServer


def page(path: str) -> Page | None:
    if path == "/broken":
        raise RuntimeError("on purpose")
    return Page(b"hello", "text/x-greeting") if path == "/hello" else None


@pytest.fixture
def server() -> Iterator[WebServer]:
    with closing(WebServer(page, host="127.0.0.1", port=0)) as server:
        yield server


def get(server: WebServer, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_a_page_is_served_whatever_its_query(server: WebServer) -> None:
    assert get(server, "/hello?again=1") == (200, "text/x-greeting", b"hello")


def test_what_is_not_there_or_cannot_be_made_is_said(server: WebServer) -> None:
    assert get(server, "/nothing")[0] == 404
    assert get(server, "/broken")[0] == 500
    assert get(server, "/hello")[0] == 200


def test_a_port_that_is_taken_is_replaced_by_one_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with closing(WebServer(page, host="127.0.0.1", port=port)) as server:
            assert server.port != port
            assert get(server, "/hello")[0] == 200
