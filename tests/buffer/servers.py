"""Real Redis servers on TCP that tests can stop, start again, and configure."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import redis

from buffer.server import find_binary

BUS = 10_000
"""A server of a cluster talks to the others on the port that is higher by so much."""
PORTS = range(20_000, 22_700)
"""With their buses below those that Linux gives out, above those of Ray's workers."""


class TcpServer:
    """A server in a folder of its own; stopped by SIGKILL, so that nothing is saved by the way.

    Args:
        folder: of its files; what it saved there is loaded at its start.
        options: of ``redis-server``, as on its command line.
        binary: the executable; default: the one the product uses.
        tls: whether the port wants TLS; the certificates are in ``options``.
    """

    def __init__(
        self, folder: Path, *options: str, binary: str | None = None, tls: bool = False
    ) -> None:
        self._folder, self._options, self._tls = folder, options, tls
        self._binary = binary or find_binary()
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        scheme = "rediss" if self._tls else "redis"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        port = ["--port", "0", "--tls-port"] if self._tls else ["--port"]
        self._process = subprocess.Popen(
            [
                *(self._binary, *port, str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--dir", str(self._folder), *self._options),
            ],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(500):
            assert self._process.poll() is None, "the server has ended"
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("the server does not listen")

    def save(self) -> None:
        """Writes the snapshot that the next start loads."""
        with redis.Redis.from_url(self.url) as client:
            client.save()

    def forget(self) -> None:
        """Removes the snapshot."""
        (self._folder / "dump.rdb").unlink(missing_ok=True)

    def freeze(self, seconds: float) -> None:
        """Answers nobody for so long."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port() -> int:
    """One of :func:`free_ports`."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports that are free, and so are those of their buses; no two are the same.

    Why not the kernel's choice: until the first who asked opens his port, a second one may be
    given it. These are below the kernel's range, so that nobody is given them by chance.
    """
    free: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as own, socket.socket() as bus, suppress(OSError):
            own.bind(("", port))
            bus.bind(("", port + BUS))
            free.append(port)
        if len(free) == count:
            return free
    raise AssertionError(f"of {len(PORTS)} ports only {len(free)} are free")
