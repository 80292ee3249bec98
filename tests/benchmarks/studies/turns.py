"""Synthesizer and distiller by turns in one thread: a comparison that no busy machine disturbs.

In a run both work at once, and who got less of the machine did less: with others' work beside it
two runs of one configuration differ by more than most settings make. Here they make fixed numbers
of steps and rounds, with the services' own classes and a real Redis, so that a difference at equal
*work* shows in a few seeds. What a setting costs in time is for ``tests.benchmarks.floors`` to say;
what counts in the end is equal *time*.

``python -m tests.benchmarks.studies.turns CONFIG --out DIR --steps N --ratio R`` leaves a folder as
a run does: student, generator, configuration, ``result.json``. A study with ``turns`` does so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from buffer.connect import connect
from buffer.interface import Replay
from buffer.models import to_bytes
from buffer.progress import StudentProgress
from buffer.server import RedisServer
from buffer.version import Version
from deploy import report
from deploy.config import PipelineConfig, load
from distiller.evaluation import EvaluationSet
from distiller.schedule import crop_size, learning_rate
from distiller.trainer import Trainer
from synthesizer.actor import Synthesizer

CPU = torch.device("cpu")
PUBLISHED_STEPS = 25
"""Between two snapshots of the student that the synthesizer sees."""


def by_turns(
    config: PipelineConfig,
    out: Path,
    *,
    steps: int,
    ratio: float,
    device: torch.device = CPU,
    watch: Callable[[Trainer, int], None] = lambda trainer, step: None,
) -> dict[str, Any]:
    """A whole training.

    Args:
        config: its budget is not used.
        out: takes what a run leaves.
        steps: of the student.
        ratio: student steps per round, once the buffer has its least size.
        device: of both.
        watch: is shown the training after each step, and told how many those are.

    Returns:
        What ``result.json`` has of it.
    """
    torch.set_num_threads(1)
    revision = report.git_revision()  # of the code that runs, whatever is committed meanwhile
    rounds, seconds = 0, {"inversion": 0.0, "distillation": 0.0}
    with RedisServer.start() as server:
        replay = connect(config.buffer, url=server.url, run="turns", seed=config.run.seed)
        synthesizer = Synthesizer(
            config,
            replay,
            producer="synthesizer-0",
            device=device,
            seed=config.run.seed,
            checkpoint=out / "checkpoints" / "synthesizer-0.pt",
        )
        trainer = Trainer(config, replay, attempt=1, device=device)

        def make_round() -> None:
            begun = time.perf_counter()
            synthesizer.step()
            seconds["inversion"] += time.perf_counter() - begun

        while replay.info().size < config.buffer.minimum:
            make_round()
        for step in range(steps):
            share = step / steps
            if step % PUBLISHED_STEPS == 0:
                version = Version(1, step)
                replay.publish_student(to_bytes(trainer.pair.average.model), version=version)
                replay.publish_progress(StudentProgress(version=version, elapsed_share=share))
            while rounds * ratio < step:
                make_round()
                rounds += 1
            begun = time.perf_counter()
            make_step(config, replay, trainer, Version(1, step + 1), share)
            seconds["distillation"] += time.perf_counter() - begun
            watch(trainer, step + 1)
        info = replay.info()
        # Its run ends with it, and saves what it has learned.
        synthesizer.stop()
        synthesizer.run()
        replay.close()
    report.write_config(config, out)
    (out / "student.safetensors").write_bytes(to_bytes(trainer.pair.average.model))
    test = EvaluationSet.load(config.evaluation, config.teacher)
    found = test.compare(trainer.pair.teacher, trainer.pair.average.model, device=device)
    return found | {
        "student_steps": steps,
        "samples_inverted": info.inserted,
        **{f"{side}_seconds": spent for side, spent in seconds.items()},
        "config": report.public(config),
        "versions": report.versions(),
        "git_revision": revision,
    }


def make_step(
    config: PipelineConfig, replay: Replay, trainer: Trainer, version: Version, share: float
) -> None:
    """A step of the student, of this version afterwards, at a share of the budget."""
    batch = replay.sample(config.distiller.batch_size)
    rate = learning_rate(config.distiller, share)
    crop = crop_size(config.distiller, share, config.teacher.image_shape[1:])
    result = trainer.step(batch, learning_rate=rate, crop=crop)
    replay.update_priorities(batch.identities, result.priorities, version=version)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--ratio", type=float, required=True)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = load(options.config, options.set)
    result = by_turns(
        config,
        options.out,
        steps=options.steps,
        ratio=options.ratio,
        device=options.device,
    )
    report.write_result(result, options.out)


if __name__ == "__main__":
    main()
