"""The student's weights, averaged over its latest steps: what is measured, published and saved.

Why: at a learning rate that teaches fast the weights jump around what they approach, and a student
taken at any moment is worse than what it has learned. Their average is there already (Polyak and
Juditsky 1992), so that a training that ends early, the adversary of the synthesizers and the
controller's reward need not wait for the rate to fall.

Why a share of the steps and not a number of them: as training goes on weights change more slowly,
and how many steps a budget allows is known only at its end (polynomial-decay averaging, Shamir and
Zhang 2013, https://arxiv.org/abs/1212.1824).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from buffer.models import NormalizedModel, load_weights


class StudentAverage:
    """A second student, whose weights and BatchNorm moments are averages of the first one's.

    After step n it moves towards the first one by ``1 / (1 + share (n - 1))`` of the way: a step's
    weight in the average is in proportion to ``k^(1/share - 1)``, k its number.

    Args:
        student: the one that is trained.
        model: of the same kind and on the same device; becomes the average, in eval mode.
        share: of the steps so far that the average reaches back; 0 follows the student exactly.
    """

    def __init__(self, student: NormalizedModel, model: NormalizedModel, *, share: float) -> None:
        self.model = model.eval().requires_grad_(False)
        self._student, self._share = student, share
        self._steps = 0
        self._move(1.0)

    def update(self) -> None:
        """Takes in the student as it is after a step."""
        self._move(1.0 / (1.0 + self._share * self._steps))
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights under the network's own names, and how many steps they are of."""
        return {"weights": self.model.network.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`.

        Raises:
            ModelError: the weights do not fit the student.
        """
        load_weights(self.model.network, state["weights"], origin="the checkpoint's average")
        self._steps = state["steps"]

    @torch.no_grad()
    def _move(self, weight: float) -> None:
        """``average += weight (student - average)``; whole numbers are the student's."""
        averaged: list[Tensor] = []
        latest: list[Tensor] = []
        for ours, theirs in zip(_tensors(self.model), _tensors(self._student), strict=True):
            if ours.is_floating_point():
                averaged.append(ours)
                latest.append(theirs)
            else:
                ours.copy_(theirs)
        get_ema_multi_avg_fn(1.0 - weight)(averaged, latest, self._steps)  # type: ignore[no-untyped-call]


def _tensors(model: NormalizedModel) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
