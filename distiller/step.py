"""One optimisation step of the student: a drawn batch in, new priorities out.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from buffer.errors import ConfigError, Diverged
from buffer.sample import Batch
from distiller.augment import views
from distiller.average import StudentAverage
from distiller.config import DistillerTable
from distiller.hints import Hints
from distiller.losses import kl_divergence, soft_target_loss, weighted_mean
from distiller.ranks import Ranks
from distiller.resident import ResidentImages, to_device


def precision(device: torch.device, autocast: torch.dtype | None) -> Any:
    """The context in which networks compute; ``None`` stays in float32."""
    if autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=autocast)


@dataclass(frozen=True)
class StepResult:
    """What one step measured."""

    loss: float
    """Importance-weighted training loss."""
    kl: NDArray[np.float32]
    """``[B]`` KL(teacher || student) at T = 1 before the step, nats."""
    agreement: float
    """Share of equal argmax before the step, in [0, 1]."""
    priorities: NDArray[np.float64]
    """``[B]`` new priorities of the drawn samples: raw importance weight times ``kl``."""


class DistillationStep:
    """Trains the student on one batch at a time. Owns the optimiser.

    Args:
        student: takes images in [0, 1]; may be wrapped for data-parallel training.
        teacher: frozen, in eval mode; takes images in [0, 1].
        table: batch size, temperature, optimiser, augmentation.
        device: where both networks are.
        autocast: type of the networks' computations; ``None`` for float32.
        generator: on ``device``; draws crops and flips.
        ranks: those that step together with this one.
        resident: of ``device``; where drawn images are kept.
        hints: watches both networks; its losses are added.
        average: takes the student in after each step.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        table: DistillerTable,
        *,
        device: torch.device,
        autocast: torch.dtype | None,
        generator: torch.Generator,
        ranks: Ranks | None = None,
        resident: ResidentImages | None = None,
        hints: Hints | None = None,
        average: StudentAverage | None = None,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self._table = table
        self._device = device
        self._autocast = autocast
        self._ranks = ranks or Ranks()
        self.resident = resident or ResidentImages(0, device)
        self._hints, self._average = hints, average
        self.generator = generator
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            lr=table.learning_rate,
            momentum=table.momentum,
            weight_decay=table.weight_decay,
            fused=True,
        )

    def __call__(
        self, batch: Batch, *, learning_rate: float, crop: tuple[int, int] | None = None
    ) -> StepResult:
        """One step.

        Args:
            batch: B drawn samples; with ``teacher_logits: cached`` they carry ``logits``.
            learning_rate: of this step.
            crop: height and width that both networks see; default: the images' own, moved by up to
                ``crop_padding``.

        Raises:
            Diverged: the loss of a rank is not finite; raised on all of them, the student's
                weights stay what they were.
            ConfigError: see :meth:`check`.
        """
        self.check(batch)
        images = self._images(batch, crop)
        weights = to_device(batch.weights, self._device).float()
        with self._hints or contextlib.nullcontext():
            teacher_logits = self._teacher_logits(batch, images)
            with precision(self._device, self._autocast):
                student_logits = self.student(images)
        losses = soft_target_loss(
            student_logits, teacher_logits, temperature=self._table.temperature
        )
        if self._hints is not None:
            losses = losses + self._table.hint_weight * self._hints.losses()
        loss = weighted_mean(losses, weights, mean=batch.weight_mean)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        result = _measure(loss.detach(), student_logits.detach(), teacher_logits, batch.weights)
        self._check_loss(result.loss, learning_rate)
        self._descend(learning_rate)
        return result

    def check(self, batch: Batch) -> None:
        """Whether a step can be made with a batch.

        Why this can be asked beforehand: a rank that finds out in the middle of a step leaves the
        others waiting for its gradients.

        Raises:
            ConfigError: logits are to be cached, and the batch carries none.
        """
        if self._table.teacher_logits == "cached" and "logits" not in batch.targets:
            raise ConfigError(
                "distiller.teacher_logits (cached): the drawn samples carry no logits, there is "
                "nothing to learn from; set recompute"
            )

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state under ``optimizer``, the generator's under ``augmentation``."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "augmentation": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, same_crops: bool) -> None:
        """Goes on from :meth:`state_dict`, with the momentum and the weight decay of now.

        Args:
            state: of a step with such a student.
            same_crops: whether the images are augmented as they would have been next; they are not
                on another kind of device, whose generators have other states.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(momentum=self._table.momentum, weight_decay=self._table.weight_decay)
        if same_crops and len(state["augmentation"]) == len(self.generator.get_state()):
            self.generator.set_state(state["augmentation"])

    def _check_loss(self, value: float, learning_rate: float) -> None:
        losses = [row[0] for row in self._ranks.gather([value])]
        wrong = [loss for loss in losses if not math.isfinite(loss)]
        if wrong:
            raise Diverged(
                f"distiller.learning_rate ({self._table.learning_rate:g}): the loss is {wrong[0]} "
                f"at a rate of {learning_rate:g}, the student cannot recover"
            )

    def _images(self, batch: Batch, crop: tuple[int, int] | None) -> Tensor:
        return views(
            self.resident.of(batch),
            padding=self._table.crop_padding,
            flip=self._table.flip,
            mixup=self._table.mixup,
            generator=self.generator,
            size=crop,
        )

    def _teacher_logits(self, batch: Batch, images: Tensor) -> Tensor:
        if self._table.teacher_logits == "cached":
            return to_device(batch.targets["logits"], self._device)
        with torch.no_grad(), precision(self._device, self._autocast):
            logits: Tensor = self.teacher(images)
        return logits

    def _descend(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self._average is not None:
            self._average.update()


def _measure(
    loss: Tensor, student_logits: Tensor, teacher_logits: Tensor, weights: NDArray[np.float64]
) -> StepResult:
    kl = kl_divergence(student_logits, teacher_logits)
    agreement = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean()
    # One copy, for which a GPU is waited for once; it has the backward pass to do by now.
    found = torch.cat([torch.stack([loss, agreement]), kl]).cpu().numpy()
    return StepResult(
        loss=float(found[0]),
        kl=found[2:],
        agreement=float(found[1]),
        priorities=weights * found[2:].astype(np.float64),
    )
