"""How a method whose generator descends the objective makes a round of images.

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from buffer.errors import ConfigError, Diverged
from buffer.parsing import Table, explain
from synthesizer.augment import augment
from synthesizer.config import SynthesizerFile, SynthesizerTable
from synthesizer.generators import check_image_shape
from synthesizer.methods import Context, Requirements, SampleBatch
from synthesizer.objective import blend, objective
from synthesizer.statistics import LayerMoments

BETAS = (0.5, 0.999)
"""Of Adam, in the scripts of Fast-DFKD and of NAYER."""
Settings = TypeVar("Settings", bound=Table)


def settings_of(table: type[Settings], kwargs: Mapping[str, Any]) -> Settings:
    """``synthesizer.kwargs`` as a method's own table.

    Raises:
        ConfigError: one line per impossible setting.
    """
    try:
        return table.model_validate(kwargs)
    except ValidationError as error:
        lines = explain(error).splitlines()
        raise ConfigError("\n".join(f"synthesizer.kwargs.{line}" for line in lines)) from error


def needs(config: SynthesizerFile) -> Requirements:
    """Any label mode; BatchNorm layers only if their moments are weighted."""
    try:
        check_image_shape(config.teacher.image_shape)
        refused: tuple[str, ...] = ()
    except ConfigError as error:
        refused = (str(error),)
    features = {"batchnorm_moments"} if config.synthesizer.bn_weight > 0 else set[str]()
    return Requirements(teacher_features=frozenset(features), refused=refused)


class Step(NamedTuple):
    """One step, before its update."""

    images: Tensor
    """``[B, C, H, W]`` in [0, 1], detached, not augmented."""
    losses: dict[str, float]
    """``total``, and each active term before its weight."""
    moments: list[LayerMoments]
    """Batch moments at each BatchNorm call, detached."""
    modulation: Tensor
    """Scalar: the mean of phi."""


class Descent:
    """The steps of a round, of which the best one's images leave.

    Moments are matched together with those of earlier rounds, see :func:`objective.blend`; a round
    that is not ended leaves them what they were.

    Args:
        table: weights of the terms, augmentation, label mode.
        momentum: share of earlier rounds in the moments that are matched.
        rate: learning rate of the generator, for who is told that it was too high.
    """

    def __init__(self, table: SynthesizerTable, *, momentum: float, rate: float) -> None:
        self._table, self._momentum, self._rate = table, momentum, rate
        self._kept: Step | None = None
        self._taken = 0
        self.averages: list[LayerMoments] | None = None
        """Moments of earlier rounds; ``None`` before the first."""

    def begin(self) -> None:
        """A round."""
        self._kept, self._taken = None, 0

    def step(self, make: Callable[[], Tensor], labels: Tensor, context: Context) -> None:
        """Forward and backward: leaves gradients on all that ``make`` makes its images of.

        Args:
            make: images ``[B, C, H, W]`` in [0, 1]; called under autocast.
            labels: ``[B]`` int64: classes asked for.
            context: teacher, student, sampling parameters, class counts.

        Raises:
            Diverged: the loss is not finite. Of any step: each changes the generator.
        """
        table, rng, enabled = self._table, context.generator, context.autocast is not None
        with torch.autocast(context.device.type, dtype=context.autocast, enabled=enabled):
            images = make()
            result = objective(
                augment(images, rng, padding=table.crop_padding, flip=table.flip),
                labels,
                context,
                table,
                averages=self.averages,
                momentum=self._momentum,
            )
        result.total.backward()  # type: ignore[no-untyped-call]
        terms = {"total": result.total.detach(), **result.parts}
        # One copy, for which a GPU is waited for once.
        losses = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        self._taken += 1
        self._check_finite(losses)
        if self._kept is None or losses["total"] < self._kept.losses["total"]:
            self._kept = Step(images.detach(), losses, result.moments, result.modulation)

    def end(self, labels: Tensor) -> SampleBatch:
        """The images of the step with the lowest loss; its moments join the earlier rounds'."""
        kept, asked = self._kept, self._table.label_mode == "target"
        assert kept is not None
        self.averages = blend(kept.moments, self.averages, self._momentum)
        return SampleBatch(
            images=kept.images.mul(255.0).round_().to(torch.uint8),
            target_labels=labels if asked else torch.full_like(labels, -1),
            members=torch.zeros_like(labels),
            losses=kept.losses,
            modulation=float(kept.modulation),
        )

    def state_dict(self) -> list[tuple[Tensor, Tensor]] | None:
        """The moments, in plain containers."""
        averages = self.averages
        return None if averages is None else [(each.mean, each.variance) for each in averages]

    def load_state_dict(self, state: Any, device: torch.device) -> None:
        """Goes on from what :meth:`state_dict` was."""
        self.averages = state and [LayerMoments(*(m.to(device) for m in pair)) for pair in state]

    def _check_finite(self, losses: Mapping[str, float]) -> None:
        if not math.isfinite(losses["total"]):
            terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
            raise Diverged(
                f"synthesizer.kwargs.generator_lr ({self._rate:g}): the loss of inner step "
                f"{self._taken} is not finite ({terms}), its images would be arbitrary and the "
                "generator cannot recover"
            )
