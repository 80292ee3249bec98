"""A real Prometheus, with the project's own configuration and rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.buffer.servers import free_port

START_SECONDS = 30.0


class Prometheus:
    """Watches one pipeline while it is entered.

    Args:
        program: the server.
        source: folder of the configuration and its rules; of it, a copy has other intervals and
            another address, and is else what a user starts.
        folder: empty; takes that copy, the data and the log.
        targets: URL of the pipeline's discovery.
    """

    def __init__(self, program: str, source: Path, folder: Path, *, targets: str) -> None:
        shutil.copytree(source, folder / "config")
        config = folder / "config" / "prometheus.yml"
        settings = yaml.safe_load(config.read_text())
        settings["global"] = dict.fromkeys(settings["global"], "1s")
        (job,) = settings["scrape_configs"]
        (discovery,) = job["http_sd_configs"]
        discovery |= {"url": targets, "refresh_interval": "1s"}
        config.write_text(yaml.safe_dump(settings))
        self._address = f"127.0.0.1:{free_port()}"
        self._log = folder / "log"
        self._command = [
            *(program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address={self._address}", "--log.level=warn"),
        ]

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, path: str, **parameters: str) -> Any:
        """The ``data`` of an answer of the API below ``/api/v1/``."""
        url = f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expr: str) -> list[float]:
        """What a query gives now, a number for each series."""
        found = self.ask("query", query=expr)["result"]
        return [float(series["value"][1]) for series in found]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, as they were last evaluated."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://{self._address}/-/ready", timeout=5):
                return True
        except (URLError, OSError):
            return False
