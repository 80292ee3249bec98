"""The replay buffer beside Reverb and torchrl: the same work by turns, in one run.

``python -m tests.benchmarks.rivals --reverb-python PATH --torchrl-python PATH [--quick]`` prints
Markdown. The paths are interpreters of environments apart from the project's:

    python3.11 -m venv reverb && reverb/bin/pip install "dm-reverb[tensorflow]==0.14.0"
    python3.11 -m venv torchrl && torchrl/bin/pip install "torchrl==0.14.1" "torch==2.14.*"

(torchrl's extension loads only beside the release of torch that it was compiled for.) A rival
without an interpreter is left out; without any, only our own figures are taken, quickly.

Batches are of 256 items of 3x32x32 bytes, a label and 10 logits; each contender is a process that
works alone in its turn, and each server another. A turn begins with calls that are not timed, so
that batches fetched ahead are used up; it counts with its mean, a contender with the median of its
turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

BATCH = 256
FOLDER = Path(__file__).parent / "contenders"
ROOT = Path(__file__).parents[2]
UNTIMED = {"sample": 16, "update": 2, "insert": 2}
"""Reverb's dataset holds at most 9 batches ahead with 2 workers."""
PAUSE_SECONDS = 0.2
"""After a turn: what still runs in the background of one contender ends before the next begins."""


class Entry(NamedTuple):
    """A row of the tables."""

    title: str
    interpreter: str
    """Which one of the command line."""
    program: str
    arguments: tuple[str, ...] = ()
    only: str = ""
    """The operation in which it differs from a row above; all if empty."""


ENTRIES = (
    Entry("ours, cache off", "ours", "our_buffer.py", ("off",)),
    Entry("ours, cache on", "ours", "our_buffer.py", only="sample"),
    Entry("Reverb, client", "reverb", "reverb_buffer.py", ("client",)),
    Entry("Reverb, TrajectoryDataset", "reverb", "reverb_buffer.py", ("dataset",), "sample"),
    Entry("torchrl, in process", "torchrl", "torchrl_buffer.py"),
)


class Process:
    """A contender that waits for its turn."""

    def __init__(self, entry: Entry, python: str, log: Path) -> None:
        self.entry, self._log = entry, log
        path = {"PYTHONPATH": str(ROOT)} if entry.interpreter == "ours" else {}
        others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, str(FOLDER / entry.program), *entry.arguments],
                env={**others, "TF_CPP_MIN_LOG_LEVEL": "3", **path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, *words: object) -> Any:
        """The answer to a command.

        Raises:
            SystemExit: the contender has ended; with the end of what it said.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(*words, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            end = self._log.read_text()[-2000:]
            raise SystemExit(f"{self.entry.title} has ended, asked to {words[0]}:\n{end}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends it, and so its server."""
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells) + " |")


def measure(processes: list[Process], operation: str, rounds: int, calls: int) -> list[list[float]]:
    """Microseconds an item of each process in each round."""
    times: list[list[float]] = [[] for _ in processes]
    for _ in range(rounds):
        for process, taken in zip(processes, times, strict=True):
            seconds = process.ask(operation, calls, UNTIMED[operation])
            taken.append(1e6 * statistics.mean(seconds) / BATCH)
            time.sleep(PAUSE_SECONDS)
    return times


def table(processes: list[Process], operation: str, items: int, rounds: int, calls: int) -> None:
    """Prints how long an operation took everybody, and relates it to our times."""
    chosen = [process for process in processes if process.entry.only in ("", operation)]
    times = measure(chosen, operation, rounds, calls)
    medians = [statistics.median(taken) for taken in times]
    ours = [i for i, process in enumerate(chosen) if process.entry.interpreter == "ours"]
    print(f"\n### {operation}, {items:,} items\n")
    beside = [f"times {chosen[i].entry.title}" for i in ours]
    columns = ("us an item", "fastest to slowest turn", "batches a second", *beside)
    row("", *columns)
    row("---", *["---"] * len(columns))
    for process, taken, median in zip(chosen, times, medians, strict=True):
        ratios = [median / medians[i] for i in ours]
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        row(process.entry.title, median, spread, f"{1e6 / median / BATCH:,.0f}", *ratios)


def compare(processes: list[Process], quick: bool) -> None:
    """Prints all tables."""
    for process in processes:
        print(f"* {process.entry.title}: {process.ask('versions')}")
    rounds, calls = (5, 10) if quick else (15, 30)
    for items in (5_000,) if quick else (5_000, 100_000):
        for process in processes:
            process.ask("fill", items)
        for operation in ("sample", "update", "insert"):
            table(processes, operation, items, rounds, calls)
            for process in processes:
                if operation == "sample" and (remark := process.ask("remark")):
                    print(f"\n{process.entry.title}: {remark}.")


def main() -> None:
    """Starts whom the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reverb-python", help="interpreter that has dm-reverb[tensorflow]")
    parser.add_argument("--torchrl-python", help="interpreter that has torchrl")
    parser.add_argument("--quick", action="store_true", help="5,000 items and few rounds")
    given = parser.parse_args()
    pythons = {"reverb": given.reverb_python, "torchrl": given.torchrl_python}
    for name, python in pythons.items():
        if not python:
            print(f"{name} is left out: --{name}-python does not say which Python has it.\n")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = []
        for i, entry in enumerate(ENTRIES):
            if python := {**pythons, "ours": sys.executable}[entry.interpreter]:
                processes.append(Process(entry, python, folder / f"{i}.log"))
                stack.callback(processes[-1].close)
        compare(processes, given.quick or not any(pythons.values()))


if __name__ == "__main__":
    main()
