"""Writes what the studies found into ``docs/benchmarks.md``: ``python -m tests.benchmarks.tables``.

Everything between the two marks there is replaced: for each study its question, how to make its
runs, one line an arm, every run, and a plot of accuracy over time (``docs/plots/STUDY.svg``, needs
matplotlib).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import numpy as np
from matplotlib import pyplot

from tests.benchmarks.study import STUDIES, Record, records, study

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- studies: written by tests.benchmarks.tables -->", "<!-- end of studies -->"
SHARES = np.linspace(0.05, 1.0, 20)
"""Of the budget, where curves of several seeds are averaged."""

Runs = Sequence[Record]
COLUMNS: dict[str, Callable[[Record], float]] = {
    "student": lambda run: run["student_accuracy"],
    "agreement": lambda run: run["agreement"],
    "on the pool": lambda run: run.get("pool_agreement", float("nan")),
}
COUNTS: dict[str, Callable[[Record], float]] = {
    "inverted": lambda run: run["samples_inverted"],
    "steps": lambda run: run["student_steps"],
    "first step, s": lambda run: run["first_step_at_seconds"],
    "evaluation, s": lambda run: run["evaluation_seconds"],
    "peak memory, MiB": lambda run: run["peak_mebibytes"],
}


def section(name: str) -> str:
    """A study's part of the document."""
    asked, done = study(name), records(name)
    by_arm = {arm: [done[arm, seed] for a, seed in sorted(done) if a == arm] for arm in asked.arms}
    by_arm = {arm: runs for arm, runs in by_arm.items() if runs}
    draw(name, by_arm)
    return "\n".join(
        [
            f"### {asked.title}\n",
            f"{asked.question}\n",
            f"`python -m tests.benchmarks.study run {name}`, `... judge {name}`; {made_on(done)}\n",
            *arms_table(by_arm),
            "",
            f"![Accuracy over time](plots/{name}.svg)\n",
            "Every run:\n",
            *runs_table(by_arm),
            "",
        ]
    )


def arms_table(by_arm: dict[str, Runs]) -> list[str]:
    """Means and standard deviations over seeds, and the time to the first arm's last accuracy."""
    names = [*COLUMNS, *COUNTS]
    (first, *_), lines = by_arm.values(), []
    goal = statistics.mean(run["student_accuracy"] for run in first)
    lines.append(f"| arm | seeds | {' | '.join(names)} | {goal:.1f} % after |")
    lines.append("|---" * (len(names) + 3) + "|")
    for arm, runs in by_arm.items():
        cells = [spread([measure(run) for run in runs]) for measure in COLUMNS.values()]
        cells += [f"{statistics.mean(map(measure, runs)):,.0f}" for measure in COUNTS.values()]
        reached = time_to(goal, runs)
        after = "-" if reached is None else f"{reached:.0f} s"
        lines.append(f"| {arm} | {len(runs)} | {' | '.join(cells)} | {after} |")
    return lines


def runs_table(by_arm: dict[str, Runs]) -> list[str]:
    names = [*COLUMNS, *COUNTS]
    lines = [f"| arm | seed | revision | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for arm, runs in by_arm.items():
        for run in runs:
            cells = [f"{measure(run):.2f}" for measure in COLUMNS.values()]
            cells += [f"{measure(run):,.0f}" for measure in COUNTS.values()]
            revision = (run["git_revision"] or "unknown")[:7]
            lines.append(f"| {arm} | {run['seed']} | `{revision}` | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({statistics.stdev(values):.2f})"


def curve(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Seconds ``[S]`` and accuracies ``[runs, S]`` at :data:`SHARES` of the budget.

    Before a run's first measurement its accuracy is not known, and taken for that one.
    """
    points = [np.array([point[1:] for point in run["curve"]]) for run in runs]  # s, share, accuracy
    seconds = SHARES * statistics.mean(each[-1, 0] for each in points)
    return seconds, np.stack([np.interp(SHARES, each[:, 1], each[:, 2]) for each in points])


def time_to(goal: float, runs: Runs) -> float | None:
    """Seconds until the mean accuracy of an arm first reaches a goal."""
    seconds, accuracies = curve(runs)
    reached = accuracies.mean(axis=0) >= goal - 1e-9
    return float(seconds[reached.argmax()]) if reached.any() else None


def draw(name: str, by_arm: dict[str, Runs]) -> None:
    """Mean curves, with the range of the seeds around them."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for arm, runs in by_arm.items():
        seconds, accuracies = curve(runs)
        (line,) = axes.plot(seconds, accuracies.mean(axis=0), label=f"{arm} ({len(runs)})")
        low, high = accuracies.min(axis=0), accuracies.max(axis=0)
        axes.fill_between(seconds, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="seconds of wall time, evaluation excluded", ylabel="student accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    (DOCS / "plots").mkdir(exist_ok=True)
    figure.savefig(DOCS / "plots" / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def made_on(done: dict[tuple[str, int], Record]) -> str:
    """The machines and versions of a study's runs."""
    kinds = sorted(_described(run) for run in done.values())
    return "; ".join(f"{len(list(group))} runs on {kind}" for kind, group in groupby(kinds)) + "."


def _described(run: Record) -> str:
    machine, versions = run["machine"], run["versions"]
    processor = ", ".join(machine["gpus"]) or f"{machine['cores']} cores of {machine['processor']}"
    return f"{processor}, torch {versions['torch']}, Python {versions['python']}"


def main() -> None:
    path = DOCS / "benchmarks.md"
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    sections = [section(p.stem) for p in sorted(STUDIES.glob("*.yaml")) if records(p.stem)]
    path.write_text("\n".join([before + BEGIN, "", *sections, END + after]))


if __name__ == "__main__":
    main()
