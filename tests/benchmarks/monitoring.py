"""What it costs to be watched: a step's metrics, a round's, and a whole run's.

``python -m tests.benchmarks.monitoring`` prints Markdown: the time that all metrics of a step of
the distiller and of a round of the synthesizer take, those of their calls to the buffer included,
in memory and in the files of a node, against the step and the round of the demo without them.
Medians of blocks of two processes that alternate; one thread.

``--runs N`` measures whole demos instead; see :mod:`tests.benchmarks.watched`.
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
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from prometheus_client import CollectorRegistry

from buffer.memory import InMemoryReplayBuffer
from buffer.metrics import FOLDER, ClientMetrics, process_registry
from buffer.models import build
from buffer.progress import StudentProgress
from buffer.sample import Batch
from buffer.version import NEVER
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from distiller.metrics import DistillerMetrics
from distiller.step import StepResult
from distiller.trainer import Trainer
from synthesizer.inverter import Round, build_inverter
from synthesizer.metrics import Fate, SynthesizerMetrics
from synthesizer.tally import Tally
from tests.benchmarks.watched import whole_runs

BLOCKS, CALLS = 9, 100
Block = dict[str, float]
"""Seconds a call, by what was called."""


def serve_blocks() -> None:
    """The process that is measured: a block for each line that it reads."""
    calls = works()
    for _ in sys.stdin:
        found = {}
        for name, (call, times) in calls.items():
            begun = time.perf_counter()
            for _ in range(times):
                call()
            found[name] = (time.perf_counter() - begun) / times
        print(json.dumps(found), flush=True)


def works() -> dict[str, tuple[Callable[[], object], int]]:
    """What is measured, and how often in a block."""
    with tempfile.TemporaryDirectory() as folder:
        config = demo(Path(folder))
        inverter = build_inverter(config, "synthesizer-0", torch.device("cpu"), 0)
        inverter.method.prepare(inverter.context)
        replay = InMemoryReplayBuffer(config.buffer, seed=0)
        for sequence in range(1 + config.buffer.minimum // config.synthesizer.batch_size):
            made = inverter.round(born=NEVER)
            replay.insert(made.samples, producer="synthesizer-0", sequence=sequence)
        trainer = Trainer(config, replay, attempt=1)
    batch = replay.sample(config.distiller.batch_size)
    registry = process_registry()
    client = ClientMetrics(registry)
    result = trainer.step(batch, learning_rate=0.1)
    return {
        "metrics of a step": (step_metrics(registry, client, batch, result), CALLS),
        "metrics of a round": (round_metrics(registry, client, made), CALLS),
        "step": (lambda: trainer.step(batch, learning_rate=0.1), 5),
        "round": (lambda: inverter.round(born=NEVER), 1),
    }


def demo(folder: Path) -> PipelineConfig:
    """Its configuration, with a teacher that knows nothing."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = folder / "teacher.safetensors"
    spec = load(DEFAULT_CONFIG).teacher.model_copy(update={"weights": None})
    safetensors.torch.save_file(dict(build(spec).network.state_dict()), weights)
    return load(DEFAULT_CONFIG, [f"teacher.weights={weights}", "evaluation.data=null"])


def step_metrics(
    registry: CollectorRegistry, client: ClientMetrics, batch: Batch, result: StepResult
) -> Callable[[], None]:
    """All that is counted for a step of the first worker."""
    metrics, payloads = DistillerMetrics(registry), [bytes(256)] * len(batch.images)
    calls = [client.timed(name, lambda: None) for name in ("slots", "fetch", "update")]

    def count() -> None:
        metrics.observe_step(batch, result, seconds=0.01, waited_seconds=0.0)
        metrics.learning_rate.set(0.1)
        for call in calls:
            call()
        client.moved("out", payloads)

    return count


def round_metrics(
    registry: CollectorRegistry, client: ClientMetrics, made: Round
) -> Callable[[], None]:
    """All that is counted for a round."""
    tally = Tally("synthesizer-0", SynthesizerMetrics(registry))
    images = len(made.samples)
    payloads = [bytes(256)] * images
    operations = ("permit", "info", "reserve", "store", "commit")
    calls = [client.timed(name, lambda: None) for name in operations]

    def count() -> None:
        tally.delivered(images, committed=images, others=Fate.REJECTED)
        tally.saw(StudentProgress(version=NEVER))
        tally.made(made, 0.3)
        for call in calls:
            call()
        client.moved("in", payloads)

    return count


def microbenchmark() -> None:
    """Prints the table of the parts."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"in memory": {}, "in files": {FOLDER: folder}}
        children = {
            place: subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.monitoring", "--serve"],
                env=os.environ | variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for place, variables in places.items()
        }
        blocks: dict[str, list[Block]] = {place: [] for place in places}
        for number in range(BLOCKS + 1):
            for place, child in children.items():
                block = asked(child)
                if number:  # the first one warms up
                    blocks[place].append(block)
        for child in children.values():
            child.communicate()
    print("| | in memory | in files | ratio | without metrics | share, in files |")
    print("|---|---|---|---|---|---|")
    for what in ("step", "round"):
        memory, files = (middle(blocks[place], f"metrics of a {what}") for place in places)
        whole = middle([*blocks["in memory"], *blocks["in files"]], what)
        print(
            f"| {what} | {1e6 * memory:.0f} us | {1e6 * files:.0f} us | {files / memory:.1f} "
            f"| {1e3 * whole:.1f} ms | {files / whole:.2%} |"
        )


def asked(child: subprocess.Popen[str]) -> Block:
    """One block of a process."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    found: Block = json.loads(child.stdout.readline())
    return found


def middle(blocks: list[Block], what: str) -> float:
    """The median of a kind of call."""
    return statistics.median(block[what] for block in blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, help="of each kind")
    parser.add_argument("--steps", type=int, default=2000, help="of each run's student")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_blocks()
    elif options.runs:
        whole_runs(options.runs, options.steps)
    else:
        microbenchmark()


if __name__ == "__main__":
    main()
