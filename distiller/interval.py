"""Means and quantiles of the training between two reports.

Letters in shapes: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from buffer.sample import Batch
from distiller.step import StepResult

QUANTILES = (0.1, 0.5, 0.9)


class IntervalSummary(TypedDict):
    """The fields of a progress report that speak of the last interval."""

    loss: float
    kl_mean: float
    kl_quantiles: tuple[float, float, float]
    agreement: float
    ess_ratio: float
    mean_age: float


def ess_ratio(weights: NDArray[np.float64]) -> float:
    """Effective sample size of importance weights over the batch size.

    ``(sum w)^2 / (B sum w^2)``: 1 for equal weights, 1 / B if one outweighs all others (Kish 1965).

    Args:
        weights: ``[B]``, positive.

    Returns:
        In (0, 1].
    """
    return float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))


@dataclass
class Interval:
    """Collects steps until they are summarised; an interval without steps repeats the last one."""

    _losses: list[float] = field(default_factory=list)
    _kls: list[NDArray[np.float32]] = field(default_factory=list)
    _agreements: list[float] = field(default_factory=list)
    _ess_ratios: list[float] = field(default_factory=list)
    _ages: list[float] = field(default_factory=list)
    _last: IntervalSummary = field(
        default_factory=lambda: IntervalSummary(
            loss=0.0,
            kl_mean=0.0,
            kl_quantiles=(0.0, 0.0, 0.0),
            agreement=0.0,
            ess_ratio=1.0,
            mean_age=0.0,
        )
    )

    def add(self, batch: Batch, result: StepResult) -> None:
        """Adds one step."""
        self._losses.append(result.loss)
        self._kls.append(result.kl)
        self._agreements.append(result.agreement)
        self._ess_ratios.append(ess_ratio(batch.weights))
        self._ages.append(float(batch.ages.mean()))

    def summarise(self) -> IntervalSummary:
        """What the steps since the last call had in common; begins a new interval."""
        if not self._losses:
            return self._last
        kls = np.concatenate(self._kls)
        low, middle, high = np.quantile(kls, QUANTILES).tolist()
        self._last = IntervalSummary(
            loss=float(np.mean(self._losses)),
            kl_mean=float(kls.mean()),
            kl_quantiles=(low, middle, high),
            agreement=float(np.mean(self._agreements)),
            ess_ratio=float(np.mean(self._ess_ratios)),
            mean_age=float(np.mean(self._ages)),
        )
        for values in (self._losses, self._kls, self._agreements, self._ess_ratios, self._ages):
            values.clear()
        return self._last
