"""What it costs a whole run to be watched: demos with nobody there, and with everybody, by turns.

``python -m tests.benchmarks.monitoring --runs N --steps S`` prints Markdown. *Alone*: no metrics
(``monitoring.port: null``), no recorder (``interval_seconds: null``), no page. *Watched*: metrics,
which are asked for as Prometheus does, the recorder as it is by default, and a live page, whose
browser asks as often as ``page.js`` and gets every picture. All runs make as many student steps
with the same teacher; their time is ``wall_seconds`` of ``result.json``.

A machine that others use may be a fifth slower from one minute to the next, which hides a cost of
some percent. So processor time is compared too: of the command, which records and serves the page,
with the exporters, against that of the whole run. What services spend on their own metrics is not
in it: the other table of this benchmark says that.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from deploy.config import DEFAULT_CONFIG, load
from deploy.validate import with_teacher
from tests.benchmarks.processes import Processes

SSDKD = Path(sys.executable).with_name("ssdkd")
SCRAPE_SECONDS, ASK_SECONDS, LOOK_SECONDS = 5.0, 2.0, 1.0
KINDS = {
    "alone": ("port=null", "interval_seconds=null", "page_port=null"),
    "watched": ("port=0", "node_port=0", "page_port=0"),
}
Result = Mapping[str, Any]


def whole_runs(runs: int, steps: int) -> None:
    """Prints a line a run, then the table.

    Args:
        runs: of each kind.
        steps: of each run's student.
    """
    found: dict[str, list[Result]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="watched-") as name:
        folder = Path(name)
        teacher = with_teacher(load(DEFAULT_CONFIG), folder).teacher.weights
        common = [f"teacher.weights={teacher}", "run.seconds=null", f"run.steps={steps}"]
        for number in range(runs):
            # Each is first as often as the other: a machine may be slower in the evening.
            for kind in sorted(KINDS, reverse=bool(number % 2)):
                sets = [*common, *(f"monitoring.{each}" for each in KINDS[kind])]
                result = one_run(folder / f"{kind}-{number}", sets)
                found[kind].append(result)
                print(f"{kind}: {result['wall_seconds']:.1f} s, {said(result)}", flush=True)
    print(f"\n{table(found['alone'], found['watched'])}")


def said(result: Result) -> str:
    return (
        f"{result['student_steps']} steps, {result['samples_inverted']} samples inverted, "
        f"{result['scrapes']} scrapes, {result['asked']} times asked for news"
    )


def table(alone: Sequence[Result], watched: Sequence[Result]) -> str:
    """Medians of both kinds, their ratio, and the lowest and highest ratio of two neighbours."""
    lines = [
        f"| medians of {len(alone)} | alone | watched | ratio | of neighbours |",
        "|---|---|---|---|---|",
    ]
    measures: dict[str, Callable[[Result], float]] = {
        "wall time, s": lambda run: float(run["wall_seconds"]),
        "until the first step, s": lambda run: float(run["first_step_at_seconds"]),
        "student steps a second": lambda run: run["student_steps"] / run["wall_seconds"],
        "samples inverted a second": lambda run: run["samples_inverted"] / run["wall_seconds"],
    }
    for what, measure in measures.items():
        without, with_all = list(map(measure, alone)), list(map(measure, watched))
        ratios = [b / a for a, b in zip(without, with_all, strict=True)]
        a, b = statistics.median(without), statistics.median(with_all)
        ends = f"{min(ratios):.3f} to {max(ratios):.3f}"
        lines.append(f"| {what} | {a:.1f} | {b:.1f} | {b / a:.3f} | {ends} |")
    return "\n".join([*lines, "", processor_time(alone, watched)])


def processor_time(alone: Sequence[Result], watched: Sequence[Result]) -> str:
    """What a watched run's command and exporters take more than an unwatched one's."""
    without, with_all, whole = (
        statistics.median(run[what] for run in runs)
        for runs, what in ((alone, "beside"), (watched, "beside"), (watched, "processor"))
    )
    return (
        f"Processor time of command and exporters: {without:.1f} s alone, {with_all:.1f} s "
        f"watched; {(with_all - without) / whole:.2%} of the {whole:.0f} s of a watched run"
    )


def one_run(out: Path, sets: Sequence[str]) -> Result:
    """The result of one demo, how often it was looked at (``scrapes``, ``asked``), and its seconds
    of processor time: ``beside`` the work (the command and the exporters), and of all processes.

    Who watches it is told where by what it prints.
    """
    process = subprocess.Popen(
        [
            *(str(SSDKD), "run", "--progress", "plain", "--out", str(out)),
            *(part for each in sets for part in ("--set", each)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
    )
    scrapes, asked = Repeated(SCRAPE_SECONDS), Repeated(ASK_SECONDS)
    processes = Processes(process.pid)
    Repeated(LOOK_SECONDS).start(process, processes.look)
    assert process.stdout is not None
    for line in process.stdout:
        told, _, url = line.strip().rpartition(" ")
        if told == "metrics:":
            scrapes.start(process, Scraper(url.removesuffix("/metrics")).ask)
        elif told == "run page:":
            asked.start(process, Browser(url).ask)
    if process.wait() != 0:
        raise SystemExit(f"the run in {out} failed with {process.returncode}")
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result | {
        "scrapes": scrapes.answers,
        "asked": asked.answers,
        "beside": processes.seconds("ssdkd run", "ray::Exporter"),
        "processor": processes.seconds(""),
    }


class Repeated:
    """Asks again and again, from a thread, and counts the answers.

    Args:
        seconds: between two questions.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.answers = 0

    def start(self, process: subprocess.Popen[str], ask: Callable[[], object]) -> None:
        """Asks as long as a run goes on; its server may not be ready yet, or gone."""
        Thread(target=self._ask_on, args=(process, ask), daemon=True).start()

    def _ask_on(self, process: subprocess.Popen[str], ask: Callable[[], object]) -> None:
        while process.poll() is None:
            with suppress(OSError):
                ask()
                self.answers += 1
            time.sleep(self._seconds)


class Scraper:
    """Prometheus, as a run meets it.

    Args:
        address: of the pipeline, which knows all other targets.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self) -> int:
        """Bytes of the metrics of all targets."""
        groups = json.loads(read(f"{self._address}/targets"))
        targets = [target for group in groups for target in group["targets"]]
        return sum(len(read(f"http://{target}/metrics")) for target in targets)


class Browser:
    """One that shows the live page, as its server meets it.

    Args:
        address: of the page, with a slash at the end.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._opened = False
        self._ends = {"metrics": 0, "timeline": 0, "controller": 0, "pictures": 0}

    def ask(self) -> int:
        """Gets the page at first, then what has come since; how many lines that was."""
        if not self._opened:
            read(self._address)
            self._opened = True
        news = json.loads(read(f"{self._address}news/{'-'.join(map(str, self._ends.values()))}"))
        for name, journal in news["journals"].items():
            self._ends[name] = journal["end"]
        for picture in news["journals"]["pictures"]["lines"]:
            read(self._address + picture["file"])
        return sum(len(journal["lines"]) for journal in news["journals"].values())


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=SCRAPE_SECONDS) as answer:
        body: bytes = answer.read()
    return body
