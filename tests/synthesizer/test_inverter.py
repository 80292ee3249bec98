from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from tiny_teachers import plain_cnn

from buffer.errors import ConfigError, ModelError
from buffer.models import NormalizedModel, build
from buffer.version import Version
from synthesizer.config import SynthesizerFile
from synthesizer.inverter import Inverter, build_method, judge, validate
from synthesizer.methods import Context, Requirements

Configure = Callable[..., SynthesizerFile]
BORN = Version(2, 30)


@pytest.fixture
def inverter(config: SynthesizerFile, context: Context) -> Inverter:
    method = build_method(config)
    method.prepare(context)
    return Inverter(method, context, "fast_meta", "synthesizer-7", probe_share=0.125)


def test_a_sample_carries_where_it_comes_from(inverter: Inverter) -> None:
    samples = inverter.round(born=BORN).samples
    assert len(samples) == 16
    for sample in samples:
        assert sample.producer == "synthesizer-7"
        assert sample.method == "fast_meta"
        assert sample.born == BORN
        assert sample.image.shape == (3, 8, 8)
        assert sample.image.dtype == np.uint8
        assert sample.image.flags.c_contiguous
    assert {sample.target_label for sample in samples} == {0, 1, 2, 3}


def test_everything_said_of_a_sample_is_of_the_stored_image(
    inverter: Inverter, student: NormalizedModel
) -> None:
    inverter.context.student = student
    for sample in inverter.round(born=BORN).samples:
        image = torch.from_numpy(sample.image)[None] / 255.0
        teacher = inverter.context.teacher.logits(image).numpy()[0]
        logits = sample.targets["logits"]
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, teacher, atol=1e-4)
        assert sample.predicted_class == teacher.argmax()
        assert sample.confidence == pytest.approx(softmax(teacher).max(), abs=1e-4)
        p, q = log_softmax(teacher), log_softmax(student(image).numpy()[0])
        kl = float((np.exp(p) * (p - q)).sum())
        assert kl > 1e-4
        assert sample.disagreement == pytest.approx(kl, abs=1e-4)


def test_stored_logits_do_not_suffer_from_autocast(inverter: Inverter) -> None:
    inverter.context.autocast = torch.bfloat16
    for sample in inverter.round(born=BORN).samples:
        image = torch.from_numpy(sample.image)[None] / 255.0
        exact = inverter.context.teacher.logits(image).numpy()[0]
        np.testing.assert_allclose(sample.targets["logits"], exact, atol=1e-4)


def test_without_a_student_all_samples_enter_alike(inverter: Inverter) -> None:
    assert {sample.disagreement for sample in inverter.round(born=BORN).samples} == {1.0}


def test_a_student_equal_to_the_teacher_gives_no_negative_priority(inverter: Inverter) -> None:
    inverter.context.student = inverter.context.teacher.model
    disagreements = [sample.disagreement for sample in inverter.round(born=BORN).samples]
    assert min(disagreements) >= 0.0
    assert max(disagreements) < 1e-5


def test_judging_changes_neither_network_and_keeps_no_graph(
    context: Context, student: NormalizedModel
) -> None:
    context.student = student
    stored = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    judged = judge(stored, context)
    assert not any(value.requires_grad for value in judged)
    assert not student.training


@pytest.mark.parametrize(("share", "per_round"), [(0.125, [2, 2, 2]), (0.04, [0, 1, 0, 1, 1])])
def test_the_share_of_probes_is_kept_over_the_rounds(
    share: float, per_round: list[int], inverter: Inverter
) -> None:
    inverter.probe_share = share
    counts, expected = [], []
    for _ in per_round:
        expected.append(16 - inverter.expected_training(16))
        samples = inverter.round(born=BORN).samples
        counts.append(sum(sample.split == "probe" for sample in samples))
    assert counts == expected == per_round


def test_probes_are_chosen_anywhere_in_the_batch(inverter: Inverter) -> None:
    places = {
        place
        for _ in range(12)
        for place, sample in enumerate(inverter.round(born=BORN).samples)
        if sample.split == "probe"
    }
    assert len(places) > 8


def test_no_sample_is_a_probe_where_the_share_is_zero(inverter: Inverter) -> None:
    inverter.probe_share = 0.0
    assert {sample.split for sample in inverter.round(born=BORN).samples} == {"train"}


