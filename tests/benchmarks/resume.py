"""Whether a run that was killed and resumed ends where an undisturbed one does.

``python -m tests.benchmarks.resume`` runs the demo with a budget of steps, for each seed once
undisturbed and once with a SIGKILL to the pipeline half-way and ``ssdkd run --resume``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SSDKD = Path(sys.executable).with_name("ssdkd")


def start(out: Path, seed: int, steps: int, *, resume: bool = False) -> subprocess.Popen[bytes]:
    """The demo, in a process group of its own."""
    sets = ["run.seconds=null", f"run.steps={steps}", "run.snapshot_seconds=10", f"run.seed={seed}"]
    return subprocess.Popen(
        [
            *(str(SSDKD), "run", "--resume" if resume else "--out", str(out)),
            *(part for each in sets for part in ("--set", each)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TERM": "dumb"},
        start_new_session=True,
    )


def killed(process: subprocess.Popen[bytes], out: Path, step: int) -> int:
    """Kills a pipeline when its student has made so many steps; how many it had made."""
    journal = out / "metrics.jsonl"
    while True:
        whole = journal.read_text().rpartition("\n")[0] if journal.exists() else ""
        reached = json.loads(whole.splitlines()[-1])["version"][1] if whole else 0
        if reached >= step:
            break
        if process.poll() is not None:
            raise SystemExit(f"the run in {out} ended by itself, with {process.returncode}")
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(10)  # Ray ends the other processes of the run in its own time
    return int(reached)


def result(process: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    if process.wait() != 0:
        raise SystemExit(f"the run in {out} failed with {process.returncode}")
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    accuracies: dict[str, list[float]] = {"undisturbed": [], "resumed": []}
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        for seed in range(options.seeds):
            # Which of them is first is left to chance: a machine may be slower in the evening.
            for kind in random.Random(seed).sample(sorted(accuracies), 2):
                out, begun, said = Path(folder) / f"{kind}-{seed}", time.monotonic(), ""
                process = start(out, seed, options.steps)
                if kind == "resumed":
                    said = f", killed at step {killed(process, out, options.steps // 2)}"
                    process = start(out, seed, options.steps, resume=True)
                found = result(process, out)
                accuracies[kind].append(found["student_accuracy"])
                print(
                    f"seed {seed}, {kind}{said}: {found['student_accuracy']:.2f} %, agreement "
                    f"{found['agreement']:.2f}, {found['samples_inverted']} samples, "
                    f"{time.monotonic() - begun:.0f} s",
                    flush=True,
                )
    for kind, values in accuracies.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{kind}: mean {statistics.mean(values):.2f} %, standard deviation {spread:.2f}")


if __name__ == "__main__":
    main()
