"""What is said where no run can be submitted; a cluster that takes runs is in integration/."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from buffer.errors import ConfigError, SsdkdError
from deploy import jobs
from deploy.cli import app
from deploy.jobs import JobServer, _answer
from tests.buffer.servers import TcpServer

# Ray's own call.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")


@pytest.fixture
def servers() -> Iterator[list[HTTPServer]]:
    """Those that run."""
    running: list[HTTPServer] = []
    yield running
    while running:
        stop(running.pop())


def stop(server: HTTPServer) -> None:
    server.shutdown()
    server.server_close()


@pytest.fixture
def answering(servers: list[HTTPServer]) -> Callable[[int, bytes], str]:
    """Starts a server that gives everybody one answer; its address."""

    def start(code: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    return start


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("code", "body"),
    [(404, b"nothing"), (200, b"<html>"), (200, b"[]"), (200, b"{}"), (500, b"")],
)
def test_an_address_that_is_not_rays_is_refused(
    answering: Callable[[int, bytes], str], code: int, body: bytes
) -> None:
    with pytest.raises(ConfigError, match=r"no Ray job server answers there .*8265"):
        JobServer(answering(code, body))


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "127.0.0.1:8265", "http://", "nowhere", "file:///etc"]
)
def test_an_address_where_nobody_is_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--address \(.*no Ray job server answers there"):
        JobServer(address)


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ConfigError, match="timed out"):
            JobServer(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    "ask", [lambda server: server.find("a"), lambda server: list(server.logs("a", follow=True))]
)
def test_a_server_that_falls_silent_is_not_waited_for(
    answering: Callable[[int, bytes], str],
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[JobServer], object],
) -> None:
    address = answering(200, json.dumps({"ray_version": ray.__version__}).encode())
    server = JobServer(address)
    monkeypatch.setattr(jobs, "REQUEST_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        server._client._address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SsdkdError, match=r"the job server at .*: .*timed out"):
            ask(server)


def test_another_server_is_no_job_server(tmp_path: Path) -> None:
    server = TcpServer(tmp_path)
    try:
        with pytest.raises(ConfigError, match="no Ray job server answers there"):
            JobServer(server.url.replace("redis://", "http://"))
    finally:
        server.stop()


def test_another_version_of_ray_is_named(answering: Callable[[int, bytes], str]) -> None:
    address = answering(200, json.dumps({"ray_version": "2.9.3"}).encode())
    with pytest.raises(ConfigError, match=rf"runs Ray 2\.9\.3, this is {ray.__version__}"):
        JobServer(address)


@pytest.mark.parametrize(
    "ask",
    [
        lambda server: server.find("a"),
        lambda server: list(server.logs("a")),
        lambda server: list(server.logs("a", follow=True)),
    ],
)
def test_a_server_that_goes_away_is_named(
    servers: list[HTTPServer],
    answering: Callable[[int, bytes], str],
    ask: Callable[[JobServer], object],
) -> None:
    server = JobServer(answering(200, json.dumps({"ray_version": ray.__version__}).encode()))
    stop(servers.pop())
    with pytest.raises(
        SsdkdError, match=r"the job server at http.*: .*(Connection refused|Connect call failed)"
    ):
        ask(server)


@pytest.mark.parametrize("code", [401, 403])
def test_a_token_that_is_missing_or_wrong_is_said(
    answering: Callable[[int, bytes], str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = answering(code, b"")
    with pytest.raises(
        ConfigError, match="asks for a token, and none is given; set RAY_AUTH_TOKEN"
    ):
        JobServer(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "expired")
    with pytest.raises(ConfigError, match="the one given is not valid there"):
        JobServer(address)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "Is a directory"),
        (b"\xff\xfe\x00", "it is no text"),
        (b"s3cret\ntoken", "not one line of ASCII"),
    ],
)
def test_a_file_that_holds_no_token_is_named(
    answering: Callable[[int, bytes], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes | str | None,
    message: str,
) -> None:
    path = tmp_path / "token"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(ConfigError, match=rf"^RAY_AUTH_TOKEN_PATH \(.*token\): .*{message}"):
        JobServer(answering(401, b""))


@pytest.mark.parametrize("token", ["s3cret\ntoken", "s3cret-t\u00f6ken", "s3cret-\u03bb"])
def test_what_can_be_no_token_is_neither_sent_nor_shown(
    answering: Callable[[int, bytes], str], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN: it is not one line") as refused:
        JobServer(answering(200, b"{}"))
    assert "s3cret" not in str(refused.value)


def test_white_space_around_a_token_is_left_out(
    servers: list[HTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": ray.__version__}).encode())

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    servers.append(HTTPServer(("127.0.0.1", 0), Handler))
    threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_AUTH_TOKEN", " s3cret-token\n")
    JobServer(f"http://127.0.0.1:{servers[-1].server_port}")
    assert seen[0] == "Bearer s3cret-token"
    assert os.environ["RAY_AUTH_TOKEN"] == "s3cret-token"  # for Ray's own client


def test_a_log_that_cannot_be_followed_is_one_line(
    answering: Callable[[int, bytes], str],
) -> None:
    server = JobServer(answering(200, json.dumps({"ray_version": ray.__version__}).encode()))
    with pytest.raises(SsdkdError, match=r"the job server at http.*: .*200") as error:
        list(server.logs("a", follow=True))
    assert len(str(error.value).splitlines()) == 1


def test_an_order_is_answered_by_its_last_line() -> None:
    assert _answer('a warning\n{"phase": "filling"}\n') == {"phase": "filling"}
    with pytest.raises(SsdkdError, match="no pipeline"):
        _answer('{"error": "no pipeline of this name"}')
    with pytest.raises(SsdkdError, match="No module named deploy"):
        _answer("python: No module named deploy")
    with pytest.raises(SsdkdError, match="nothing was printed"):
        _answer("")


def test_a_password_never_becomes_part_of_a_job(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            *("submit", "digits", "--out", "/shared/out", "--address", "http://127.0.0.1:1"),
            *("--set", "buffer.url=redis://pipeline:hunter2@host:6380"),
        ],
    )
    assert isinstance(done.exception, ConfigError)
    assert "SSDKD_REDIS_URL" in str(done.exception)
    assert "hunter2" not in str(done.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits", "--out", "runs/here"), r"--out \(runs/here\) is not absolute"),
        (("nowhere.yaml", "--out", "/shared"), r"config \(nowhere.yaml\): no such file"),
        (
            ("mine.yaml", "--out", "/shared", "--working-dir", "/tmp"),
            r"config \(mine.yaml\) is no file in --working-dir",
        ),
        (
            ("/etc/hostname", "--out", "/shared", "--working-dir", "/tmp"),
            r"config \(/etc/hostname\) is no file in --working-dir",
        ),
    ],
)
def test_what_would_be_missing_on_the_cluster_is_said(words: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["submit", *words, "--address", "http://127.0.0.1:1"])
    assert isinstance(done.exception, ConfigError)
    assert re.search(message, str(done.exception))
