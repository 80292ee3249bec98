from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from buffer.models import build
from deploy import digits
from deploy.config import DEFAULT_CONFIG, load


def test_the_splits_share_no_image_order_and_cover_all_digits() -> None:
    (train, train_labels), (test, test_labels) = digits.splits()
    assert len(train) + len(test) == 1797
    assert len(test) == 359
    assert set(np.unique(train_labels)) == set(np.unique(test_labels)) == set(range(10))
    again, _ = digits.test_split()
    assert np.array_equal(again, test)


def test_images_use_the_whole_range_of_8_bits() -> None:
    images, _ = digits.test_split()
    assert (images.dtype, images.min(), images.max()) == (np.uint8, 0, 255)


def test_a_trained_teacher_is_good_and_reproducible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 20)
    spec = load(DEFAULT_CONFIG, ["teacher.kwargs.width=16"]).teacher
    files = [digits.teacher(spec, tmp_path / name, 3) for name in ("a", "b")]
    images, labels = digits.test_split()
    model = build(spec.model_copy(update={"weights": str(files[0])})).eval()
    with torch.no_grad():
        predicted = model(torch.from_numpy(images).unsqueeze(1).float() / 255).argmax(dim=1)
    assert (predicted.numpy() == labels).mean() > 0.9
    assert files[0].read_bytes() == files[1].read_bytes()
