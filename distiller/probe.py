"""Measures the student on samples it never trains on: where the controller's reward comes from.

Letters in shapes: B batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from buffer.interface import Replay
from buffer.progress import ProbeReport
from buffer.sample import Batch
from buffer.version import Version
from distiller.augment import to_unit
from distiller.losses import kl_divergence
from distiller.resident import to_device


@dataclass(frozen=True)
class Measurement:
    """The student on one set of probe samples."""

    kl: float
    """Mean KL(teacher || student) at T = 1, nats."""
    agreement: float
    """Share of equal argmax, in [0, 1]."""
    at_seconds: float
    """Training time when it was made."""


@dataclass(frozen=True)
class _Period:
    """The members measured under one setting of the sampling parameters."""

    params_version: Version
    images: Tensor
    teacher_logits: Tensor
    before: Measurement


class ProbeMeter:
    """Measures the same probe members before and after training under one setting.

    When the sampling parameters change, the newest members are fetched and measured; after that the
    same members are measured again and again, until the parameters change once more. Members
    without cached ``logits``, and an empty probe set, give no report.

    Args:
        replay: where the members come from.
        student: takes images in [0, 1]; measured in eval mode, without augmentation, in float32,
            and left in the mode it was in.
        members: how many at most.
        interval_seconds: training time between measurements.
        device: where the student is.
    """

    def __init__(
        self,
        replay: Replay,
        student: nn.Module,
        *,
        members: int,
        interval_seconds: float,
        device: torch.device,
    ) -> None:
        self._replay = replay
        self._student = student
        self._members = members
        self._interval_seconds = interval_seconds
        self._device = device
        self._period: _Period | None = None
        self._due_seconds = 0.0
        self.report: ProbeReport | None = None

    def update(self, params_version: Version, *, now_seconds: float) -> None:
        """Measures if it is time to; ``report`` is the newest complete pair of measurements.

        Args:
            params_version: the sampling parameters the latest batch was drawn under.
            now_seconds: training time, evaluation excluded.

        Raises:
            BufferUnavailable: the members could not be fetched; the next call that is due will try.
        """
        if self._members == 0:
            return
        if self._period is None or params_version != self._period.params_version:
            if self._period is None and now_seconds < self._due_seconds:
                return
            self._begin(params_version, now_seconds)
        elif now_seconds >= self._due_seconds:
            self._measure_again(self._period, now_seconds)

    def _begin(self, params_version: Version, now_seconds: float) -> None:
        self._due_seconds = now_seconds + self._interval_seconds
        self._period = None  # if the members cannot be had, they are asked for when it is due again
        batch: Batch = self._replay.probe(self._members)
        if "logits" not in batch.targets or len(batch.images) == 0:
            return
        images = to_device(batch.images, self._device)
        logits = to_device(batch.targets["logits"], self._device)
        before = measure(self._student, images, logits, now_seconds=now_seconds)
        self._period = _Period(params_version, images, logits, before)

    def _measure_again(self, period: _Period, now_seconds: float) -> None:
        self._due_seconds = now_seconds + self._interval_seconds
        after = measure(
            self._student, period.images, period.teacher_logits, now_seconds=now_seconds
        )
        self.report = ProbeReport(
            params_version=period.params_version,
            members=len(period.images),
            before_kl=period.before.kl,
            after_kl=after.kl,
            before_agreement=period.before.agreement,
            after_agreement=after.agreement,
            seconds=after.at_seconds - period.before.at_seconds,
        )


def measure(
    student: nn.Module, images: Tensor, teacher_logits: Tensor, *, now_seconds: float
) -> Measurement:
    """One measurement, in eval mode; the student is left in the mode it was in.

    Args:
        student: takes images in [0, 1].
        images: ``[B, C, H, W]`` uint8.
        teacher_logits: ``[B, K]``.
        now_seconds: noted in the result.
    """
    training = student.training
    student.eval()
    with torch.no_grad():
        logits: Tensor = student(to_unit(images).contiguous(memory_format=torch.channels_last))
    student.train(training)
    return Measurement(
        kl=kl_divergence(logits, teacher_logits).mean().item(),
        agreement=(logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean().item(),
        at_seconds=now_seconds,
    )
