from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller.hints import Hints, Kind, attention, features


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    """Student and teacher of different widths."""
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2, 3)) for width in (2, 5)
    )
    return student, teacher.requires_grad_(False)


def test_a_map_is_the_activity_over_channels_of_length_one() -> None:
    activation = torch.tensor([[[[1.0, 0.0]], [[2.0, 2.0]]]])  # two channels of 1 x 2
    expected = torch.tensor([[5.0, 4.0]]) / 41**0.5
    torch.testing.assert_close(attention(activation), expected)
    torch.testing.assert_close(attention(3.0 * activation), expected)


def test_features_are_the_activations_themselves_of_length_one() -> None:
    activation = torch.tensor([[[[1.0, 0.0]], [[2.0, 2.0]]]])
    expected = torch.tensor([[1.0, 0.0, 2.0, 2.0]]) / 3.0
    torch.testing.assert_close(features(activation), expected)
    torch.testing.assert_close(features(3.0 * activation), expected)


def test_losses_are_of_each_image_summed_over_layers() -> None:
    student, teacher = networks()
    images = torch.rand(3, 1, 4, 4)
    losses = []
    for layers in (["0"], ["1"], ["0", "1"]):
        watch = Hints(student, teacher, layers, kind="attention")
        student(images), teacher(images)
        losses.append(watch.losses())
        watch.close()
    ours, theirs = attention(student[0](images)), attention(teacher[0](images))
    torch.testing.assert_close(losses[0], (ours - theirs).square().sum(dim=1))
    torch.testing.assert_close(losses[2], losses[0] + losses[1])
    assert (losses[2] > 0).all()


@pytest.mark.parametrize(("kind", "layers"), [("attention", ["0", "1"]), ("features", ["1"])])
def test_its_gradient_makes_the_student_resemble_the_teacher(kind: Kind, layers: list[str]) -> None:
    student, teacher = networks()
    watch = Hints(student, teacher, layers, kind=kind)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    images, values = torch.rand(8, 1, 6, 6), []
    for _ in range(60):
        student(images), teacher(images)
        loss = watch.losses().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.3 * values[0]


def test_who_watches_no_longer_sees_nothing() -> None:
    student, teacher = networks()
    watch = Hints(student, teacher, ["0"], kind="features")
    watch.close()
    student(torch.rand(1, 1, 4, 4))
    with pytest.raises(KeyError):
        watch.losses()
