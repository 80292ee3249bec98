"""A private Ray cluster of several nodes on this machine, with the job server and a token."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 90.0


class Node:
    """``ray start --block`` in a process group of its own: a raylet with all it starts."""

    def __init__(self, options: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(RAY), "start", *options, "--block", "--disable-usage-stats"],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")[-3000:]

    def processes(self) -> list[psutil.Process]:
        """The raylet, and what it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL to everything of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class RayNodes:
    """Head and workers; a context manager that leaves no process behind.

    Args:
        folder: short, for sockets and logs.
        head_cpus: logical CPUs of the head.
    """

    def __init__(self, folder: Path, *, head_cpus: int = 1) -> None:
        self.token = secrets.token_hex(16)
        self._folder = folder
        self._gcs, self._dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self._dashboard}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = kept | {
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        }
        options = [
            *("--head", f"--port={self._gcs}", f"--num-cpus={head_cpus}"),
            *(f"--dashboard-port={self._dashboard}", f"--temp-dir={folder / 'ray'}"),
            *(f"--ray-client-server-port={free_port()}", "--node-ip-address=127.0.0.1"),
            *own_ports(),
        ]
        self.nodes = [Node(options, self.environment, folder / "head.log")]

    def __enter__(self) -> RayNodes:
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, *, cpus: int) -> Node:
        """Starts a worker node."""
        options = [
            *(f"--address=127.0.0.1:{self._gcs}", f"--num-cpus={cpus}"),
            *("--node-ip-address=127.0.0.1", *own_ports()),
        ]
        node = Node(options, self.environment, self._folder / f"node{len(self.nodes)}.log")
        self.nodes.append(node)
        return node

    def wait_for_all(self) -> None:
        """Until all nodes that were added are there."""
        deadline = time.monotonic() + START_SECONDS
        while self._alive() < len(self.nodes):
            logs = "\n".join(node.log() for node in self.nodes)
            assert time.monotonic() < deadline, logs
            time.sleep(0.5)

    def _alive(self) -> int:
        request = urllib.request.Request(
            self.address + "/nodes?view=summary", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.loads(answer.read())["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in found)

    def close(self) -> None:
        """Kills all nodes, the head last, and the jobs, which are in groups of their own."""
        for node in reversed(self.nodes):
            node.kill()
        for process in self._marked():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def find(self, words: str) -> list[psutil.Process]:
        """The processes of the cluster, jobs included, with these words in their command line."""
        found = []
        for process in self._marked():
            with suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def _marked(self) -> Iterator[psutil.Process]:
        mark = f"RAY_AUTH_TOKEN={self.token}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, psutil.NoSuchProcess):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    yield psutil.Process(int(folder.name))

    def command(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """``ssdkd`` from outside the cluster, with its token."""
        environment = self.environment | {"NO_COLOR": "1", "COLUMNS": "200"}
        environment.pop("RAY_AUTH_MODE")
        return subprocess.run(
            [str(RAY.with_name("ssdkd")), *words, "--address", self.address],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        request = urllib.request.Request(
            self.address + "/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            assert self.nodes[0].process.poll() is None, self.nodes[0].log()
            assert time.monotonic() < deadline, self.nodes[0].log()


def own_ports() -> list[str]:
    """Options that keep several nodes of one machine from taking each other's ports."""
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
    fixed = [f"--{name}-port={free_port()}" for name in names]
    # The kernel chooses those of the workers.
    return [*fixed, "--min-worker-port=0", "--max-worker-port=0"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
