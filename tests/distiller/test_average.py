from __future__ import annotations

import pytest
import torch
from torch import nn

from buffer.errors import ModelError
from buffer.models import NormalizedModel
from distiller.average import StudentAverage


def student(width: int = 3) -> NormalizedModel:
    network = nn.Sequential(nn.Conv2d(1, width, 1), nn.BatchNorm2d(width))
    return NormalizedModel(network, (0.5,), (0.25,))


def trained(steps: int, share: float) -> tuple[NormalizedModel, StudentAverage, list[torch.Tensor]]:
    """A student that jumps about, its average, and the moments that it had after each step."""
    torch.manual_seed(0)
    one = student()
    average, seen = StudentAverage(one, student(), share=share), []
    for _ in range(steps):
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
    average = StudentAverage(one, student(), share=0.1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(average.model.state_dict()[name], tensor), name


def test_with_the_whole_training_as_share_it_is_the_mean_of_all_steps():
    _, average, seen = trained(7, share=1.0)
    torch.testing.assert_close(averaged(average), torch.stack(seen).mean(dim=0))


def test_without_a_share_it_follows_the_student_exactly():
    one, average, _ = trained(5, share=0.0)
    for name, tensor in one.state_dict().items():
        assert torch.equal(average.model.state_dict()[name], tensor), name


def test_a_steps_weight_is_a_power_of_its_number():
    share, steps = 0.25, 400
    _, average, seen = trained(steps, share)
    weights = torch.arange(1.0, steps + 1) ** (1 / share - 1)
    expected = (weights[:, None] * torch.stack(seen)).sum(dim=0) / weights.sum()
    # The powers are what the exact weights approach: 0.05 is half a deviation of the averages.
    torch.testing.assert_close(averaged(average), expected, atol=0.05, rtol=0)


def test_batches_are_counted_and_not_averaged():
    one, average, _ = trained(6, share=0.5)
    assert average.model.network[1].num_batches_tracked == 6
    assert one.training
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_it_goes_on_from_its_state():
    one, average, _ = trained(6, share=0.5)
    other = StudentAverage(one, student(), share=0.5)
    other.load_state_dict(average.state_dict())
    for each in (average, other):
        each.update()
    assert torch.equal(averaged(other), averaged(average))


def test_the_state_of_another_network_is_refused():
    _, average, _ = trained(1, share=0.5)
    wider = student(width=4)
    with pytest.raises(ModelError, match="the checkpoint's average does not fit"):
        StudentAverage(wider, student(width=4), share=0.5).load_state_dict(average.state_dict())
