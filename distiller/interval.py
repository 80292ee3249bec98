"""Means and quantiles of the training between two reports.

Letters: B batch, N items in the buffer, P the probability of an item to be drawn.
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


def concentration(batch: Batch) -> float:
    """An unbiased estimate of ``N sum_i P_i^2`` over all N items of the buffer.

    Since items come with probability P, the sum is the mean of P over draws. 1 if all items are
    drawn alike, N if always the same; its inverse is the effective sample size of the priorities
    over the buffer's size (Kish 1965).
    """
    return float(batch.population * batch.probabilities.mean())


def mean_age(batch: Batch) -> float:
    """The mean age of all items of the buffer, in student steps, estimated from those drawn.

    Weighs each by 1 / P, which undoes that some are drawn more often than others.
    """
    return float(np.average(batch.ages, weights=1.0 / batch.probabilities))


@dataclass
class Interval:
    """Collects steps until they are summarised; an interval without steps repeats the last one."""

    _losses: list[float] = field(default_factory=list)
    _kls: list[NDArray[np.float32]] = field(default_factory=list)
    _agreements: list[float] = field(default_factory=list)
    _concentrations: list[float] = field(default_factory=list)
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
        self._concentrations.append(concentration(batch))
        self._ages.append(mean_age(batch))

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
            ess_ratio=min(1.0, 1.0 / float(np.mean(self._concentrations))),
            mean_age=float(np.mean(self._ages)),
        )
        for values in (self._losses, self._kls, self._agreements, self._concentrations, self._ages):
            values.clear()
        return self._last
