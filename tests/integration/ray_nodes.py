"""A private Ray cluster of several nodes on this machine, with the job server and a token."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 90.0


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
