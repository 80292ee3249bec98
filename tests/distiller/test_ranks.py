"""Several ranks in processes of their own, joined by gloo as Ray Train joins them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

from distiller.ranks import Ranks

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import hashlib, json, pickle, sys
import torch
from torch import distributed
from buffer.memory import InMemoryReplayBuffer
from buffer.models import to_bytes
from distiller.ranks import Ranks
from distiller.trainer import Trainer

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
)
with open(f"{folder}/job.pickle", "rb") as file:
    config, samples = pickle.load(file)
# The budget begins with the training, however long this process took to start.
replay = InMemoryReplayBuffer(config.buffer, seed=0, clock=lambda: 0.0)
replay.insert(samples, producer="p", sequence=0)
saved, drawn = [], []
with Trainer(config, replay, attempt=1, ranks=Ranks(rank, size)) as trainer:
    metrics = trainer.run(save=lambda: saved.append(trainer.tally.step))
parameters = [p.detach().numpy().tobytes() for p in trainer.pair.student.parameters()]
print(json.dumps({
    "metrics": metrics,
    "tally": trainer.tally.as_dict(),
    "saved": saved,
    "student": hashlib.sha256(b"".join(parameters)).hexdigest(),
    "means": trainer.pair.student.network.features[1].running_mean.tolist(),
    "published": replay.progress() is not None,
    "updates": replay.info().updates.applied,
}))
distributed.destroy_process_group()
"""


def _train(config, samples, folder, size):
    (folder / "job.pickle").write_bytes(pickle.dumps((config, samples)))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(size), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * size
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_a_single_rank_gathers_its_own_values():
    assert Ranks().gather([1.0, 2.0]) == [[1.0, 2.0]]


def test_ranks_step_together_and_keep_one_student(make_config, make_samples, tmp_path):
    # Seconds, so that every decision hangs on rank 0's clock alone.
    config = make_config("run.steps=null", "run.seconds=1.5", "distiller.checkpoint_seconds=0.3")
    lead, other = _train(config, make_samples(64), tmp_path, 2)
    assert lead["student"] == other["student"]
    assert lead["tally"]["step"] == other["tally"]["step"] > 0
    assert lead["saved"] == other["saved"]
    assert lead["saved"]
    assert lead["tally"]["samples_drawn"] == lead["tally"]["step"] * 2 * 16
    assert lead["tally"]["busy_seconds"] == other["tally"]["busy_seconds"]
    assert lead["metrics"]["student_steps"] == lead["tally"]["step"]
    assert other["metrics"] == {}
    assert (lead["published"], other["published"]) == (True, False)
    assert min(lead["updates"], other["updates"]) > 0
