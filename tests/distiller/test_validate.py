from __future__ import annotations

import re

import numpy as np
import pytest
import safetensors.torch
from torch import nn

from buffer.errors import ConfigError, ModelError
from distiller.validate import check_networks, validate


def test_a_sound_configuration_passes(make_config, tmp_path):
    path = tmp_path / "test.npz"
    np.savez(path, images=np.zeros((3, 8, 8), np.uint8), labels=np.array([0, 5, 9]))
    validate(make_config(f"evaluation.data={path}"))


def test_cached_logits_pass_without_augmentation(make_config):
    validate(make_config("distiller.teacher_logits=cached", "distiller.crop_padding=0"))


@pytest.mark.parametrize(
    ("assignments", "complaint"),
    [
        (
            ("buffer.capacity=10000", "distiller.batch_size=4097"),
            "distiller.batch_size (4097) exceeds 4096: the buffer answers no larger draw",
        ),
        (
            ("distiller.batch_size=65",),
            "buffer.capacity (64) is smaller than a batch (distiller.batch_size 65)",
        ),
        (
            ("distiller.batch_size=33",),
            "buffer.min_size_to_sample (32) is smaller than a batch (distiller.batch_size 33)",
        ),
        (
            ("distiller.teacher_logits=cached",),
            "distiller.teacher_logits (cached) with crop_padding (1), flip (False) and mixup (0)",
        ),
        (
            ("distiller.teacher_logits=cached", "distiller.crop_padding=0", "distiller.flip=true"),
            "distiller.teacher_logits (cached) with crop_padding (0), flip (True) and mixup (0)",
        ),
        (
            ("distiller.teacher_logits=cached", "distiller.crop_padding=0", "distiller.mixup=0.5"),
            "distiller.teacher_logits (cached) with crop_padding (0), flip (False) and mixup (0.5)",
        ),
        (
            (
                "distiller.teacher_logits=cached",
                "distiller.crop_padding=0",
                "distiller.first_crop=0.5",
            ),
            "distiller.first_crop (0.5) with teacher_logits (cached): stored logits are of whole",
        ),
        (
            ("distiller.teacher_logits=cached", "distiller.hint_layers=[features.0]"),
            "distiller.hint_layers (features.0) with teacher_logits (cached): the teacher sees no",
        ),
        (
            ("distiller.gpus=0.5", "distiller.workers=2"),
            "distiller.gpus (0.5) with 2 workers: two of them would be put on one GPU",
        ),
        (
            ("evaluation.data=/none.npz",),
            "evaluation.data (/none.npz): there is no such file",
        ),
    ],
)
def test_impossible_settings_are_refused(make_config, assignments, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        validate(make_config(*assignments))


def test_test_data_from_an_unknown_function_is_refused(make_config):
    with pytest.raises(ModelError, match="there is no module nowhere"):
        validate(make_config("evaluation.data=nowhere:data"))


def test_networks_that_fit_their_specification_pass(make_config):
    check_networks(make_config())


def rigid(num_classes: int = 10) -> nn.Module:
    """Takes images of one size only."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_networks_that_cannot_take_crops_are_refused(make_config, tmp_path, whose):
    safetensors.torch.save_file(rigid().state_dict(), tmp_path / "rigid.safetensors")
    assignments = [f"{whose}.factory={__name__}:rigid", f"{whose}.kwargs={{}}"]
    if whose == "teacher":
        assignments.append(f"teacher.weights={tmp_path / 'rigid.safetensors'}")
    check_networks(make_config(*assignments))
    message = rf"distiller.first_crop \(0.5\): .* {whose}.image_shape .* cannot take .*; set 1"
    with pytest.raises(ConfigError, match=message):
        check_networks(make_config(*assignments, "distiller.first_crop=0.5"))


@pytest.mark.parametrize(
    ("kind", "width"),
    [("features", 4), ("attention", 4), ("attention", 5)],
)
def test_layers_that_can_be_compared_pass(make_config, kind, width):
    hints = ["distiller.hint_layers=[features.0]", f"distiller.hints={kind}"]
    check_networks(make_config(*hints, f"student.kwargs={{width: {width}}}"))


class Idle(nn.Sequential):
    """Has a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.aside = nn.ModuleList([nn.ReLU()])

    def forward(self, x):
        return self[1](self[0](x))


def idle(num_classes: int = 10) -> nn.Module:
    return Idle()


def test_a_layer_that_is_not_called_is_refused(make_config, tmp_path):
    safetensors.torch.save_file(idle().state_dict(), tmp_path / "idle.safetensors")
    networks = [f"{whose}.factory={__name__}:idle" for whose in ("teacher", "student")]
    config = make_config(
        *(*networks, "teacher.kwargs={}", "student.kwargs={}"),
        f"teacher.weights={tmp_path / 'idle.safetensors'}",
        "distiller.hint_layers=[aside]",
    )
    with pytest.raises(ConfigError, match=r"hint_layers \(aside\): teacher or student does not"):
        check_networks(config)


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        ("features", "layer9", r"\(layer9\): the teacher has no layer of this name"),
        (
            "features",
            "features.0",
            r"\(features.0\): its outputs .* of one shape \(or set attention",
        ),
        ("attention", "linear", r"\(linear\): its outputs .* attention cannot be compared"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(make_config, kind, layer, message):
    hints = [f"distiller.hint_layers=[{layer}]", f"distiller.hints={kind}"]
    with pytest.raises(ConfigError, match=rf"distiller.hint_layers {message}"):
        check_networks(make_config(*hints, "student.kwargs={width: 5}"))


def test_a_student_of_another_number_of_outputs_is_refused(make_config):
    config = make_config("student.kwargs={width: 2, num_classes: 3}")
    with pytest.raises(ModelError, match=r"student\.classes \(10\): .* returns \(2, 3\)"):
        check_networks(config)


def test_a_teacher_that_would_have_to_be_made_first_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"teacher\.weights \(a\.b:c\) is a function"):
        check_networks(make_config("teacher.weights=a.b:c"))
