"""The web server, over real sockets."""

from __future__ import annotations

import logging
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest

from deploy.web import Page, WebServer, place
from tests.waiting import until


def page(path: str) -> Page | None:
    if path == "/broken":
        raise RuntimeError("on purpose")
    if path == "/large":
        return Page(bytes(1 << 24))
    return Page(b"hello", "text/x-greeting") if path == "/hello" else None


@pytest.fixture
def server() -> Iterator[WebServer]:
    with closing(WebServer(page, host="127.0.0.1", port=0)) as server:
        yield server


def get(server: WebServer, path: str, host: str = "127.0.0.1") -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://{place(host, server.port)}{path}") as answer:
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


def test_a_viewer_that_goes_before_it_has_its_answer_is_no_news(
    server: WebServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "deploy.web"):
        with socket.create_connection(("127.0.0.1", server.port)) as viewer:
            viewer.sendall(b"GET /large HTTP/1.0\r\n\r\n")
            viewer.recv(1)
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: "no answer to ('127.0.0.1'" in caplog.text)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert capfd.readouterr().err == ""
    assert get(server, "/hello")[0] == 200


def test_an_address_of_ipv6_is_listened_on_and_has_brackets_in_urls() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with closing(WebServer(page, host="::1", port=0)) as server:
        assert get(server, "/hello", host="::1")[0] == 200


def test_a_place_in_a_url_is_unambiguous() -> None:
    assert place("fe80::1", 80) == "[fe80::1]:80"
    assert place("127.0.0.1", 80) == "127.0.0.1:80"
