from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_teachers import coloured_images
from torch import Tensor

from buffer.errors import ConfigError
from buffer.models import NormalizedModel, build
from buffer.params import SamplingParams
from synthesizer.augment import augment
from synthesizer.config import SynthesizerFile
from synthesizer.methods import Context
from synthesizer.methods.fast_meta import BETAS, FastMeta
from synthesizer.objective import objective
from synthesizer.statistics import batchnorm_layers
from synthesizer.terms import batchnorm_moments

Configure = Callable[..., SynthesizerFile]


def prepared(config: SynthesizerFile, context: Context, **changes: Any) -> FastMeta:
    method = FastMeta(config, **{**config.synthesizer.kwargs, **changes})
    method.prepare(context)
    return method


def weights(method: FastMeta) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in method.shared.parameters()]


class Replayed:
    """The inner loop of the next round, computed again with autograd and one plain copy a step."""

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
                averages=method.averages,
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


@pytest.mark.parametrize("generator_lr", [5e-3, 1.0])
def test_the_images_of_the_lowest_loss_are_kept(
    generator_lr: float, config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, inner_steps=5, generator_lr=generator_lr)
    expected = Replayed(method, context, lr_z=0.01, lr_g=generator_lr)
    batch = method.round(context)
    assert batch.losses["total"] == pytest.approx(min(expected.totals), rel=1e-3)
    difference = batch.images.int() - (expected.images[expected.best] * 255.0).round().int()
    assert difference.abs().max() <= 1
    assert torch.equal(batch.target_labels, expected.labels)


def test_which_step_is_best_depends_on_the_learning_rate(
    config: SynthesizerFile, context: Context
) -> None:
    """The test above would be empty if the last step always won."""
    best = []
    for rate in (5e-3, 1.0):
        method = prepared(config, context, inner_steps=5, generator_lr=rate)
        best.append(Replayed(method, context, lr_z=0.01, lr_g=rate).best)
    assert best[0] == 4
    assert best[1] < 4


