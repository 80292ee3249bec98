"""The action grid: what the controller may set, as a handful of named arms.

An arm is a set of changes to the sampling parameters a run was configured with. Why changes to the
start values and not free coordinates: a run has a few dozen to a few hundred decisions, too few to
explore a space of seven dimensions, and the configured values are the best guess there is. Why no
arm of its own for every knob in both directions: each arm costs decisions to try.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from buffer.controller.config import FixedSettings, RandomSettings
from buffer.errors import ConfigError
from buffer.params import SamplingParams
from buffer.parsing import explain
from buffer.version import Version

STABLE_PRODUCT = 0.9
"""Bound of alpha * beta in built-in arms: the error of the priority recursion then shrinks by a
tenth with each update. Convergence itself needs a product below 1."""

RATE_RANGE = 2.0
"""Largest factor between an arm's samples_per_insert and the configured one. The limiter stalls
nobody at any rate, nor does a change; but arms far away would void the bound on reuse that was
configured."""

DRAWING = frozenset(
    {
        "priority_exponent",
        "importance_exponent",
        "uniform_share",
        "label_balance",
        "age_discount",
    }
)
"""Parameters of the draw; without effect where the selector is ``uniform``."""


@dataclass(frozen=True)
class Arm:
    """One action.

    Attributes:
        name: how logs and metrics call it.
        changes: sampling parameters it sets; all others keep their start values.
    """

    name: str
    changes: Mapping[str, float] = field(default_factory=dict)

    def applied(self, start: SamplingParams, version: Version) -> SamplingParams:
        """The parameters this arm puts in force.

        Raises:
            ValidationError: a change is out of range, or breaks ``alpha * beta < 1``.
        """
        values = {**start.model_dump(), **self.changes, "version": version}
        return SamplingParams.model_validate(values)


def in_force(arms: Sequence[Arm], start: SamplingParams, params: SamplingParams) -> int | None:
    """Which arm put ``params`` in force; ``None`` if none of these could have."""
    found = [arm.applied(start, params.version) == params for arm in arms]
    return found.index(True) if any(found) else None


def choose(settings: FixedSettings, start: SamplingParams, *, uniform: bool) -> tuple[Arm, ...]:
    """The arms of a policy, the unchanged one first and, for ``fixed``, alone.

    Args:
        settings: of the policy.
        start: the parameters arms are changes to.
        uniform: the selector draws uniformly, so parameters of the draw do nothing.

    Raises:
        ConfigError: a configured arm changes nothing, changes something without effect, or sets a
            parameter to a value that is impossible or far from the configured rate.
    """
    if not isinstance(settings, RandomSettings):
        return (Arm("start"),)
    if settings.arms is None:
        return _grid(start, uniform=uniform)
    for name, changes in settings.arms.items():
        _check(name, changes, start, uniform=uniform)
    return (Arm("start"), *(Arm(name, changes) for name, changes in settings.arms.items()))


def _grid(start: SamplingParams, *, uniform: bool) -> tuple[Arm, ...]:
    """The built-in arms, without those that change nothing (a weight of 0, doubled)."""
    draws = {} if uniform else _draws(start)
    unchanged = start.model_dump()
    arms = [Arm("start")]
    for name, wanted in {**draws, **_inversion(start), **_rates(start)}.items():
        changes = {key: value for key, value in wanted.items() if value != unchanged[key]}
        if changes:
            arms.append(Arm(name, changes))
    return tuple(arms)


def _draws(start: SamplingParams) -> dict[str, dict[str, float]]:
    """How samples are chosen."""
    alpha, beta = start.priority_exponent, start.importance_exponent
    sharper = min(1.5 * alpha, 2.0, STABLE_PRODUCT / beta if beta > 0 else 2.0)
    corrected = min(_halfway_to_one(beta), STABLE_PRODUCT / alpha if alpha > 0 else 1.0)
    return {
        "uniform": {"uniform_share": _halfway_to_one(start.uniform_share)},
        "sharp": {"priority_exponent": max(alpha, sharper)},
        "corrected": {"importance_exponent": max(beta, corrected)},
        "balanced": {"label_balance": _halfway_to_one(start.label_balance)},
    }


def _inversion(start: SamplingParams) -> dict[str, dict[str, float]]:
    """How hard the next samples are: both knobs pull the same way, so they share two arms."""
    adversarial, gamma = start.adversarial_weight, start.difficulty_exponent
    return {
        "hard": {"adversarial_weight": 2 * adversarial, "difficulty_exponent": min(2 * gamma, 5.0)},
        "easy": {"adversarial_weight": adversarial / 2, "difficulty_exponent": gamma / 2},
    }


def _rates(start: SamplingParams) -> dict[str, dict[str, float]]:
    """How often a sample is used; never switches the limiter on or off."""
    rate = start.samples_per_insert
    if rate is None:
        return {}
    return {
        "fresh": {"samples_per_insert": rate / 1.5},
        "reuse": {"samples_per_insert": rate * 1.5},
    }


def _halfway_to_one(value: float) -> float:
    return (1.0 + value) / 2


def _check(
    name: str, changes: Mapping[str, float], start: SamplingParams, *, uniform: bool
) -> None:
    where = f"controller.kwargs.arms.{name}"
    known = [key for key in SamplingParams.model_fields if key != "version"]
    if name == "start":
        raise ConfigError(f"{where}: the start values are always the first arm, under this name")
    if unknown := changes.keys() - set(known):
        raise ConfigError(
            f"{where} ({', '.join(sorted(unknown))}): not a sampling parameter; "
            f"there are {', '.join(known)}"
        )
    if not changes:
        raise ConfigError(f"{where} ({{}}): changes nothing, which is what the arm start is for")
    if uniform and (idle := changes.keys() & DRAWING):
        raise ConfigError(
            f"{where} ({', '.join(sorted(idle))}): without effect while buffer.selector is uniform"
        )
    _check_rate(where, changes.get("samples_per_insert"), start.samples_per_insert)
    try:
        Arm(name, changes).applied(start, start.version)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error)}") from error


def _check_rate(where: str, rate: float | None, configured: float | None) -> None:
    if rate is None:
        return
    if configured is None:
        raise ConfigError(
            f"{where}.samples_per_insert ({rate:g}): buffer.samples_per_insert is not set, and "
            "an arm cannot switch the limiter on: the others could not switch it off again"
        )
    if not configured / RATE_RANGE <= rate <= configured * RATE_RANGE:
        raise ConfigError(
            f"{where}.samples_per_insert ({rate:g}) is not within a factor of {RATE_RANGE:g} of "
            f"buffer.samples_per_insert ({configured:g}): the configured bound on the reuse of "
            "samples would mean nothing"
        )
