from __future__ import annotations

import torch
from tiny_teachers import CLASSES, bn_cnn, plain_cnn

from buffer.models import NormalizedModel
from synthesizer.teacher import Teacher

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_a_teacher_is_frozen_and_in_eval_mode() -> None:
    teacher = Teacher(NormalizedModel(bn_cnn().train(), MEAN, STD), classes=CLASSES)
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.classes == CLASSES


def test_looking_at_images_changes_nothing_in_the_teacher() -> None:
    teacher = Teacher(NormalizedModel(bn_cnn(), MEAN, STD), classes=CLASSES)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    images = torch.rand(5, 3, 8, 8, requires_grad=True)
    logits, calls = teacher.forward_with_statistics(images)
    (logits.sum() + calls[0].batch.mean.sum()).backward()
    assert images.grad is not None
    assert all(torch.equal(v, before[n]) for n, v in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_the_teacher_normalises_images_itself() -> None:
    network = bn_cnn().eval()
    teacher = Teacher(NormalizedModel(network, MEAN, STD), classes=CLASSES)
    images = torch.rand(5, 3, 8, 8)
    by_hand = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(teacher.logits(images), network(by_hand))


def test_logits_are_the_same_with_and_without_statistics() -> None:
    teacher = Teacher(NormalizedModel(bn_cnn(), MEAN, STD), classes=CLASSES)
    images = torch.rand(5, 3, 8, 8)
    logits, calls = teacher.forward_with_statistics(images)
    assert torch.equal(logits, teacher.logits(images))
    assert len(calls) == len(teacher.layers) == 2
    for call, layer in zip(calls, teacher.layers, strict=True):
        assert call.running.mean is layer.running_mean


def test_a_teacher_without_batchnorm_has_no_moments() -> None:
    teacher = Teacher(NormalizedModel(plain_cnn(), MEAN, STD), classes=CLASSES)
    logits, calls = teacher.forward_with_statistics(torch.rand(2, 3, 8, 8))
    assert logits.shape == (2, CLASSES)
    assert calls == []
