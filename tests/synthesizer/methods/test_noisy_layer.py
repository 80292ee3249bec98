from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from buffer.errors import ConfigError, Diverged
from synthesizer.config import SynthesizerFile
from synthesizer.inverter import validate
from synthesizer.methods import Context
from synthesizer.methods.noisy_layer import NoisyLayer, NoisyLayers

Configure = Callable[..., SynthesizerFile]


def prepared(
    config: SynthesizerFile, context: Context, *, state: Any = None, **changes: Any
) -> NoisyLayer:
    method = NoisyLayer(config, **{**config.synthesizer.kwargs, **changes})
    if state is not None:
        method.load_state_dict(state)
    method.prepare(context)
    return method


def weights(method: NoisyLayer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in method.generator.parameters()]


def test_a_layer_maps_each_class_by_weights_of_its_own() -> None:
    layers = NoisyLayers(2, 3, 5, torch.Generator().manual_seed(0))
    latents = layers().unflatten(0, (2, 3))
    # One-hot of three classes, standardised: mean 1/3, deviation sqrt(2)/3.
    own, other = (1 - 1 / 3) / (2**0.5 / 3), (0 - 1 / 3) / (2**0.5 / 3)
    for number in range(2):
        for label in range(3):
            weight, bias = layers.weight[number], layers.bias[number, 0]
            rest = weight.sum(0) - weight[label]
            expected = own * weight[label] + other * rest + bias
            torch.testing.assert_close(latents[number, label], expected)
    assert layers.weight.abs().max() <= 3**-0.5
    assert not torch.equal(layers.weight[0], layers.weight[1])


def test_a_round_gives_all_classes_in_turn(config: SynthesizerFile, context: Context) -> None:
    batch = prepared(config, context).round(context)
    assert batch.images.shape == (16, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.target_labels.tolist() == [0, 1, 2, 3] * 4


@pytest.mark.parametrize("size", [3, 6])
def test_a_round_goes_on_with_the_class_after_the_last_ones(
    size: int, configure: Configure, context: Context
) -> None:
    method = prepared(configure(synthesizer={"batch_size": size}), context)
    batches = [method.round(context) for _ in range(4)]
    labels = torch.cat([batch.target_labels for batch in batches]).tolist()
    assert labels == [0, 1, 2, 3] * size
    assert {len(batch.images) for batch in batches} == {size}


def test_argmax_mode_asks_for_nothing(configure: Configure, context: Context) -> None:
    config = configure(synthesizer={"label_mode": "argmax"})
    assert prepared(config, context).round(context).target_labels.tolist() == [-1] * 16


def test_the_teacher_sees_the_classes_that_were_asked_for(
    configure: Configure, context: Context
) -> None:
    config = configure(
        synthesizer={"bn_weight": 1.0, "task_weight": 5.0, "difficulty": False, "batch_size": 32}
    )
    method = prepared(config, context, inner_steps=10, latent_dim=16, width=16)
    batches = [method.round(context) for _ in range(8)][-4:]
    hits = [
        context.teacher.logits(batch.images / 255.0).argmax(dim=1) == batch.target_labels
        for batch in batches
    ]
    # Chance is 0.25.
    assert torch.stack(hits).float().mean() > 0.75


def test_rounds_differ_though_classes_and_generator_are_the_same(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, generator_lr=1e-9, generator_rounds=None)
    before = weights(method)
    one, two = (method.round(context).images for _ in range(2))
    assert (one.float() - two.float()).abs().mean() > 1.0
    for ours, theirs in zip(before, weights(method), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)


def test_the_generator_starts_anew_after_so_many_rounds(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, generator_rounds=3, generator_lr=1e-9)
    changed = []
    for _ in range(7):
        before = weights(method)[0]
        method.round(context)
        changed.append((before - weights(method)[0]).abs().max().item() > 1e-3)
    assert changed == [False, False, False, True, False, False, True]


def test_a_restored_method_goes_on_with_the_same_images(
    config: SynthesizerFile, context: Context, tmp_path: Any
) -> None:
    method = prepared(config, context, generator_rounds=4)
    for _ in range(3):
        method.round(context)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    rng = context.generator.get_state()
    expected = [method.round(context) for _ in range(3)]
    context.generator.set_state(rng)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    restored = prepared(config, context, state=state, generator_rounds=4)
    for batch in expected:
        again = restored.round(context)
        assert torch.equal(again.images, batch.images)
        assert again.losses == batch.losses


def test_a_generator_that_leaves_the_numbers_is_reported(
    config: SynthesizerFile, context: Context
) -> None:
    method = prepared(config, context, generator_lr=1e38)
    before = copy.deepcopy(method.state_dict())
    message = r"generator_lr \(1e\+38\): the loss of inner step 2 is not finite .* cannot recover"
    with pytest.raises(Diverged, match=message):
        method.round(context)
    assert before["averages"] is method.state_dict()["averages"] is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"inner_steps": 0}, r"synthesizer.kwargs.inner_steps \(0\)"),
        ({"outer": "maml"}, r"synthesizer.kwargs.outer \('maml'\): Extra inputs"),
    ],
)
def test_impossible_settings_are_refused(
    kwargs: dict[str, Any], message: str, config: SynthesizerFile
) -> None:
    with pytest.raises(ConfigError, match=message):
        NoisyLayer(config, **kwargs)


def test_images_it_cannot_make_are_refused(configure: Configure, context: Context) -> None:
    config = configure(teacher={"image_shape": [3, 10, 8]}, synthesizer={"method": "noisy_layer"})
    with pytest.raises(ConfigError, match=r"teacher.image_shape \(\(3, 10, 8\)\)"):
        validate(config, context.teacher.model)