def test_a_round_gives_a_batch_of_eight_bit_images_and_valid_labels(
    config: SynthesizerFile, context: Context
) -> None:
    batch = prepared(config, context).round(context)
    assert batch.images.shape == (16, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.target_labels.unique().tolist() == [0, 1, 2, 3]
    assert batch.members.tolist() == [0] * 16


def test_argmax_mode_asks_for_nothing(configure: Configure, context: Context) -> None:
    config = configure(synthesizer={"label_mode": "argmax"})
    batch = prepared(config, context).round(context)
    assert batch.target_labels.tolist() == [-1] * 16


def test_the_moments_come_close_to_the_teachers_data_over_the_rounds(
    configure: Configure, context: Context
) -> None:
    config = configure(synthesizer={"batch_size": 32})
    method = prepared(config, context, inner_steps=5, latent_dim=16, width=16)
    losses = [method.round(context).losses for _ in range(60)]
    assert losses[-1]["bn"] < 0.25 * losses[0]["bn"]
    assert losses[-1]["total"] < 0.25 * losses[0]["total"]
    images, _ = coloured_images(32, torch.Generator().manual_seed(9))
    _, calls = context.teacher.forward_with_statistics(images)
    assert losses[-1]["bn"] < 2.0 * batchnorm_moments(calls)


def test_the_teacher_sees_the_classes_that_were_asked_for(
    configure: Configure, context: Context
) -> None:
    config = configure(
        synthesizer={"bn_weight": 1.0, "task_weight": 5.0, "difficulty": False, "batch_size": 32}
    )
    method = prepared(config, context, inner_steps=10, latent_lr=0.1, latent_dim=16, width=16)
    batches = [method.round(context) for _ in range(15)][-5:]
    hits = torch.stack(
        [
            context.teacher.logits(batch.images / 255.0).argmax(dim=1) == batch.target_labels
            for batch in batches
        ]
    )
    # Chance is 0.25.
    assert hits.float().mean() > 0.75


def test_the_adversarial_weight_raises_the_disagreement(
    configure: Configure, context: Context, student: NormalizedModel
) -> None:
    config = configure(synthesizer={"adversarial_agreement_only": False, "bn_weight": 0.1})
    disagreements = []
    for weight in (0.0, 5.0):
        context.generator.manual_seed(1)
        params = SamplingParams(adversarial_weight=weight)
        fighting = replace(context, student=student, filled_once=True, params=params)
        method = prepared(config, fighting)
        losses = [method.round(fighting).losses["adversarial"] for _ in range(15)]
        disagreements.append(losses[-1])
    assert disagreements[1] > 1.5 * disagreements[0]


def test_the_moments_of_kept_steps_are_averaged_over_the_rounds(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, bn_momentum=0.75)
    expected = Replayed(method, context, lr_z=0.015, lr_g=5e-3).kept_moments
    method.round(context)
    assert method.averages is not None
    assert len(method.averages) == len(batchnorm_layers(context.teacher.model))
    for found, moments in zip(method.averages, expected, strict=True):
        torch.testing.assert_close(found, moments, rtol=1e-3, atol=1e-4)
    first = method.averages
    expected = Replayed(method, context, lr_z=0.015, lr_g=5e-3).kept_moments
    method.round(context)
    for found, old, new in zip(method.averages, first, expected, strict=True):
        assert (old.mean - new.mean).abs().max() > 0.01
        blended = 0.75 * old.mean + 0.25 * new.mean
        torch.testing.assert_close(found.mean, blended, rtol=1e-3, atol=1e-4)
        assert not found.mean.requires_grad


def test_the_first_layers_start_anew_once_so_many_rounds_after_the_buffer_filled(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, reset_after_rounds=3, generator_lr=1e-9, latent_lr=1e-9)
    changed = []
    for number in range(12):
        context.filled_once = number >= 2
        before = weights(method)
        method.round(context)
        ways = [
            (ours - theirs).abs().max().item()
            for ours, theirs in zip(before, weights(method), strict=True)
        ]
        changed.append(ways[0] > 1e-3)
        # The linear layer and its BatchNorm come first; no other layer moves.
        assert max(ways[4:]) < 1e-6
    # Two rounds of filling and three with a full buffer come before.
    assert [number for number, new in enumerate(changed) if new] == [5]


def test_the_generator_is_never_reset_if_told_so(config: SynthesizerFile, context: Context) -> None:
    method = prepared(config, context, reset_after_rounds=None, generator_lr=1e-9, latent_lr=1e-9)
    before = weights(method)
    context.filled_once = True
    for _ in range(4):
        method.round(context)
    for ours, theirs in zip(before, weights(method), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)


def test_a_restored_method_goes_on_with_the_same_images(
    config: SynthesizerFile, context: Context
) -> None:
    context.filled_once = True
    method = prepared(config, context)
    for _ in range(3):
        method.round(context)
    state, rng = copy.deepcopy(method.state_dict()), context.generator.get_state()
    expected = [method.round(context) for _ in range(2)]
    restored = prepared(config, context)
    restored.load_state_dict(state)
    context.generator.set_state(rng)
    for batch in expected:
        again = restored.round(context)
        assert torch.equal(again.images, batch.images)
        assert again.losses == batch.losses
    assert restored.rounds_when_full == 5


def test_a_state_survives_a_file_that_may_hold_no_code(
    config: SynthesizerFile, context: Context, tmp_path: Any
) -> None:
    method = prepared(config, context)
    method.round(context)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    prepared(config, context).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_rounds_depend_on_the_given_generator_only(
    config: SynthesizerFile, context: Context
) -> None:
    batches = []
    for seed in (1, 1, 2):
        context.generator.manual_seed(seed)
        torch.rand(1)
        batches.append(prepared(config, context).round(context).images)
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_rounds_work_under_autocast(config: SynthesizerFile, context: Context) -> None:
    context.autocast = torch.bfloat16
    method = prepared(config, context)
    losses = [method.round(context).losses for _ in range(3)]
    assert all(value == value and abs(value) < 1e6 for step in losses for value in step.values())
    assert all(p.dtype == torch.float32 for p in method.shared.parameters())


def test_a_teacher_without_batchnorm_is_inverted_by_the_task_term_alone(
    configure: Configure, context: Context
) -> None:
    config = configure(
        teacher={"factory": "tiny_teachers:plain_cnn", "weights": "unused"},
        synthesizer={"bn_weight": 0.0},
    )
    spec = config.teacher.model_copy(update={"weights": None})
    context.teacher = type(context.teacher)(build(spec), classes=4)
    method = prepared(config, context)
    assert set(method.round(context).losses) == {"total", "task"}
    assert not method.requirements(config).needs_batchnorm


@pytest.mark.parametrize(
    ("inner_steps", "rates"), [(2, (0.015, 5e-3)), (5, (0.01, 3e-3)), (10, (0.01, 2e-3))]
)
def test_published_rates_follow_the_number_of_inner_steps(
    inner_steps: int, rates: tuple[float, float], config: SynthesizerFile
) -> None:
    assert FastMeta(config, inner_steps=inner_steps).settings.rates == rates
    assert FastMeta(config, inner_steps=inner_steps, latent_lr=0.5).settings.rates == (
        0.5,
        rates[1],
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"inner_steps": 3}, r"inner_steps \(3\) has no published learning rates"),
        ({"inner_steps": 3, "latent_lr": 0.1}, r"set latent_lr and generator_lr too"),
        ({"inner_steps": 0}, r"synthesizer.kwargs.inner_steps \(0\)"),
        ({"bn_momentum": 1.0}, r"synthesizer.kwargs.bn_momentum \(1.0\)"),
        ({"inner_stepz": 3}, r"synthesizer.kwargs.inner_stepz \(3\): Extra inputs"),
        ({"outer": "maml++"}, r"synthesizer.kwargs.outer \('maml\+\+'\)"),
    ],
)
def test_impossible_settings_are_refused(
    kwargs: dict[str, Any], message: str, config: SynthesizerFile
) -> None:
    with pytest.raises(ConfigError, match=message):
        FastMeta(config, **kwargs)
