from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from buffer.config import EvaluationTable, ModelSpec
from buffer.errors import ConfigError
from distiller.evaluation import EvaluationSet, accuracy, agreement, loyalty

SPEC = ModelSpec(
    factory="distiller.networks:digits_cnn",
    classes=3,
    image_shape=(2, 4, 5),
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 2, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0])


class FirstPixels(nn.Module):
    """Says the first three pixels of the first channel, and remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.batches = []
        self.modes = []

    def forward(self, images):
        self.batches.append(len(images))
        self.modes.append(self.training)
        return images[:, 0, 0, :3]


@pytest.fixture
def archive(tmp_path):
    def write(images=IMAGES, labels=LABELS, **more):
        path = tmp_path / "test.npz"
        np.savez(path, images=images, labels=labels, **more)
        return EvaluationTable(data=str(path))

    return write


@pytest.mark.parametrize("images", [IMAGES, IMAGES.transpose(0, 2, 3, 1)])
def test_channels_may_come_first_or_last(archive, images):
    test = EvaluationSet.load(archive(images), SPEC)
    np.testing.assert_array_equal(test.images, IMAGES)
    np.testing.assert_array_equal(test.labels, LABELS)


def test_a_single_channel_may_be_absent(archive):
    grey = SPEC.model_copy(update={"image_shape": (1, 4, 5)})
    test = EvaluationSet.load(archive(IMAGES[:, 0]), grey)
    np.testing.assert_array_equal(test.images, IMAGES[:, :1])


def test_data_may_come_from_a_function(monkeypatch, tmp_path):
    module = tmp_path / "user_data.py"
    module.write_text(
        "import numpy as np\n"
        "def three():\n"
        "    return np.zeros((3, 4, 5, 2), np.uint8), np.array([0, 1, 2])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    test = EvaluationSet.load(EvaluationTable(data="user_data:three"), SPEC)
    assert test.images.shape == (3, 2, 4, 5)


def test_logits_are_of_every_image_in_batches_in_eval_mode(archive):
    table = archive().model_copy(update={"batch_size": 3})
    model = FirstPixels().train()
    logits = EvaluationSet.load(table, SPEC).logits(model)
    torch.testing.assert_close(logits, torch.from_numpy(IMAGES[:, 0, 0, :3]).float() / 255)
    assert model.batches == [3, 3, 1]
    assert model.modes == [False] * 3
    assert model.training


def test_accuracy_is_the_share_of_right_answers_in_percent():
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 2])]
    assert accuracy(logits, torch.tensor([0, 1, 2, 0])) == 75.0


def test_agreement_is_the_share_of_equal_answers_in_percent():
    ours, theirs = torch.eye(3)[[0, 1, 2, 2]], 5 * torch.eye(3)[[0, 1, 1, 1]]
    assert agreement(ours, theirs) == 50.0


def test_loyalty_reaches_from_disjoint_to_equal():
    certain = 200 * torch.eye(3)
    assert loyalty(certain, certain) == pytest.approx(100.0)
    assert loyalty(certain, certain.roll(1, 0)) == pytest.approx(0.0, abs=1e-5)


def test_loyalty_of_a_coin_against_certainty():
    # m = (3/4, 1/4): JS = H(m) - H(1/2, 1/2) / 2 bits.
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    expected = 100 * (1 - math.sqrt(entropy - 0.5))
    ours, theirs = torch.tensor([[200.0, 0.0]]), torch.zeros(1, 2)
    assert loyalty(ours, theirs) == pytest.approx(expected)


def test_comparing_gives_all_four_figures(archive):
    test = EvaluationSet.load(archive(), SPEC)
    model = FirstPixels()
    scores = test.compare(model, model)
    expected = 100 * np.mean(IMAGES[:, 0, 0, :3].argmax(1) == LABELS)
    assert scores == {
        "teacher_accuracy": pytest.approx(expected),
        "student_accuracy": pytest.approx(expected),
        "agreement": 100.0,
        "loyalty": pytest.approx(100.0),
    }
    assert test.accuracy(model) == scores["student_accuracy"]


def test_no_data_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.data \(None\): there is nothing"):
        EvaluationSet.load(EvaluationTable(), SPEC)


def test_a_missing_file_is_refused(tmp_path):
    table = EvaluationTable(data=str(tmp_path / "none.npz"))
    with pytest.raises(
        ConfigError, match=r"evaluation\.data \(.*none\.npz\): there is no such file"
    ):
        EvaluationSet.load(table, SPEC)


@pytest.mark.parametrize("content", [b"not an archive", b""])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "test.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is not an \.npz of plain arrays"):
        EvaluationSet.load(EvaluationTable(data=str(path)), SPEC)


def test_a_single_array_is_no_archive(tmp_path):
    path = tmp_path / "test.npy"
    np.save(path, IMAGES)
    with pytest.raises(ConfigError, match=r"is not an \.npz of plain arrays"):
        EvaluationSet.load(EvaluationTable(data=str(path)), SPEC)


def test_pickled_objects_are_refused(archive):
    with pytest.raises(ConfigError, match=r"is not an \.npz of plain arrays"):
        EvaluationSet.load(archive(np.array([{"a": 1}])), SPEC)


def test_an_archive_without_labels_is_refused(tmp_path):
    path = tmp_path / "test.npz"
    np.savez(path, images=IMAGES)
    with pytest.raises(ConfigError, match="the archive lacks images or labels"):
        EvaluationSet.load(EvaluationTable(data=str(path)), SPEC)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (IMAGES / 255, "images are float64 of shape (7, 2, 4, 5), not uint8"),
        (IMAGES[:0], "images are uint8 of shape (0, 2, 4, 5), not uint8"),
        (IMAGES[0, 0], "images are uint8 of shape (4, 5), not uint8"),
        (IMAGES[:, :, :3], "images of shape (2, 3, 5) do not fit image_shape (2, 4, 5)"),
    ],
)
def test_images_that_do_not_fit_the_models_are_refused(archive, images, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        EvaluationSet.load(archive(images), SPEC)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (LABELS[:3], "labels are int64 of shape (3,), not integers (7,)"),
        (LABELS * 1.0, "labels are float64 of shape (7,), not integers (7,)"),
        (LABELS + 1, "labels reach from 1 to 3, outside the 3 classes"),
        (LABELS - 1, "labels reach from -1 to 1, outside the 3 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(archive, labels, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        EvaluationSet.load(archive(labels=labels), SPEC)
