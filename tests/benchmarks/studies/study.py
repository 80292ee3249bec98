"""A study, and the making of its runs.

A run's record, ``records/STUDY/ARM-SEED.json``, is to be committed: tables grow over days, and who
interrupts the making loses the run in hand only. What the judging needs besides, students and
generators, stays in ``runs/studies``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, PositiveFloat, PositiveInt

from buffer.parsing import Table
from deploy import report
from deploy.config import CONFIGS, load
from tests.benchmarks.processes import Processes
from tests.benchmarks.studies.figures import Record, figures, moved, on_pool
from tests.benchmarks.studies.pool import agreements

HERE = Path(__file__).parent
QUESTIONS, CONFIGURATIONS, RECORDS = HERE / "questions", HERE / "configs", HERE / "records"
ROOT = HERE.parents[2]
RUNS = ROOT / "runs" / "studies"
SHARED = Path(os.environ.get("SSDKD_SHARED", ROOT.parent / "shared"))
SSDKD = Path(sys.executable).with_name("ssdkd")
LOOK_SECONDS = 2.0
LEFT_OUT = ("method", "seed", "interrupted", "error")
"""Of ``result.json``; the study says it, or nothing does."""


class Turns(Table):
    """How much work a run is."""

    steps: PositiveInt
    """Of the student."""
    ratio: PositiveFloat
    """Student steps per round."""


class Study(Table):
    """What is compared. ``$SHARED`` in an override is the folder of teachers and test sets."""

    title: str
    question: str
    """What the study is to find out, how it is measured, and what was decided beforehand."""
    config: str
    """Name of a shipped configuration, or of one of ``configs`` here."""
    overrides: tuple[str, ...] = ()
    """Of all runs."""
    arms: dict[str, tuple[str, ...]]
    """Overrides of each arm; the first one is what the others are compared with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """An arm may be run with fewer of them, see ``run --seeds``."""
    turns: Turns | None = None
    """Runs are made by turns, see ``turns.py``, not by services at once for some time."""
    other_turns: dict[str, Turns] = Field(default_factory=dict)
    """Of arms whose rounds or steps take another time: as much as they make in the same."""
    pool: int = 512
    """Images that each run's generator gives to the pool."""


def study(name: str) -> Study:
    """The study of this name."""
    return Study.model_validate(yaml.safe_load((QUESTIONS / f"{name}.yaml").read_text()))


def records(name: str) -> dict[tuple[str, int], Record]:
    """The runs made so far, by arm and seed."""
    found = (json.loads(path.read_text()) for path in sorted((RECORDS / name).glob("*.json")))
    return {(record["arm"], record["seed"]): record for record in found}


def run(name: str, seeds: Sequence[int], arms: Sequence[str], *, again: bool = False) -> None:
    """Makes the runs that have no record, arms by turns: a machine may be slower in the evening.

    Args:
        name: of a study.
        seeds: all of the study's, if there are none.
        arms: likewise.
        again: makes those that have one, too, and says what moved since. The record stays, and what
            was judged by the run that it is of.
    """
    asked, done = study(name), records(name)
    if unknown := set(arms) - set(asked.arms):
        raise SystemExit(f"--arms {', '.join(unknown)}: {name} has {', '.join(asked.arms)}")
    for seed in seeds or asked.seeds:
        for arm in arms or asked.arms:
            before = done.get((arm, seed))
            if before is not None and not again:
                continue
            print(f"{name}: {arm}, seed {seed}", flush=True)
            record = one_run(asked, arm, seed, RUNS / (f"{name}-again" if before else name))
            said = (f"{key} {value}" for key, value in record.items() if key in SAID)
            print(", ".join(said), flush=True)
            if before is None:
                write(name, record)
            else:
                print(moved(figures(record), figures(before)), flush=True)


SAID = ("student_accuracy", "agreement", "samples_inverted", "student_steps")


