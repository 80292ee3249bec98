from __future__ import annotations

import pytest
import torch
from torch import nn

from buffer.models import NormalizedModel
from distiller.average import StudentAverage


def student(width: int = 3) -> NormalizedModel:
    network = nn.Sequential(nn.Conv2d(1, width, 1), nn.BatchNorm2d(width))
    return NormalizedModel(network, (0.5,), (0.25,))


def trained(count: int, steps: int) -> tuple[NormalizedModel, StudentAverage, list[torch.Tensor]]:
    """A student that jumps about, its average, and the moments that it had after each step."""
    torch.manual_seed(0)
    one = student()
    average, seen = StudentAverage(one, student(), steps=steps), []
    for _ in range(count):
        one(torch.randn(8, 1, 2, 2))
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.normal_()
        average.update()
        seen.append(torch.cat([one.network[0].bias.detach(), one.network[1].running_mean]).clone())
    return one, average, seen


def averaged(average: StudentAverage) -> torch.Tensor:
    conv, norm = average.model.network
    return torch.cat([conv.bias, norm.running_mean])


def test_before_the_first_step_it_is_the_student():
    one = student()
    average = StudentAverage(one, student(), steps=10)
    for name, tensor in one.state_dict().items():
        assert torch.equal(average.model.state_dict()[name], tensor), name


def test_of_the_first_steps_it_is_the_mean():
    _, average, seen = trained(7, steps=10)
    torch.testing.assert_close(averaged(average), torch.stack(seen).mean(dim=0))


def test_then_each_step_counts_less_by_the_same_factor():
    _, average, seen = trained(9, steps=4)
    # The mean of the first four, then a quarter of each later one.
    weights = torch.tensor([0.25] * 4 + [0.25] * 5) * 0.75 ** torch.tensor(
        [5.0] * 4 + [4, 3, 2, 1, 0]
    )
    assert weights.sum() == pytest.approx(1.0)
    expected = (weights[:, None] * torch.stack(seen)).sum(dim=0)
    torch.testing.assert_close(averaged(average), expected)


def test_over_one_step_it_follows_the_student_exactly():
    one, average, _ = trained(5, steps=1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(average.model.state_dict()[name], tensor), name


def test_batches_are_counted_and_not_averaged():
    one, average, _ = trained(6, steps=4)
    assert average.model.network[1].num_batches_tracked == 6
    assert one.training
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


class WithBuffers(nn.Module):
    """A network with a mask, and with what it makes for itself when it sees its first images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("seen", None, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = torch.zeros(images.shape[2:])
        return self.weight + self.mask + images.mean(dim=(1, 2, 3))[:, None]


def test_buffers_that_are_no_moments_are_the_students():
    one, other = (NormalizedModel(WithBuffers(), (0.5,), (0.25,)) for _ in range(2))
    average = StudentAverage(one, other, steps=4)
    for size in (2, 3, 3):  # what it makes for itself has another shape by then
        one(torch.zeros(1, 1, size, size))
        average.model(torch.zeros(1, 1, 4, 4))
        with torch.no_grad():
            one.network.weight += 1
        average.update()
    assert average.model.network.mask.tolist() == [0.0, float("-inf")]
    assert average.model.network.weight.tolist() == [2.0, 2.0]
