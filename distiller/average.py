"""The student's weights, averaged over its latest steps: what is measured, published and saved.

Why: at a learning rate that teaches fast the weights jump around what they approach, and a student
taken at any moment is worse than what it has learned. Their average is there already (Polyak and
Juditsky 1992; as a moving one: Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780), so
that a training that ends early and the synthesizers' adversary need not wait for the rate to fall,
and the controller's reward is not lost among jumps.

Why over few steps: an average lags behind by as many. A reward would be of earlier decisions, and
an adversary of faults that are mended.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from buffer.models import NormalizedModel

MOMENTS = ("running_mean", "running_var")
"""Buffers that belong to the weights they were measured with; all others are taken as they are."""


class StudentAverage:
    """A second student, whose weights and BatchNorm moments are averages of the first one's.

    After step n it moves towards the first one by ``1 / min(n, steps)`` of the way: the mean of the
    first steps, then a moving average.

    Args:
        student: the one that is trained.
        model: of the same kind and on the same device; becomes the average, in eval mode.
        steps: about how many the average reaches back, >= 1; 1 follows the student exactly.
    """

    def __init__(self, student: NormalizedModel, model: NormalizedModel, *, steps: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self._student, self._steps = student, steps
        # Others are made by passes, and no snapshot of a student has them.
        self._saved = frozenset(model.network.state_dict())
        self.taken = 0
        """Steps so far."""
        self._move(1.0)

    def update(self) -> None:
        """Takes in the student as it is after a step."""
        self.taken += 1
        self._move(1.0 / min(self.taken, self._steps))

    @torch.no_grad()
    def _move(self, weight: float) -> None:
        """``average += weight (student - average)``."""
        moved: list[tuple[Tensor, Tensor]] = []
        for ours, theirs, averaged in self._tensors():
            if averaged and weight < 1.0:
                moved.append((ours, theirs))
            else:
                ours.copy_(theirs)
        if moved:
            get_ema_multi_avg_fn(1.0 - weight)(*map(list, zip(*moved, strict=True)), None)  # type: ignore[no-untyped-call]

    def _tensors(self) -> list[tuple[Tensor, Tensor, bool]]:
        """Average, student's, and whether it is averaged, of every tensor that is saved."""
        ours, theirs = self.model.network, self._student.network
        parameters = zip(ours.parameters(), theirs.parameters(), strict=True)
        found: list[tuple[Tensor, Tensor, bool]] = [
            (a, b, a.is_floating_point() or a.is_complex()) for a, b in parameters
        ]
        latest = dict(theirs.named_buffers())
        for name, buffer in ours.named_buffers():
            if name in self._saved:
                found.append((buffer, latest[name], name.endswith(MOMENTS)))
        return found
