"""Teacher and student as a worker trains with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from buffer.models import NormalizedModel, StateDict, build, load_weights
from distiller.average import StudentAverage
from distiller.config import DistillerFile, DistillerTable
from distiller.hints import Hints
from distiller.ranks import Ranks


@dataclass(frozen=True)
class Pair:
    """Both networks on one device, channels last in memory; they take images in [0, 1]."""

    teacher: NormalizedModel
    """Frozen, in eval mode."""
    student: NormalizedModel
    """In training mode."""
    trained: nn.Module
    """The student as the training step calls it: averages gradients over the ranks."""
    average: StudentAverage
    """The student as others see it."""

    def weights(self) -> StateDict:
        """Those of the student as others see it, under the network's own names."""
        return self.average.model.network.state_dict()

    def load(self, student: StateDict, *, trained: StateDict | None, steps: int) -> None:
        """Goes on with the weights of both students.

        Args:
            student: :meth:`weights`.
            trained: of the one that is trained; default: the same.
            steps: that it has made.

        Raises:
            ModelError: they do not fit.
        """
        load_weights(self.average.model.network, student, origin="the checkpoint")
        load_weights(self.student.network, trained or student, origin="the checkpoint")
        self.average.taken = steps

    def hints(self, table: DistillerTable) -> Hints | None:
        """What watches ``hint_layers`` of both, if there are any."""
        student, teacher, layers = self.student.network, self.teacher.network, table.hint_layers
        return Hints(student, teacher, layers, kind=table.hints) if layers else None


def build_pair(config: DistillerFile, *, ranks: Ranks, device: torch.device) -> Pair:
    """Builds both; the student's initialisation follows ``run.seed``, alike on every rank.

    Raises:
        ModelError: a network cannot be built, or weights do not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        student, averaged = (_placed(build(config.student), device) for _ in range(2))
    teacher = _placed(build(config.teacher), device).eval().requires_grad_(False)
    student.train()
    trained = DistributedDataParallel(student) if ranks.size > 1 else student
    average = StudentAverage(student, averaged, steps=config.distiller.average_steps)
    return Pair(teacher, student, trained, average)


def _placed(model: NormalizedModel, device: torch.device) -> NormalizedModel:
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
