"""The demo's real data and teacher: scikit-learn's handwritten digits, which ship in its package.

1,797 real 8x8 images. The teacher is trained on four fifths of them; the rest is the test set. The
student never sees either: only :func:`teacher` reads training images, before a run starts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from buffer.config import ModelSpec
from buffer.errors import ConfigError
from buffer.models import NormalizedModel, build

TEST_SHARE = 0.2
EPOCHS = 60
BATCH = 64

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def splits() -> tuple[Arrays, Arrays]:
    """Training and test split, always the same: images ``[N, 8, 8]`` uint8 and labels ``[N]``.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the digits demo needs scikit-learn's data set: pip install 'ssdkd[demo]'"
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    cut = round(len(labels) * TEST_SHARE)
    test, train = order[:cut], order[cut:]
    return (images[train], labels[train]), (images[test], labels[test])


def test_split() -> Arrays:
    """The real digits nobody trains on: images ``[N, 8, 8]`` uint8 and labels ``[N]``."""
    return splits()[1]


def teacher(spec: ModelSpec, folder: Path, seed: int) -> Path:
    """Trains the specified network on the real training split and writes its weights.

    Args:
        spec: the teacher; its ``weights`` are ignored.
        folder: where ``teacher.safetensors`` is written.
        seed: of initialisation, order and shifts.

    Returns:
        The file of the weights.
    """
    (images, labels), _ = splits()
    inputs = torch.from_numpy(images).unsqueeze(1).float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(spec.model_copy(update={"weights": None}))
        _train(model, inputs, torch.from_numpy(labels))
    path = folder / "teacher.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(model.network.state_dict()), path)
    return path


def _train(model: NormalizedModel, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Ordinary supervised training: Adam, one-cycle rate, shifts by up to one pixel."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = EPOCHS * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(inputs)), BATCH):
            down, right = torch.randint(-1, 2, (2,)).tolist()
            shifted = F.pad(inputs[chosen], (1, 1, 1, 1))
            batch = shifted[:, :, 1 + down : 9 + down, 1 + right : 9 + right]
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
