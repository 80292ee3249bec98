from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_teachers import CallsLayerTwice, bn_cnn, plain_cnn
from torch import Tensor, nn

from synthesizer.statistics import batchnorm_layers, input_moments, recording


def independent_moments(values: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and biased variance per channel, one channel at a time in float64."""
    channels = np.moveaxis(values.detach().double().numpy(), 1, 0)
    return (
        np.array([np.mean(channel) for channel in channels]),
        np.array([np.mean((channel - np.mean(channel)) ** 2) for channel in channels]),
    )


SHAPES = [(7, 5), (7, 5, 4), (6, 5, 4, 3), (3, 5, 2, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_agree_with_numpy(shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3.0 + 10.0
    mean, variance = input_moments(inputs)
    expected_mean, expected_variance = independent_moments(inputs)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_moments_agrees_with_finite_differences(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(2)
    inputs = torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(input_moments(x)), inputs)


def test_gradient_agrees_with_autograd_of_var_mean_channels_last() -> None:
    rng = torch.Generator().manual_seed(3)
    inputs = torch.randn(4, 3, 5, 6, generator=rng).to(memory_format=torch.channels_last)
    ours, reference = (inputs.clone().requires_grad_() for _ in range(2))
    weight = torch.tensor([1.0, -2.0, 3.0])
    mean, variance = input_moments(ours)
    (weight * mean + weight * variance).sum().backward()
    variance, mean = torch.var_mean(reference, dim=(0, 2, 3), correction=0)
    (weight * mean + weight * variance).sum().backward()
    torch.testing.assert_close(ours.grad, reference.grad)


def test_moments_of_bfloat16_inputs_are_float32() -> None:
    inputs = torch.full((256, 2, 32, 32), 1.0, dtype=torch.bfloat16)
    inputs[:128] += 2.0**-7
    mean, variance = input_moments(inputs)
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean, torch.full((2,), 1.0 + 2.0**-8), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(variance, torch.full((2,), 2.0**-16), rtol=1e-4, atol=0.0)


def test_each_layer_is_recorded_in_order_of_the_calls() -> None:
    network = bn_cnn().eval()
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    with recording(batchnorm_layers(network)) as calls:
        network(images)
    first = network[0](images)
    second = network[3](network[2](network[1](first)))
    assert len(calls) == 2
    for call, inputs, layer in zip(calls, (first, second), (network[1], network[4]), strict=True):
        mean, variance = independent_moments(inputs)
        np.testing.assert_allclose(call.batch.mean.detach(), mean, atol=1e-6)
        np.testing.assert_allclose(call.batch.variance.detach(), variance, rtol=1e-5, atol=1e-7)
        assert call.running.mean is layer.running_mean
        assert call.running.variance is layer.running_var


def test_a_layer_called_twice_is_recorded_twice_against_its_own_moments() -> None:
    model = CallsLayerTwice().eval()
    inputs = torch.randn(9, 5, generator=torch.Generator().manual_seed(5))
    with recording(batchnorm_layers(model)) as calls:
        model(inputs)
    expected = [inputs, 2.0 * model.norm(inputs) + 1.0]
    assert len(calls) == 2
    for call, values in zip(calls, expected, strict=True):
        mean, variance = independent_moments(values)
        np.testing.assert_allclose(call.batch.mean.detach(), mean, atol=1e-6)
        np.testing.assert_allclose(call.batch.variance.detach(), variance, rtol=1e-5)
        assert call.running.mean is model.norm.running_mean


def test_hooks_are_removed_even_after_an_error() -> None:
    network = bn_cnn().eval()
    images = torch.rand(2, 3, 8, 8)
    with recording(batchnorm_layers(network)) as calls:
        network(images)
    network(images)
    assert len(calls) == 2
    with pytest.raises(RuntimeError), recording(batchnorm_layers(network)) as calls:
        network(torch.rand(2, 1, 8, 8))
    network(images)
    assert calls == []
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_every_kind_of_batchnorm_is_found_and_nothing_else() -> None:
    found = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)]
    others = [
        nn.LayerNorm(2),
        nn.GroupNorm(1, 2),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.BatchNorm2d(2, track_running_stats=False),
    ]
    assert batchnorm_layers(nn.Sequential(*others, *found)) == found


def test_a_model_without_batchnorm_records_nothing() -> None:
    network = plain_cnn()
    with recording(batchnorm_layers(network)) as calls:
        network(torch.rand(2, 3, 8, 8))
    assert calls == []


def test_gradient_reaches_the_images_through_the_moments_alone() -> None:
    network = bn_cnn().eval().requires_grad_(False)
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    with recording(batchnorm_layers(network)) as calls:
        network(images)
    (gradient,) = torch.autograd.grad(calls[-1].batch.variance.sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
