"""Several ranks in processes of their own, joined by gloo as Ray Train joins them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distiller.losses import soft_target_loss
from distiller.pair import build_pair
from distiller.ranks import Ranks

ROOT = Path(__file__).resolve().parents[2]

JOIN = """
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
"""

WORKER = """
# The budget begins with the training, however long this process took to start.
replay = InMemoryReplayBuffer(config.buffer, seed=0, clock=lambda: 0.0)
replay.insert(samples, producer="p", sequence=0)
saved = []
with Trainer(config, replay, attempt=1, ranks=Ranks(rank, size)) as trainer:
    metrics = trainer.run(save=lambda: saved.append(trainer.tally.step))
parameters = [p.detach().numpy().tobytes() for p in trainer.pair.student.parameters()]
print(json.dumps({
    "metrics": metrics,
    "tally": trainer.tally.as_dict(),
    "saved": saved,
    "student": hashlib.sha256(b"".join(parameters)).hexdigest(),
    "published": replay.progress() is not None,
    "updates": replay.info().updates.applied,
}))
distributed.destroy_process_group()
"""

# Several trainings, one after the other, in which each rank draws from samples of its own.
APART = """
class Recorder(InMemoryReplayBuffer):
    def sample(self, *arguments, **keywords):
        drawn.append(super().sample(*arguments, **keywords))
        return drawn[-1]

answers, learnt = [], []
for part, of_rank in zip(config, samples, strict=True):
    drawn, error = [], None
    replay = Recorder(part.buffer, seed=0, clock=lambda: 0.0)
    if of_rank[rank]:
        replay.insert(of_rank[rank], producer="p", sequence=0)
    try:
        with Trainer(part, replay, attempt=1, ranks=Ranks(rank, size)) as trainer:
            trainer.run(save=lambda: None)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    answers.append({"error": error, "step": trainer.tally.step})
    # The first was trained on; others were drawn ahead.
    learnt.append((drawn[:1], [p.detach() for p in trainer.pair.student.parameters()]))
with open(f"{folder}/learnt{rank}.pickle", "wb") as file:
    pickle.dump(learnt, file)
print(json.dumps(answers))
distributed.barrier()
distributed.destroy_process_group()
"""


def _train(config, samples, folder, size, worker=WORKER):
    (folder / "job.pickle").write_bytes(pickle.dumps((config, samples)))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN + worker, str(rank), str(size), str(folder)],
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
    config = make_config(
        *("run.steps=null", "run.seconds=1.5", "distiller.checkpoint_seconds=0.3"),
        "distiller.first_crop=0.5",
    )
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


def _of_priority(samples, priorities):
    return [
        replace(sample, disagreement=float(priority))
        for sample, priority in zip(samples, priorities, strict=True)
    ]


def test_ranks_with_other_mean_weights_step_as_one_would_with_all_samples(
    make_config, make_samples, tmp_path
):
    config = make_config(
        *("run.steps=1", "distiller.crop_padding=0", "distiller.weight_decay=0"),
        *("distiller.hint_layers=[features.3]", "student.kwargs={width: 4}"),
    )
    equal, skewed = make_samples(64), make_samples(64, seed=1)
    skewed = _of_priority(skewed, np.geomspace(1e-5, 1e5, 64))
    _train([config], [[equal, skewed]], tmp_path, 2, APART)
    files = [tmp_path / f"learnt{rank}.pickle" for rank in (0, 1)]
    ((drawn, own),), ((others_drawn, others),) = [pickle.loads(f.read_bytes()) for f in files]
    batches = [*drawn, *others_drawn]
    means = [batch.weight_mean for batch in batches]
    assert means[0] == pytest.approx(1.0)
    assert means[1] < 0.6

    joint = build_pair(config, ranks=Ranks(), device=torch.device("cpu"))
    optimizer = torch.optim.SGD(joint.student.parameters(), lr=config.distiller.learning_rate)
    hints = joint.hints(config.distiller)
    for batch in batches:
        images = torch.from_numpy(batch.images).float() / 255
        with hints:
            answers = joint.student(images), joint.teacher(images)
        losses = soft_target_loss(*answers, temperature=config.distiller.temperature)
        losses = losses + config.distiller.hint_weight * hints.losses()
        weights = torch.from_numpy(batch.weights).float() / np.mean(means)
        ((losses * weights).mean() / 2).backward()
    optimizer.step()
    for ours, theirs, expected in zip(own, others, joint.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-4, atol=1e-6)


def test_a_rank_that_fails_ends_all_with_its_error_before_the_student_changes(
    make_config, make_samples, tmp_path
):
    cached = make_config("distiller.teacher_logits=cached", "distiller.crop_padding=0")
    whole = make_samples(64)
    bare = [replace(sample, targets={}) for sample in whole]
    wrong = {"logits": np.full(10, np.nan, np.float32)}
    broken = [replace(sample, targets=wrong) for sample in whole]
    cases = [
        (
            make_config("distiller.max_waiting_seconds=0.3"),
            [],
            "Starved: max_waiting_seconds (0.3)",
        ),
        (
            cached,
            bare,
            "ConfigError: distiller.teacher_logits (cached): the drawn samples carry no",
        ),
        (cached, broken, "Diverged: distiller.learning_rate (0.05): the loss is nan at a rate of"),
    ]
    configs = [config for config, _, _ in cases]
    of_ranks = [[whole, samples] for _, samples, _ in cases]
    for answers in _train(configs, of_ranks, tmp_path, 2, APART):
        assert [answer["step"] for answer in answers] == [0, 0, 0]
        for answer, (_, _, error) in zip(answers, cases, strict=True):
            assert answer["error"].startswith(error)
