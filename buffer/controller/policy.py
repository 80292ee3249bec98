"""The decision: from what is observed and what the last choice earned to the next arm. Pure.

**The problem** is short, noisy and non-stationary. A decision takes tens of seconds, so a run has a
few dozen to a few hundred. The reward of one is the drop of the probe samples' KL within one
interval, in which the noise of SGD is larger than what an arm changes. And both its level and the
best arm drift: KL falls fast at first and slowly later, and what helps a weak student (easy, varied
samples) is not what helps a strong one.

**The learner** is therefore discounted Thompson sampling with Gaussian rewards over a few arms
(Qi et al. 2023, https://arxiv.org/abs/2305.10718; the discounting as in Garivier & Moulines 2008,
https://arxiv.org/abs/0805.3415). Two numbers an arm, no network: an actor-critic needs orders of
magnitude more decisions than there are. Discounting forgets arms that were good for yesterday's
student. Randomised choice, unlike an upper confidence bound, does not try all arms in lock-step at
the start and leaves a log in which every arm's effect can be estimated afterwards. In simulations
of such runs it, discounted UCB, and a discounted regression with a common intercept found the best
arm equally often, so the simplest that explores at random was taken.

**Standardised online**: a reward is compared with a running mean and spread of recent rewards.
Without this the decay of the reward over the run would make every arm tried late look bad.

**Without context**: an observation is logged with each decision but only its reward is learned
from. With a few dozen decisions a regression on a dozen noisy features would fit the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from buffer.controller.config import FixedSettings, LearnedSettings, RandomSettings
from buffer.interface import BufferInfo
from buffer.progress import ProbeReport, StudentProgress

KL_FLOOR = 1e-6
"""Nats added to both KLs of a reward: a student that agrees perfectly earns no infinity."""

LARGEST_SURPRISE = 3.0
"""Standardised rewards are clipped to this many spreads: one burst must not rule an arm."""

BASELINE_DISCOUNT = 0.9
"""The running mean and spread of rewards remember about ten decisions."""

PRIOR_DECISIONS = 1.0
"""Strength of the prior "as good as the baseline", in decisions."""


@dataclass(frozen=True)
class Observation:
    """The state of the run at a decision."""

    kl_mean: float
    """KL(teacher || student) of drawn samples, nats."""
    kl_quantiles: tuple[float, float, float]
    """The same: 10th, 50th and 90th percentile."""
    ess_ratio: float
    """Effective sample size of the priorities over the number of items, in (0, 1]."""
    class_entropy: float
    """Entropy of the buffered classes over its maximum, in [0, 1]; 1 is balanced."""
    mean_age: float
    """Of the buffer's items, in student steps."""
    stale_share: float
    """Share of all priority updates so far whose sample had been evicted."""
    samples_per_insert: float
    """Draws per inserted sample so far; 0 before the first insert."""
    agreement: float
    """Share of equal argmax on drawn samples."""
    probe_kl: float | None
    """KL on the probe samples, nats; ``None`` before the first measurement."""
    probe_agreement: float | None
    """Share of equal argmax on the probe samples."""
    elapsed_share: float
    """Share of the budget that is spent."""


def observe(info: BufferInfo, progress: StudentProgress, *, classes: int) -> Observation:
    """What can be known of the run now.

    Args:
        info: of the buffer.
        progress: of the student.
        classes: K, how many classes the teacher knows; at least 2.
    """
    updates = sum(info.updates)
    probe = progress.probe
    return Observation(
        kl_mean=progress.kl_mean,
        kl_quantiles=progress.kl_quantiles,
        ess_ratio=progress.ess_ratio,
        class_entropy=class_entropy(info.class_counts, classes=classes),
        mean_age=progress.mean_age,
        stale_share=info.updates.stale / updates if updates else 0.0,
        samples_per_insert=info.sampled / info.inserted if info.inserted else 0.0,
        agreement=progress.agreement,
        probe_kl=probe.after_kl if probe else None,
        probe_agreement=probe.after_agreement if probe else None,
        elapsed_share=progress.elapsed_share,
    )


def class_entropy(counts: Mapping[int, int], *, classes: int) -> float:
    """``-sum p_c ln p_c / ln K`` of class counts, in [0, 1]; 0 for an empty buffer."""
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count > 0]
    return -sum(share * math.log(share) for share in shares) / math.log(classes)


def reward(report: ProbeReport, kind: str = "kl") -> float:
    """What the parameters of a report earned, per second.

    ``kl``: ``ln(before / after) / seconds``. Why the logarithm: falls from 2 to 1 nats and from 0.2
    to 0.1 are the same achievement; plain differences would be ruled by the first minute and vanish
    as the student improves. ``agreement``: the gain in the share of equal argmax, for students
    whose KL at T = 1 says little, such as those trained at a high temperature.

    Args:
        report: two measurements of the same probe samples.
        kind: ``kl`` or ``agreement``.

    Returns:
        1/s; negative if the student got worse.

    Raises:
        ValueError: no time passed between the measurements.
    """
    if report.seconds <= 0:
        raise ValueError(f"seconds ({report.seconds:g}): a rate needs time between measurements")
    if kind == "agreement":
        return (report.after_agreement - report.before_agreement) / report.seconds
    before, after = report.before_kl + KL_FLOOR, report.after_kl + KL_FLOOR
    return math.log(before / after) / report.seconds


