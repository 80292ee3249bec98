"""How throughput grows with synthesizers and distillers whose GPUs are simulated.

``python -m tests.benchmarks.scaling [inversion] [distillation] [--quick]`` prints Markdown. Only
the GPU's work is a sleep, everything else is real: the synthesizer service behind Ray, the
distiller's loader and pusher in processes of their own, the buffer with its limiter (which counts,
but makes nobody wait here) on a server on loopback TCP, a student snapshot every 5 s.

Numbers of workers take turns, so that the machine's moods fall on all; medians of their windows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from buffer.connect import connect
from buffer.interface import Replay
from buffer.progress import StudentProgress
from buffer.version import Version
from synthesizer.config import SynthesizerFile
from tests.benchmarks.contenders.simulated import (
    LARGE,
    ROUND_SECONDS,
    SHIPPED,
    SMALL,
    SNAPSHOT_SECONDS,
    STEP_SECONDS,
    Meter,
    configuration,
    filled,
    row,
    snapshot,
)
from tests.benchmarks.contenders.simulated_distiller import Window, distil
from tests.buffer.servers import TcpServer

COUNTS = (1, 2, 4, 8, 16)
INVERTED = (SHIPPED, SMALL, LARGE)
STATUS_SECONDS = 2.0
"""Between two questions to each actor, as the supervisor asks."""


@contextmanager
def student(config: SynthesizerFile, replay: Replay) -> Iterator[None]:
    """Publishes a student and its progress as often as a distiller does."""
    weights, ended = snapshot(config), threading.Event()

    def publish() -> None:
        step = 1
        while True:
            version = Version(1, step)
            replay.publish_student(weights, version=version)
            replay.publish_progress(StudentProgress(version=version, phase="distilling"))
            step += 1
            if ended.wait(SNAPSHOT_SECONDS):
                return

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Rates:
    """Throughputs by number of workers, a window each, and what was spent in it."""

    def __init__(self) -> None:
        self._windows: dict[int, list[tuple[float, ...]]] = defaultdict(list)

    def note(self, count: int, rate: float, spent: dict[str, float], *more: float) -> None:
        self._windows[count].append((rate, spent["share"], spent["machine_share"], *more))

    def table(self, title: str, workers: str, per_step: int, *more: str) -> None:
        """Prints medians, beside what one worker does times their number."""
        columns = (workers, "images a second", "of linear", "windows")
        shares = ("Redis, % of a core", "machine, % of its cores")
        print(f"\n### {title}\n")
        row(*columns, *shares, *more)
        row(*["---"] * len((*columns, *shares, *more)))
        medians = {
            n: [*map(statistics.median, zip(*w, strict=True))] for n, w in self._windows.items()
        }
        for count, (rate, *spent) in medians.items():
            windows = ", ".join(f"{per_step * each[0]:,.0f}" for each in self._windows[count])
            linear = f"{100 * rate / count / medians[1][0]:.1f} %"
            row(count, f"{per_step * rate:,.0f}", linear, windows, *(f"{s:.0f}" for s in spent))


def inversion(server: TcpServer, folder: Path, quick: bool) -> None:
    """Synthesizers are started one after the other, then stopped."""
    import ray

    # Workers must be able to import this.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        address="local",
        num_cpus=COUNTS[-1],
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        namespace="scaling",
        object_store_memory=100 << 20,
    )
    try:
        for setting in INVERTED:
            config = configuration(setting, folder, ROUND_SECONDS)
            with closing(connect(config.buffer, url=server.url, run=config.run.name)) as replay:
                with student(config, replay):
                    rates = grow(config, server.url, folder, 5.0 if quick else 10.0)
                replay.reset()
            rates.table(f"Inversion, {setting.title}", "actors", setting.batch)
    finally:
        ray.shutdown()


def grow(config: SynthesizerFile, url: str, folder: Path, seconds: float) -> Rates:
    """One actor, then two, and so on, and back again."""
    import ray
    from ray.util import list_named_actors

    from synthesizer.service import start

    checkpoints = Path(tempfile.mkdtemp(dir=folder))
    rates, meter = Rates(), Meter(url)
    # An actor does nothing before it is told to run.
    actors = [
        start(config, url=url, index=i, cpus=1, checkpoints=checkpoints) for i in range(COUNTS[-1])
    ]
    ray.get([actor.status.remote() for actor in actors])
    runs: list[Any] = []
    for count in (*COUNTS, *reversed(COUNTS)):
        runs += [actor.run.remote() for actor in actors[len(runs) : count]]
        stopped, runs = runs[count:], runs[:count]
        ray.get([actor.stop.remote() for actor in actors[count : count + len(stopped)]])
        ray.get(stopped)
        rates.note(count, *watch(actors[:count], meter, seconds))
    ray.get([actor.stop.remote() for actor in actors])
    ray.get(runs)
    for actor in actors:
        ray.kill(actor)
    while list_named_actors():
        time.sleep(0.1)
    return rates


def watch(actors: list[Any], meter: Meter, seconds: float) -> tuple[float, dict[str, float]]:
    """Rounds a second of these actors, once they are at it, and what was spent."""
    import ray

    def ask() -> list[dict[str, Any]]:
        return ray.get([actor.status.remote() for actor in actors])

    while min(status.get("rounds", 0) for status in ask()) < 3:
        time.sleep(0.2)
    meter.restart()
    before, end = ask(), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(STATUS_SECONDS)
        after = ask()
    spent = meter.read()
    # From the beginning of one round to that of another: a window holds no parts of rounds.
    rate = sum(
        (now["rounds"] - then["rounds"]) / (now["losses"]["began"] - then["losses"]["began"])
        for then, now in zip(before, after, strict=True)
    )
    return rate, spent


def distillation(server: TcpServer, folder: Path, quick: bool) -> None:
    """Distillers, all of which are there from the beginning, and work in turns."""
    for setting, cache, step_seconds in (
        (SMALL, 0, STEP_SECONDS),
        (SMALL, 0, STEP_SECONDS / 4),
        (SMALL, 256, STEP_SECONDS / 4),
        (LARGE, 0, STEP_SECONDS),
    ):
        config = configuration(setting, folder, 0.0, cache_mebibytes=cache)
        with closing(filled(config, server.url)) as replay:
            window = Window(4.0 if quick else 6.0, step_seconds, setting.batch)
            rates = take_turns(config, server.url, replay, window, 1 if quick else 3)
            replay.reset()
        cached = "every image from the cache" if cache else "every image fetched"
        title = f"Distillation, {setting.title}, {cached}, steps of {1000 * step_seconds:.0f} ms"
        rates.table(title, "distillers", setting.batch, "updates lost, %")


def take_turns(
    config: SynthesizerFile, url: str, replay: Replay, window: Window, turns: int
) -> Rates:
    """The first one, the first two, and so on."""
    context, rates, meter = multiprocessing.get_context("spawn"), Rates(), Meter(url)
    warming = 10 * config.buffer.capacity if config.buffer.cache_mebibytes else 0
    table = config.buffer.model_dump()
    pipes, processes = [], []
    for _ in range(COUNTS[-1]):
        ours, theirs = context.Pipe()
        arguments = (theirs, table, url, config.run.name, warming)
        processes.append(context.Process(target=distil, args=arguments, daemon=True))
        processes[-1].start()
        pipes.append(ours)
    assert [pipe.recv() for pipe in pipes] == ["ready"] * len(pipes)
    for count in COUNTS * turns:
        pushed = replay.info().updates
        meter.restart()
        for pipe in pipes[:count]:
            pipe.send(window)
        time.sleep(window.seconds)
        spent = meter.read()
        worked = [pipe.recv() for pipe in pipes[:count]]
        arrived = sum(replay.info().updates) - sum(pushed)
        lost = 1.0 - arrived / window.batch / sum(each.steps for each in worked)
        rates.note(count, sum(each.rate for each in worked), spent, 100.0 * lost)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return rates


def main() -> None:
    """Prints the tables of the parts that the command line names, or of all."""
    parts = {"inversion": inversion, "distillation": distillation}
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="default: both")
    parser.add_argument("--quick", action="store_true", help="short windows, few of them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = TcpServer(Path(folder))
        try:
            for name in given.parts or parts:
                parts[name](server, Path(folder), given.quick)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
