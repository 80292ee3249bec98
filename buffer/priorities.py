"""Pure maths of a draw: priority -> level -> mass -> probability -> importance weight.

Why levels: priorities are kept on a logarithmic scale of 256 steps of ratio 2^(1/4), so that items
of one level, label and insertion cohort (a *cell*) share one mass. A draw then costs a pass over
the non-empty cells instead of one over all items, and any change of the sampling parameters acts at
once. A level's value lies within 9.1 % of every priority it stands for, well below the noise of a
single sample's loss; probabilities and weights are exact for these quantised priorities.

Why a loss divides the weights by their mean over draws and not by the largest possible one, as
Schaul et al. do: the largest belongs to the single least probable item. One image that the student
has fully learnt would scale down the gradient of all others, by a factor that jumps whenever such
an item comes or goes, and a change of the exponents would secretly be one of the learning rate.
The mean is as well known to every client, varies smoothly, and leaves the learning rate its meaning
whatever the exponents are.

Letters in shapes: N items, n any number of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from buffer.params import SamplingParams

EPSILON = 1e-6
"""Added to priorities, so that none is never drawn (Schaul et al. 2016)."""
LEVELS = 256
STEPS_PER_OCTAVE = 4
LEVEL_OF_ONE = 128
"""The level whose value is 1."""
COHORTS_PER_BUFFER = 8
COHORTS = 15
"""Cohorts are numbered modulo this; what is older than all of them is in one more."""
OLDEST_COHORT = COHORTS - 1
"""So many cohorts behind the newest, or more: items of that age are not told apart."""


def level_of(priorities: ArrayLike) -> NDArray[np.uint8]:
    """The level of each priority: ``round(4 log2(priority + 1e-6)) + 128``, clamped to [0, 255].

    Args:
        priorities: ``[n]``, finite, >= 0.

    Returns:
        ``[n]`` levels. Priorities above ``2^31.75`` share the highest.
    """
    shifted = np.asarray(priorities, dtype=np.float64) + EPSILON
    levels = np.rint(STEPS_PER_OCTAVE * np.log2(shifted)) + LEVEL_OF_ONE
    clipped: NDArray[np.uint8] = np.clip(levels, 0, LEVELS - 1).astype(np.uint8)
    return clipped


def value_of(levels: ArrayLike) -> NDArray[np.float64]:
    """The quantised ``priority + eps`` of each level: ``2^((level - 128) / 4)``.

    Args:
        levels: ``[n]`` in [0, 255].
    """
    exponents = (np.asarray(levels, dtype=np.float64) - LEVEL_OF_ONE) / STEPS_PER_OCTAVE
    return np.exp2(exponents)


def cohort_width(capacity: int) -> int:
    """Insertions that share a cohort: an eighth of the buffer."""
    return max(1, capacity // COHORTS_PER_BUFFER)


def cohorts_behind(cohorts: ArrayLike, newest: int) -> NDArray[np.int64]:
    """How many cohorts began after each item's, at most :data:`OLDEST_COHORT`.

    Args:
        cohorts: ``[n]`` numbers of cohorts as cells have them: in [0, 15].
        newest: number of the newest cohort, not reduced.
    """
    # Signed: after a restore the newest may have a lower number.
    numbers = np.asarray(cohorts).astype(np.int64)
    return np.where(numbers < COHORTS, (newest - numbers) % COHORTS, OLDEST_COHORT)


def probabilities(
    levels: ArrayLike, labels: ArrayLike, cohorts_behind: ArrayLike, params: SamplingParams
) -> NDArray[np.float64]:
    """The probability of each item to be the next one drawn.

    ``P_i = (1 - u) m_i / sum(m) + u / N`` with ``m_i = value(level)^alpha * g(label) * h(cohort)``,
    ``h = (1 - age_discount)^cohorts_behind``, ``g = M_label^(-label_balance)`` and ``M_label`` the
    label's total of ``value^alpha * h``; u, alpha are ``uniform_share``, ``priority_exponent``.

    Args:
        levels: ``[N]`` in [0, 255].
        labels: ``[N]`` predicted classes, >= 0.
        cohorts_behind: ``[N]`` cohorts that began after the item's, in [0, 14].
        params: the sampling parameters in force.

    Returns:
        ``[N]``, adding up to 1.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    # By level and by cohort first: there are few of them, and many items.
    by_level = value_of(np.arange(LEVELS)) ** params.priority_exponent
    by_age = (1.0 - params.age_discount) ** np.arange(OLDEST_COHORT + 1.0)
    masses = by_level[np.asarray(levels, dtype=np.intp)]
    masses *= by_age[np.asarray(cohorts_behind, dtype=np.intp)]
    if params.label_balance > 0.0:
        totals = np.bincount(label_array, weights=masses)
        masses *= totals[label_array] ** -params.label_balance
    share = params.uniform_share
    mixed: NDArray[np.float64] = (1.0 - share) * masses / masses.sum() + share / len(masses)
    return mixed


def importance_weights(
    drawn: ArrayLike, population: int, importance_exponent: float
) -> NDArray[np.float64]:
    """Raw importance weights ``(N P)^-beta`` (Schaul et al. 2016, section 3.4). Not normalised.

    Args:
        drawn: ``[n]`` probabilities, > 0.
        population: N.
        importance_exponent: beta in [0, 1]: 0 gives ones, 1 undoes the prioritisation fully.
    """
    weights: NDArray[np.float64] = (
        population * np.asarray(drawn, dtype=np.float64)
    ) ** -importance_exponent
    return weights


def mean_weight(chances: ArrayLike, importance_exponent: float) -> float:
    """The expected raw importance weight of a draw, ``sum_i P_i (N P_i)^-beta``.

    Weights divided by it average 1 over draws. 1 for beta = 0, and for beta = 1 too; in between at
    most 1, and 1 only if all items are drawn alike.

    Args:
        chances: ``[N]`` probabilities of all items, > 0, adding up to 1.
        importance_exponent: beta in [0, 1].
    """
    array = np.asarray(chances, dtype=np.float64)
    return float(array @ importance_weights(array, len(array), importance_exponent))