class Policy(Protocol):
    """Chooses arms, by their index."""

    def decide(self, observation: Observation, last_arm: int, reward: float | None) -> int:
        """The next arm; ``reward`` is what ``last_arm`` earned, ``None`` if that is not known."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as JSON-able values. The random generator is not part of it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what was learned.

        Raises:
            ValueError: it was learned over another number of arms.
        """
        ...


class Fixed:
    """Keeps the arm in force."""

    def decide(self, observation: Observation, last_arm: int, reward: float | None) -> int:
        """The last arm."""
        return last_arm

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


class Random(Fixed):
    """Draws an arm uniformly: the control that says whether learning matters.

    Args:
        arms: how many there are.
        generator: source of randomness.
    """

    def __init__(self, arms: int, generator: Generator) -> None:
        self._arms = arms
        self._generator = generator

    def decide(self, observation: Observation, last_arm: int, reward: float | None) -> int:
        """Any arm."""
        return int(self._generator.integers(self._arms))


class DiscountedThompson:
    """Draws a value for each arm from its posterior and takes the best.

    With discounted counts ``n_a`` and sums of standardised rewards ``s_a``, an arm's value is drawn
    from ``N(s_a / (n_a + 1), exploration^2 / (n_a + 1))``: a prior of mean 0 (the baseline) worth
    one decision, and unit noise, since rewards are standardised.

    Args:
        arms: how many there are.
        generator: source of randomness.
        discount: of all counts and sums with each reward.
        exploration: 1 samples the posterior; less is greedier, which pays in short runs.
    """

    def __init__(
        self, arms: int, generator: Generator, *, discount: float = 0.98, exploration: float = 0.3
    ) -> None:
        self._generator = generator
        self._discount = discount
        self._exploration = exploration
        self._counts: NDArray[np.float64] = np.zeros(arms)
        self._sums: NDArray[np.float64] = np.zeros(arms)
        self._baseline = Baseline()

    def decide(self, observation: Observation, last_arm: int, reward: float | None) -> int:
        """Learns from the reward, if there is one, and draws the next arm."""
        if reward is not None:
            surprise = self._baseline.standardise(reward)
            self._counts *= self._discount
            self._sums *= self._discount
            self._counts[last_arm] += 1
            self._sums[last_arm] += surprise
        precision = self._counts + PRIOR_DECISIONS
        spread = self._exploration / np.sqrt(precision)
        return int(np.argmax(self._generator.normal(self._sums / precision, spread)))

    def state_dict(self) -> dict[str, Any]:
        """Counts, sums and the baseline."""
        return {
            "counts": self._counts.tolist(),
            "sums": self._sums.tolist(),
            "baseline": [self._baseline.weight, self._baseline.mean, self._baseline.variance],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from counts, sums and baseline.

        Raises:
            ValueError: they are of another number of arms.
        """
        if len(state["counts"]) != len(self._counts):
            raise ValueError(
                f"counts ({len(state['counts'])} arms) do not fit {len(self._counts)} arms"
            )
        self._counts = np.array(state["counts"], dtype=np.float64)
        self._sums = np.array(state["sums"], dtype=np.float64)
        self._baseline = Baseline(*state["baseline"])


@dataclass
class Baseline:
    """Exponentially discounted mean and variance of the rewards seen so far."""

    weight: float = 0.0
    mean: float = 0.0
    variance: float = 0.0

    def standardise(self, reward: float) -> float:
        """``(reward - mean) / spread`` against earlier rewards, clipped; then takes it in.

        0 for the first two rewards: one gives the mean, two the spread.
        """
        surprise = reward - self.mean
        spreads = surprise / math.sqrt(self.variance) if self.variance > 0 else 0.0
        self.weight = BASELINE_DISCOUNT * self.weight + 1
        step = 1 / self.weight
        self.mean += step * surprise
        self.variance = (1 - step) * (self.variance + step * surprise**2)
        return max(-LARGEST_SURPRISE, min(spreads, LARGEST_SURPRISE))


def build(settings: FixedSettings, *, arms: int, generator: Generator) -> Policy:
    """The policy that a policy's settings belong to."""
    if isinstance(settings, LearnedSettings):
        return DiscountedThompson(
            arms, generator, discount=settings.discount, exploration=settings.exploration
        )
    if isinstance(settings, RandomSettings):
        return Random(arms, generator)
    return Fixed()
