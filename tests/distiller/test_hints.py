from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.config import HintKind
from distiller.hints import Hints, attention, distances, features


def networks(*, same: bool = False) -> tuple[nn.Sequential, nn.Sequential]:
    """Student and teacher, of the same or of different widths."""
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2, 3))
        for width in (5 if same else 2, 5)
    )
    return student, teacher.requires_grad_(False)


def test_a_map_is_the_activity_over_channels() -> None:
    activation = torch.tensor([[[[1.0, 0.0]], [[2.0, -2.0]]]])  # two channels of 1 x 2
    torch.testing.assert_close(attention(activation), torch.tensor([[[5.0, 4.0]]]))


def test_distances_are_of_rows_of_length_one() -> None:
    ours = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[3.0, 4.0]]])
    theirs = torch.tensor([[[0.0, 7.0]], [[-2.0, -2.0]], [[6.0, 8.0]]])
    torch.testing.assert_close(distances(ours, theirs), torch.tensor([2.0, 4.0, 0.0]))


@pytest.mark.parametrize("ours", [0.0, 1e-37, 1e-21, 1e-10, 1.0])
@pytest.mark.parametrize("theirs", [0.0, 1e-21, 1.0])
def test_rows_of_next_to_nothing_have_finite_gradients(ours: float, theirs: float) -> None:
    own = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).mul(ours).requires_grad_()
    found = distances(own, torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]) * theirs)
    found.sum().backward()
    expected = 2.0 if min(ours, theirs) < 1e-15 else 2.0 - 2.0 * 20.0 / 30.0
    assert found.item() == pytest.approx(expected)
    assert own.grad is not None
    assert own.grad.isfinite().all()


def test_channels_count_alike_wherever_they_lie_in_memory() -> None:
    ours, theirs = torch.rand(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    apart = (each.contiguous(memory_format=torch.channels_last) for each in (ours, theirs))
    rows = (F.normalize(each.flatten(1), dim=1) for each in (ours, theirs))
    expected = torch.cdist(*rows).diagonal().square()
    torch.testing.assert_close(distances(*apart), expected)
    torch.testing.assert_close(distances(ours, theirs), expected)


@pytest.mark.parametrize("kind", ["features", "attention"])
def test_as_many_numbers_of_another_shape_are_refused(kind: HintKind) -> None:
    student, teacher = (
        nn.Sequential(nn.Conv2d(1, 4, 2, stride=2)),
        nn.Sequential(nn.Conv2d(1, 1, 1)),
    )
    with Hints(student, teacher, ["0"], kind=kind) as watch:
        student(torch.rand(2, 1, 4, 4)), teacher(torch.rand(2, 1, 4, 4))
    with pytest.raises(RuntimeError, match=r"for the student, .* for the teacher"):
        watch.losses()


def test_attention_needs_heights_and_widths() -> None:
    with pytest.raises(RuntimeError, match=r"\(2, 3, 4\) is not \[batch, channels"):
        attention(torch.rand(2, 3, 4))


@pytest.mark.parametrize(("kind", "what"), [("attention", attention), ("features", features)])
def test_losses_are_of_each_image_summed_over_layers(
    kind: HintKind, what: Callable[[Tensor], Tensor]
) -> None:
    student, teacher = networks(same=kind == "features")
    images = torch.rand(3, 1, 4, 4)
    losses = []
    for layers in (["0"], ["1"], ["0", "1"]):
        with Hints(student, teacher, layers, kind=kind) as watch:
            student(images), teacher(images)
        losses.append(watch.losses())
    expected = distances(what(student[0](images)), what(teacher[0](images)))
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[2], losses[0] + losses[1])
    assert (losses[2] > 0).all()


@pytest.mark.parametrize("kind", ["attention", "features"])
def test_its_gradient_makes_the_student_resemble_the_teacher(kind: HintKind) -> None:
    student, teacher = networks(same=kind == "features")
    watch = Hints(student, teacher, ["0", "1"], kind=kind)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    images, values = torch.rand(8, 1, 6, 6), []
    for _ in range(60):
        with watch:
            student(images), teacher(images)
        loss = watch.losses().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.3 * values[0]


def test_other_passes_are_not_seen() -> None:
    student, teacher = networks()
    images = torch.rand(1, 1, 4, 4)
    with Hints(student, teacher, ["0"], kind="attention") as watch:
        student(images)
    student(images), teacher(images)
    with pytest.raises(KeyError):
        watch.losses()
