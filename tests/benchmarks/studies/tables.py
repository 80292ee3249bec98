"""Writes what the studies found into ``docs/benchmarks.md``.

Everything between the two marks there is replaced: for each study its question, how to make its
runs, one line an arm, every run, and a plot of accuracy over time (``docs/plots/STUDY.svg``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import groupby

import matplotlib

matplotlib.use("svg")

import numpy as np
from matplotlib import pyplot
from scipy import stats

from tests.benchmarks.studies.figures import COLUMNS, COUNTS, Record, on_pool
from tests.benchmarks.studies.study import QUESTIONS, ROOT, records, study

matplotlib.rcParams["svg.hashsalt"] = "ssdkd"  # a plot of the same runs is the same file

DOCS = ROOT / "docs"
BEGIN, END = (
    "<!-- studies: written by python -m tests.benchmarks.studies tables -->",
    "<!-- end of studies -->",
)
SHARES = np.linspace(0.05, 1.0, 20)
"""Of the budget, where curves of several seeds are averaged."""

Runs = Sequence[Record]


def section(name: str) -> str:
    """A study's part of the document."""
    asked, done = study(name), records(name)
    by_arm = {arm: [done[arm, seed] for a, seed in sorted(done) if a == arm] for arm in asked.arms}
    by_arm = {arm: runs for arm, runs in by_arm.items() if runs}
    if not by_arm:
        return f"### {asked.title}\n\nNo arm was run yet.\n"
    compared = next(iter(by_arm)) == next(iter(asked.arms))
    return "\n".join(
        [
            f"### {asked.title}\n",
            f"{asked.question.strip()}\n",
            f"`python -m tests.benchmarks.studies run {name}`; {made_on(done)}\n",
            *(arms_table(by_arm) if compared else ["The first arm was not run yet."]),
            "",
            *draw(name, by_arm),
            "Every run:\n",
            *runs_table(by_arm),
            "",
        ]
    )


def arms_table(by_arm: dict[str, Runs]) -> list[str]:
    """Means and standard deviations over seeds, and the time to the first arm's last accuracy."""
    first = next(iter(by_arm.values()))
    goal = statistics.mean(run["student_accuracy"] for run in first)
    counts = measured(by_arm)
    names = [*COLUMNS, "pool, less the first arm's", f"{goal:.1f} % after", *counts]
    lines = [f"| arm | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for arm, runs in by_arm.items():
        cells = [spread([measure(run) for run in runs]) for measure in COLUMNS.values()]
        cells += [advantage(runs, first), time_to(goal, runs)]
        cells += [shown(statistics.mean(map(COUNTS[what], runs)), 0) for what in counts]
        lines.append(f"| {arm} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def advantage(runs: Runs, first: Runs) -> str:
    """Difference on the images of third arms, by seed, with its 95 % interval (Student's t)."""
    theirs = {run["seed"]: run for run in first}
    pairs = [(run, theirs[run["seed"]]) for run in runs if run["seed"] in theirs]
    differences = [
        on_pool(run, without=other["arm"]) - on_pool(other, without=run["arm"])
        for run, other in pairs
    ]
    differences = [each for each in differences if not math.isnan(each)]
    if runs is first or not differences:
        return "-"
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"{mean:+.2f}"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def runs_table(by_arm: dict[str, Runs]) -> list[str]:
    counts = measured(by_arm)
    names = [*COLUMNS, *counts]
    lines = [f"| arm | seed | revision | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for arm, runs in by_arm.items():
        for run in runs:
            cells = [shown(measure(run), 2) for measure in COLUMNS.values()]
            cells += [shown(COUNTS[what](run), 0) for what in counts]
            lines.append(f"| {arm} | {run['seed']} | `{revision(run)}` | {' | '.join(cells)} |")
    return lines


def revision(run: Record) -> str:
    """Seven digits of the commit; ``+`` behind them: something in the tree was changed."""
    told = run["git_revision"] or "unknown"
    return str(told[:7]) + "+" * told.endswith("-dirty")


def measured(by_arm: dict[str, Runs]) -> list[str]:
    """What was counted in any run: those by turns do not idle, for example."""
    runs = [run for each in by_arm.values() for run in each]
    return [what for what in COUNTS if not all(math.isnan(COUNTS[what](run)) for run in runs)]


def shown(value: float, digits: int) -> str:
    """A number; ``-`` for one that was not measured."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation; of those that were measured."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "-"
    mean = shown(statistics.mean(values), 2)
    return mean if len(values) == 1 else f"{mean} ({statistics.stdev(values):.2f})"


def curve(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Seconds ``[S]`` and accuracies ``[runs, S]`` at :data:`SHARES` of the budget.

    Before a run's first measurement its accuracy is not known, and taken for that one.
    """
    points = [np.array([point[1:] for point in run["curve"]]) for run in runs]  # s, share, accuracy
    seconds = SHARES * statistics.mean(each[-1, 0] for each in points)
    return seconds, np.stack([np.interp(SHARES, each[:, 1], each[:, 2]) for each in points])


def time_to(goal: float, runs: Runs) -> str:
    """Seconds until the mean accuracy of an arm first reaches a goal; ``-``: it does not.

    No time before each of its runs was measured counts: what it reached then is not known.
    """
    if not all("curve" in run for run in runs):
        return "-"
    seconds, accuracies = curve(runs)
    known = max(run["curve"][0][2] for run in runs) - 1e-9 <= SHARES
    reached = known & (accuracies.mean(axis=0) >= goal - 1e-9)
    return f"{seconds[reached.argmax()]:.0f} s" if reached.any() else "-"


def draw(name: str, by_arm: dict[str, Runs]) -> list[str]:
    """Mean curves with the range of the seeds around them; Markdown that shows them.

    Runs by turns have none.
    """
    if any("curve" not in run for runs in by_arm.values() for run in runs):
        return []
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
    return [f"![Accuracy over time](plots/{name}.svg)\n"]


def made_on(done: dict[tuple[str, int], Record]) -> str:
    """The machines and versions of a study's runs."""
    kinds = sorted(_described(run) for run in done.values())
    return "; ".join(f"{len(list(group))} runs on {kind}" for kind, group in groupby(kinds)) + "."


def _described(run: Record) -> str:
    machine, versions = run["machine"], run["versions"]
    processor = ", ".join(machine["gpus"]) or f"{machine['cores']} cores of {machine['processor']}"
    return f"{processor}, torch {versions['torch']}, Python {versions['python']}"


def write_tables() -> None:
    """Replaces what stands between the two marks."""
    path = DOCS / "benchmarks.md"
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    names = sorted(path.stem for path in QUESTIONS.glob("*.yaml"))
    sections = [section(name) for name in names if records(name)]
    path.write_text("\n".join([before + BEGIN, "", *sections, END + after]))
