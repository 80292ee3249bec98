"""A private Ray cluster of several nodes on this machine, with the job server and a token."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.buffer.servers import free_ports

RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 90.0
OWN_PORTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")


class Node:
    """``ray start --block`` in a process group of its own: a raylet with all it starts."""

    def __init__(
        self, options: list[str], environment: dict[str, str], log: Path, *, inside: Sequence[str]
    ) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*inside, str(RAY), "start", *options, "--block", "--disable-usage-stats"],
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
        head_environment: variables that only the head has.
    """

    def __init__(
        self,
        folder: Path,
        *,
        head_cpus: int = 1,
        head_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.token = secrets.token_hex(16)
        self._folder = folder
        gcs, dashboard, client, *others = free_ports(3 + len(OWN_PORTS))
        self.gcs = f"127.0.0.1:{gcs}"
        self.address = f"http://127.0.0.1:{dashboard}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = kept | {
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        }
        options = [
            *("--head", f"--port={gcs}", f"--num-cpus={head_cpus}"),
            *(f"--dashboard-port={dashboard}", f"--temp-dir={folder / 'ray'}"),
            *(f"--ray-client-server-port={client}", "--node-ip-address=127.0.0.1"),
            *own_ports(others),
        ]
        environment = self.environment | dict(head_environment or {})
        self.nodes = [Node(options, environment, folder / "head.log", inside=())]

    def __enter__(self) -> RayNodes:
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, *, cpus: int, inside: Sequence[str] = ()) -> Node:
        """Starts a worker node; ``inside`` a command that runs the command behind it.

        Returns when it is there: two that begin at once take the same names in Ray's folder.
        """
        options = [
            *(f"--address={self.gcs}", f"--num-cpus={cpus}"),
            # An address of its own, as other machines would have.
            f"--node-ip-address=127.0.0.{1 + len(self.nodes)}",
            *own_ports(free_ports(len(OWN_PORTS))),
        ]
        log = self._folder / f"node{len(self.nodes)}.log"
        node = Node(options, self.environment, log, inside=inside)
        self.nodes.append(node)
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in node.log():
            assert node.process.poll() is None, node.log()
            assert time.monotonic() < deadline, node.log()
            time.sleep(0.2)
        return node

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

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``ssdkd`` from outside the cluster, as in the documents: with its address and token."""
        token = self._folder / "auth_token"
        token.write_text(self.token)
        kept = {k: v for k, v in self.environment.items() if not k.startswith("RAY_")}
        known = {"RAY_API_SERVER_ADDRESS": self.address, "RAY_AUTH_TOKEN_PATH": str(token)}
        return subprocess.run(
            [str(RAY.with_name("ssdkd")), *words],
            env=kept | known | {"NO_COLOR": "1", "COLUMNS": "200"},
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


def own_ports(ports: Sequence[int]) -> list[str]:
    """Options that keep several nodes of one machine from taking each other's ports."""
    fixed = [f"--{name}-port={port}" for name, port in zip(OWN_PORTS, ports, strict=True)]
    # The kernel chooses those of the workers.
    return [*fixed, "--min-worker-port=0", "--max-worker-port=0"]
