"""What every test session needs: a quiet environment, and two guards that can fail it.

* A skip that ``allowed_skips.toml`` does not list fails the session on CI (``CI=true``, or the
  option ``--fail-on-skip``): a test that silently stops running is worse than one that fails.
* A process that outlives the session fails it everywhere. Found by a variable in its environment,
  so that orphaned grandchildren (a worker of Ray, a Redis server) count as well. Linux only.
"""

from __future__ import annotations

import os
import signal
import time
import tomllib
from pathlib import Path

import pytest

# Before anything imports torch or ray. Ray must neither read nor write a token in the home folder.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# What a shell starts in the background ignores Ctrl-C, and so would every command under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["pytester"]

MARK = "SSDKD_TEST_SESSION"
GRACE_SECONDS = 10.0
"""Processes that were told to end may take so long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail on skips that allowed_skips.toml does not list; default where CI=true",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    config.pluginmanager.register(ProcessGuard(os.environ[MARK]), "process-guard")
    if config.getoption("--fail-on-skip"):
        allowed = Path(__file__).with_name("allowed_skips.toml")
        config.pluginmanager.register(SkipGuard(allowed), "skip-guard")


class SkipGuard:
    """Fails the session on skips that are not allowed.

    A skip is allowed by an entry whose ``test`` is the test's id without its parameters, or the
    file for a file skipped as a whole, and whose ``reason`` is part of the reason given.
    """

    def __init__(self, allowed: Path) -> None:
        self._allowed = tomllib.loads(allowed.read_text(encoding="utf-8")).get("skip", [])
        self._refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._judge(report)

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for entry in self._allowed:
            if entry["test"] == report.nodeid.partition("[")[0] and entry["reason"] in reason:
                return
        self._refused.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refused:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._refused:
            terminalreporter.write_line(f"SKIP NOT ALLOWED {line}", red=True)


class ProcessGuard:
    """Fails the session if processes started by it are still alive."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._left: dict[int, str] = {}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._left = left
        if left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for pid, command in self._left.items():
            terminalreporter.write_line(f"PROCESS LEFT BEHIND {pid}: {command}", red=True)

    def _alive(self) -> dict[int, str]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self._mark in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # gone meanwhile, or not ours
                continue
            # Python's own helper of shared memory ends with the interpreter that started it.
            if marked and folder.name != str(os.getpid()) and "resource_tracker" not in command:
                found[int(folder.name)] = command
        return found
