from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from synthesizer.augment import augment
from synthesizer.config import SynthesizerFile
from synthesizer.methods import Context
from synthesizer.methods.fast_meta import BETAS, FastMeta
from synthesizer.objective import objective
from synthesizer.statistics import batchnorm_layers


@pytest.fixture
def context(context: Context) -> Iterator[Context]:
    """In double precision: high learning rates would blow rounding up to the size of results."""
    torch.set_default_dtype(torch.float64)
    context.teacher.model.double()
    yield context
    torch.set_default_dtype(torch.float32)


def prepared(config: SynthesizerFile, context: Context, **changes: Any) -> FastMeta:
    method = FastMeta(config, **{**config.synthesizer.kwargs, **changes})
    method.prepare(context)
    return method


def weights(method: FastMeta) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in method.shared.parameters()]


class Replayed:
    """The inner loop of the next round, computed again with plain autograd and unfused Adam."""

    def __init__(self, method: FastMeta, context: Context, *, lr_z: float, lr_g: float) -> None:
        table, rng = method.table, copy_of(context.generator)
        size = (table.batch_size, method.settings.latent_dim)
        latents = torch.randn(size, generator=rng).requires_grad_()
        labels = torch.randint(context.teacher.classes, size[:1], generator=rng)
        network = copy.deepcopy(method.shared)
        parameters = list(network.parameters())
        optimizers = [
            torch.optim.Adam(parameters, lr_g, BETAS),
            torch.optim.Adam([latents], lr_z, BETAS),
        ]
        self.gradients, self.totals, self.images, moments = [], [], [], []
        for _ in range(method.settings.inner_steps):
            images = network(latents)
            shown = augment(images, rng, padding=table.crop_padding, flip=table.flip)
            result = objective(
                shown,
                labels,
                context,
                table,
                averages=method.descent.averages,
                momentum=method.settings.bn_momentum,
            )
            total = result.total
            gradients = torch.autograd.grad(total, [*parameters, latents])
            for parameter, gradient in zip([*parameters, latents], gradients, strict=True):
                parameter.grad = gradient.clone()
            for optimizer in optimizers:
                optimizer.step()
            self.gradients.append(gradients[:-1])
            self.totals.append(total.item())
            self.images.append(images.detach())
            moments.append(result.moments)
        self.best = self.totals.index(min(self.totals))
        self.kept_moments = moments[self.best]
        self.labels, self.final = labels, [parameter.detach() for parameter in parameters]


def copy_of(rng: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(rng.get_state())


def test_maml_sums_the_gradients_along_the_clones_way(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, inner_steps=5)
    expected = Replayed(method, context, lr_z=0.01, lr_g=3e-3)
    method.round(context)
    summed = [torch.stack(parts).sum(0) for parts in zip(*expected.gradients, strict=True)]
    for parameter, gradient in zip(method.shared.parameters(), summed, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    assert sum(float(g.abs().max()) for g in summed) > 0.1


def test_the_shared_generator_takes_one_adam_step_of_k_times_the_inner_rate(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, inner_steps=5)
    twin = copy.deepcopy(method.shared)
    optimizer = torch.optim.Adam(twin.parameters(), 5 * 3e-3, BETAS)
    method.round(context)
    for ours, theirs in zip(twin.parameters(), method.shared.parameters(), strict=True):
        ours.grad = theirs.grad
    optimizer.step()
    for ours, theirs in zip(twin.parameters(), method.shared.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_reptile_points_from_the_clone_back_to_the_shared_weights(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, outer="reptile")
    before = weights(method)
    expected = Replayed(method, context, lr_z=0.015, lr_g=5e-3)
    method.round(context)
    for parameter, start, end in zip(
        method.shared.parameters(), before, expected.final, strict=True
    ):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, start - end, rtol=1e-2, atol=1e-4)
        towards = torch.sign(end - start) == torch.sign(parameter.detach() - start)
        assert towards.float().mean() > 0.95


@pytest.mark.parametrize(("generator_lr", "last_is_best"), [(5e-3, True), (1.0, False)])
def test_the_images_of_the_lowest_loss_are_kept(
    generator_lr: float, last_is_best: bool, config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, inner_steps=5, generator_lr=generator_lr)
    expected = Replayed(method, context, lr_z=0.01, lr_g=generator_lr)
    # The test would be empty if the last step always won.
    assert (expected.best == 4) == last_is_best
    batch = method.round(context)
    assert batch.losses["total"] == pytest.approx(min(expected.totals), rel=1e-3)
    difference = batch.images.int() - (expected.images[expected.best] * 255.0).round().int()
    assert difference.abs().max() <= 1
    assert torch.equal(batch.target_labels, expected.labels)


@pytest.mark.parametrize("generator_lr", [5e-3, 1.0])
def test_the_moments_of_kept_steps_are_averaged_over_the_rounds(
    generator_lr: float, config: SynthesizerFile, context: Context
) -> None:
    # The high rate makes an early step the best one.
    method = prepared(config, context, bn_momentum=0.75, inner_steps=5, generator_lr=generator_lr)
    expected = Replayed(method, context, lr_z=0.01, lr_g=generator_lr).kept_moments
    method.round(context)
    assert method.descent.averages is not None
    assert len(method.descent.averages) == len(batchnorm_layers(context.teacher.model))
    for found, moments in zip(method.descent.averages, expected, strict=True):
        torch.testing.assert_close(found, moments)
    first = method.descent.averages
    expected = Replayed(method, context, lr_z=0.01, lr_g=generator_lr).kept_moments
    method.round(context)
    for found, old, new in zip(method.descent.averages, first, expected, strict=True):
        assert (old.mean - new.mean).abs().max() > 0.01
        blended = 0.75 * old.mean + 0.25 * new.mean
        torch.testing.assert_close(found.mean, blended)
        assert not found.mean.requires_grad
