from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_teachers import coloured_images
from torch import Tensor

from buffer.errors import ConfigError, Diverged
from buffer.models import NormalizedModel, build
from buffer.params import SamplingParams
from synthesizer.config import SynthesizerFile
from synthesizer.inverter import judge
from synthesizer.methods import Context
from synthesizer.methods.fast_meta import FastMeta
from synthesizer.terms import batchnorm_moments

Configure = Callable[..., SynthesizerFile]


def prepared(
    config: SynthesizerFile, context: Context, *, state: Any = None, **changes: Any
) -> FastMeta:
    method = FastMeta(config, **{**config.synthesizer.kwargs, **changes})
    if state is not None:
        method.load_state_dict(state)
    method.prepare(context)
    return method


def weights(method: FastMeta) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in method.shared.parameters()]


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
        fighting = replace(context, student=student, warmed_up=True, params=params)
        method = prepared(config, fighting)
        batches = [method.round(fighting) for _ in range(15)]
        disagreements.append(judge(batches[-1].images, fighting).disagreements.mean())
    assert disagreements[1] > 1.5 * disagreements[0]


def test_a_dead_generator_is_reported_and_leaves_no_trace(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context)
    method.round(context)
    with torch.no_grad():
        next(method.shared.parameters()).fill_(float("nan"))
    before, averages = copy.deepcopy(method.state_dict()), method.descent.averages
    with pytest.raises(
        Diverged, match=r"the loss of inner step 1 is not finite \(total nan, bn nan"
    ):
        method.round(context)
    assert method.descent.averages is averages
    for ours, theirs in zip(weights(method), before["generator"].values(), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    steps = [entry["step"] for entry in method.optimizer.state.values()]
    assert set(map(float, steps)) == {1.0}


def test_a_clone_that_leaves_the_numbers_does_not_take_the_shared_generator_along(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, generator_lr=1e38)
    before = weights(method)
    message = r"generator_lr \(1e\+38\): the loss of inner step 2 is not finite .* cannot recover"
    with pytest.raises(Diverged, match=message):
        method.round(context)
    assert method.descent.averages is None
    for ours, theirs in zip(weights(method), before, strict=True):
        assert torch.equal(ours, theirs)


def test_the_first_layers_start_anew_once_so_many_rounds_after_the_buffer_filled(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, reset_after_rounds=3, generator_lr=1e-9, latent_lr=1e-9)
    changed = []
    for number in range(12):
        context.warmed_up = number >= 2
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
    context.warmed_up = True
    for _ in range(4):
        method.round(context)
    for ours, theirs in zip(before, weights(method), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)


def test_a_restored_method_goes_on_with_the_same_images(
    config: SynthesizerFile, context: Context
) -> None:
    context.warmed_up = True
    method = prepared(config, context)
    for _ in range(3):
        method.round(context)
    state, rng = copy.deepcopy(method.state_dict()), context.generator.get_state()
    expected = [method.round(context) for _ in range(2)]
    context.generator.set_state(rng)
    restored = prepared(config, context, state=state)
    for batch in expected:
        again = restored.round(context)
        assert torch.equal(again.images, batch.images)
        assert again.losses == batch.losses
    assert restored.rounds_warmed_up == 5


def test_a_state_survives_a_file_that_may_hold_no_code(
    config: SynthesizerFile, context: Context, tmp_path: Any
) -> None:
    method = prepared(config, context)
    method.round(context)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    restored = prepared(config, context, state=state)
    assert all(map(torch.equal, weights(restored), weights(method)))


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
    assert not method.requirements(config).teacher_features


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