def write(name: str, record: Record) -> None:
    path = RECORDS / name / f"{record['arm']}-{record['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def one_run(asked: Study, arm: str, seed: int, folder: Path) -> Record:
    """One run's record.

    Args:
        asked: the study.
        arm: one of its arms.
        seed: of the run, and of its teacher if that is trained for it.
        folder: takes the run's outputs, and the teacher.
    """
    from deploy.validate import with_teacher  # needs Ray, which other benchmarks do without

    out, sets = folder / f"{arm}-{seed}", overrides(asked, arm, seed)
    (teachers := folder / f"teacher-{seed}").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out, ignore_errors=True)  # what an interrupted run has learned, and its pool
    config = configuration(asked)
    teacher = with_teacher(load(config, sets), teachers).teacher.weights
    load_before = os.getloadavg()[0]
    process = subprocess.Popen(
        [
            *command(asked.other_turns.get(arm, asked.turns)),
            *(str(config), "--out", str(out)),
            *(part for each in [*sets, f"teacher.weights={teacher}"] for part in ("--set", each)),
        ]
    )
    processes = Processes(process.pid)
    try:
        while process.poll() is None:
            processes.look()
            processes.weigh()
            processes.look_at_gpus()
            time.sleep(LOOK_SECONDS)
    finally:
        process.terminate()  # nobody measures beside what is left of an interrupted run
        process.wait()
    if process.returncode != 0:
        raise SystemExit(f"the run in {out} failed with {process.returncode}")
    result = json.loads((out / "result.json").read_text())
    if result.get("controller_failure"):
        raise SystemExit(f"the run in {out} lost its controller: {result['controller_failure']}")
    return {
        "arm": arm,
        "seed": seed,
        "overrides": list(asked.arms[arm]),
        **{key: value for key, value in without_paths(result).items() if key not in LEFT_OUT},
        "processor_seconds": {
            "synthesizers": processes.seconds("ray::SynthesizerService"),
            "distillers": processes.seconds("ray::RayTrainWorker"),
            "redis": processes.seconds("redis-server"),
            "all": processes.seconds(""),
        },
        "peak_mebibytes": processes.peak_mebibytes,
        "gpu_utilization": processes.gpu_utilization,
        "gpu_peak_mebibytes": processes.gpu_peak_mebibytes,
        "load_before": load_before,
        "machine": report.machine(),
    }


def without_paths(result: Record) -> Record:
    """The same, with ``$SHARED`` for the folder of teachers and test sets, ``.`` for this one."""
    text = json.dumps(result).replace(str(SHARED), "$SHARED").replace(str(ROOT), ".")
    return dict(json.loads(text))


def configuration(asked: Study) -> Path:
    """The file of a study's configuration."""
    files = (folder / f"{asked.config}.yaml" for folder in (CONFIGURATIONS, CONFIGS))
    return next(path for path in files if path.exists())


def overrides(asked: Study, arm: str, seed: int) -> list[str]:
    """All that a run sets."""
    sets = [*asked.overrides, *asked.arms[arm], f"run.seed={seed}"]
    return [each.replace("$SHARED", str(SHARED)) for each in sets]


def command(turns: Turns | None) -> list[str]:
    """What makes a run."""
    if turns is None:
        return [str(SSDKD), "run", "--progress", "quiet"]
    work = ["--steps", str(turns.steps), "--ratio", str(turns.ratio)]
    return [sys.executable, "-m", "tests.benchmarks.studies.turns", *work]


def judge(name: str) -> None:
    """Adds ``pool_agreements``, by whose images they are, to the records of a study's seeds.

    A seed's runs are judged on each other's images, for which all their folders must be at hand.
    So the seeds of a study may be run and judged on different days, on machines that keep nothing.
    Images of a student's own arm are left out.
    """
    by_seed: dict[int, dict[str, Record]] = {}
    for (arm, seed), record in records(name).items():
        by_seed.setdefault(seed, {})[arm] = record
    for seed, done in sorted(by_seed.items()):
        outs = {arm: RUNS / name / f"{arm}-{seed}" for arm in done}
        if absent := [arm for arm, out in outs.items() if not out.exists()]:
            print(f"seed {seed}: not judged, folders of {', '.join(absent)} are not at hand")
            continue
        for arm, found in agreements(outs, study(name).pool).items():
            others = {source: value for source, value in found.items() if source != arm}
            judged = done[arm] | {"pool_agreements": others}
            write(name, judged)
            print(f"{arm}, seed {seed}: {on_pool(judged):.2f}")
