"""What averages of the student's weights know while it learns, beside the weights themselves.

``python -m tests.benchmarks.studies.averages NAME ARM --judges OUT [OUT ...]`` makes a study's run
by turns, keeps averages over several numbers of steps beside the one that the arm has, and prints
at each tenth of the run how often they agree with the teacher on images of other runs' generators,
percent, their KL from it, nats, and how much that KL jumps between measurements a few steps apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from buffer.models import NormalizedModel, build
from deploy.config import PipelineConfig, load
from distiller.average import StudentAverage
from distiller.evaluation import agreement
from distiller.losses import kl_divergence
from distiller.trainer import Trainer
from synthesizer.teacher import freeze
from tests.benchmarks.studies.pool import CPU, logits, pool_of
from tests.benchmarks.studies.study import configuration, overrides, study
from tests.benchmarks.studies.turns import by_turns

STEPS = (1, 25, 50, 100, 200)
"""1 is the weights themselves."""
IMAGES = 512
"""Of each judge."""
LOOKS, APART = 5, 5
"""At each tenth of the steps: measurements, and steps between two of them."""


class Averages:
    """Keeps and measures them.

    Args:
        config: of the run.
        images: ``[N, C, H, W]`` uint8 that they are asked about.
        steps: of the whole run.
    """

    def __init__(self, config: PipelineConfig, images: Tensor, steps: int) -> None:
        self._config, self._images, self._steps = config, images, steps
        self._wanted = logits(freeze(build(config.teacher), CPU), images)
        self._averages: dict[int, StudentAverage] = {}
        self._looks: dict[int, list[tuple[float, float]]] = {steps: [] for steps in STEPS}

    def watch(self, trainer: Trainer, step: int) -> None:
        """Takes a step in; measures around each tenth of all."""
        student, spec = trainer.pair.student, self._config.student
        for steps in STEPS:
            if steps not in self._averages:
                self._averages[steps] = StudentAverage(student, build(spec), steps=steps)
            self._averages[steps].update()
        tenth = self._steps // 10
        left = -step % tenth
        if left % APART == 0 and left < LOOKS * APART:
            for steps, average in self._averages.items():
                self._looks[steps].append(self._look(average.model))
            if left == 0:
                self._print(step)

    def _look(self, model: NormalizedModel) -> tuple[float, float]:
        given = logits(model, self._images)
        return kl_divergence(given, self._wanted).mean().item(), agreement(given, self._wanted)

    def _print(self, step: int) -> None:
        """Means of agreement and KL, and the deviation of KL's looks as a share of it."""
        cells = []
        for looks in self._looks.values():
            kl = statistics.mean(each for each, _ in looks)
            jumps = statistics.stdev(each for each, _ in looks) / kl
            agreed = statistics.mean(each for _, each in looks)
            cells.append(f"{agreed:.1f}, {kl:.2f} ({jumps:.1%})")
            looks.clear()
        print(f"| {step} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study")
    parser.add_argument("arm")
    parser.add_argument("--judges", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    asked = study(options.study)
    turns = asked.other_turns.get(options.arm, asked.turns)
    assert turns is not None, "made by turns"
    config = load(configuration(asked), overrides(asked, options.arm, asked.seeds[0]))
    images = torch.cat([pool_of(out, IMAGES) for out in options.judges])
    averages = Averages(config, images, turns.steps)
    print(f"| step | {' | '.join(map(str, STEPS))} |")
    print("|---" * (len(STEPS) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        result = by_turns(config, Path(folder), **turns.model_dump(), watch=averages.watch)
    print(f"real images: {result['student_accuracy']:.2f} %, agreement {result['agreement']:.2f} %")


if __name__ == "__main__":
    main()