def test_a_restored_inverter_makes_the_same_samples(
    inverter: Inverter, config: SynthesizerFile, context: Context
) -> None:
    inverter.probe_share = 0.04
    inverter.round(born=BORN)
    state = copy.deepcopy(inverter.state_dict())
    expected = [inverter.round(born=BORN) for _ in range(2)]
    method = build_method(config)
    restored = Inverter(method, context, "fast_meta", "synthesizer-7", probe_share=0.04)
    restored.load_state_dict(state)
    method.prepare(context)
    for before in expected:
        after = restored.round(born=BORN)
        assert after.losses == before.losses
        for one, two in zip(before.samples, after.samples, strict=True):
            np.testing.assert_array_equal(one.image, two.image)
            assert one.split == two.split


def test_a_valid_configuration_is_accepted(config: SynthesizerFile) -> None:
    validate(config, build(config.teacher))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher": {"image_shape": [3, 10, 8]}},
            r"teacher.image_shape \(\(3, 10, 8\)\): height and width must be divisible by 4",
        ),
        (
            {"teacher": {"factory": "tiny_teachers:plain_cnn", "weights": "unused"}},
            r"synthesizer.method \(fast_meta\): needs the teacher's batchnorm_moments, but "
            r"tiny_teachers:plain_cnn has no BatchNorm layer .* synthesizer.bn_weight 0 says",
        ),
        (
            {"buffer": {"probe_share": 0.6}},
            r"buffer.probe_capacity \(8\) is below the 10 probes of one batch",
        ),
        (
            {"synthesizer": {"kwargs": {"inner_steps": 7}}},
            r"synthesizer.kwargs.inner_steps \(7\) has no published learning rates",
        ),
    ],
)
def test_impossible_configurations_are_refused(
    changes: dict[str, Any], message: str, configure: Configure
) -> None:
    config = configure(**changes)
    teacher = build(config.teacher.model_copy(update={"weights": None}))
    with pytest.raises(ConfigError, match=message):
        validate(config, teacher)


class Picky:
    """A method from outside that works with little."""

    needs = Requirements(
        selectors=frozenset({"uniform"}),
        label_modes=frozenset({"argmax"}),
        targets=frozenset({"logits", "boxes"}),
        teacher_features=frozenset({"batchnorm_moments", "penultimate"}),
        refused=("synthesizer.batch_size (16): too few for this method",),
    )

    def __init__(self, config: SynthesizerFile) -> None: ...

    def requirements(self, config: SynthesizerFile) -> Requirements:
        return self.needs


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> Configure:
    import tiny_teachers

    monkeypatch.setattr(tiny_teachers, "Picky", Picky, raising=False)

    def make(**changes: Any) -> SynthesizerFile:
        return configure(synthesizer={"method": "tiny_teachers:Picky", "kwargs": {}, **changes})

    return make


def test_all_requirements_of_a_method_are_checked_at_once(picky: Configure) -> None:
    config = picky()
    with pytest.raises(ConfigError) as refused:
        validate(config, build(config.teacher))
    assert str(refused.value).splitlines() == [
        "buffer.selector (prioritized): tiny_teachers:Picky works with uniform only",
        "synthesizer.label_mode (target): tiny_teachers:Picky works with argmax only",
        "synthesizer.method (tiny_teachers:Picky): needs the target boxes stored with each image, "
        "there would be only logits",
        "synthesizer.method (tiny_teachers:Picky): needs the teacher's penultimate, of a teacher "
        "there would be only batchnorm_moments",
        "synthesizer.batch_size (16): too few for this method",
    ]


@pytest.mark.parametrize("field", [field.name for field in fields(Requirements)])
def test_each_requirement_alone_is_enough_to_be_refused(
    field: str, picky: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = picky()
    violated = getattr(Picky.needs, field)
    monkeypatch.setattr(Picky, "needs", Requirements())
    teacher = NormalizedModel(plain_cnn(), (0.5,) * 3, (0.25,) * 3)
    validate(config, teacher)
    monkeypatch.setattr(Picky, "needs", replace(Picky.needs, **{field: violated}))
    with pytest.raises(ConfigError, match=r"works with|too few|target boxes|has no BatchNorm"):
        validate(config, teacher)


def test_settings_a_foreign_method_does_not_take_are_refused(picky: Configure) -> None:
    config = picky(kwargs={"speed": 3})
    with pytest.raises(
        ConfigError,
        match=r"synthesizer.kwargs \({'speed': 3}\): tiny_teachers:Picky cannot take them",
    ):
        validate(config, build(config.teacher))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fast_metal",
            r"synthesizer.method \(fast_metal\): not one of fast_meta, noisy_layer "
            r"and not an",
        ),
        ("tiny_teachers:Pick", r"tiny_teachers:Pick: tiny_teachers has no Pick"),
    ],
)
def test_an_unknown_method_is_refused(name: str, message: str, configure: Configure) -> None:
    with pytest.raises(ModelError, match=message):
        build_method(configure(synthesizer={"method": name}))
