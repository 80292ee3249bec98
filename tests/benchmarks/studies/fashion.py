"""Fashion-MNIST's teacher, trained where its images are: ``SSDKD_SHARED``, or ``shared`` beside us.

For studies only; a run never sees the training images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from buffer.config import ModelSpec
from buffer.models import NormalizedModel, autocast_dtype, build, to_bytes
from deploy.report import write_atomically
from distiller.augment import views
from distiller.step import precision
from tests.benchmarks.studies.study import SHARED

EPOCHS, BATCH, PEAK_RATE = 4, 256, 6e-3


def teacher(spec: ModelSpec, folder: Path, seed: int) -> Path:
    """Trains the specified network and writes its weights; the file of the weights.

    Args:
        spec: the teacher; its ``weights`` are ignored.
        folder: where ``teacher.safetensors`` is written; one that is there is taken.
        seed: of initialisation, order, crops and flips.
    """
    path = folder / "teacher.safetensors"
    if not path.exists():
        with np.load(SHARED / "data" / "fashion_mnist_train.npz") as data:
            images, labels = (torch.from_numpy(data[name]) for name in ("images", "labels"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(spec.model_copy(update={"weights": None}))
            _train(model, images.unsqueeze(1), labels)
        write_atomically(path, to_bytes(model))
    return path


def _train(model: NormalizedModel, images: Tensor, labels: Tensor) -> None:
    """Ordinary supervised training: AdamW, one-cycle rate, crops and flips."""
    cpu = torch.device("cpu")
    dtype = autocast_dtype("auto", cpu)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    rng = torch.Generator().manual_seed(torch.initial_seed())
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            batch = views(images[chosen], padding=2, flip=True, mixup=0.0, generator=rng)
            with precision(cpu, dtype):
                outputs = model(batch)
            optimizer.zero_grad()
            F.cross_entropy(outputs.float(), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
