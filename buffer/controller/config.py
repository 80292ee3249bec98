"""The controller's configuration table, and the settings each policy takes in ``kwargs``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from buffer.config import SharedTables
from buffer.errors import ConfigError
from buffer.parsing import OFF_IS_A_WORD, Kwargs, Table, explain


class ControllerTable(Table):
    """Who adjusts the sampling while the run goes on."""

    policy: Annotated[Literal["off", "fixed", "random", "learned"], OFF_IS_A_WORD] = "fixed"
    """``off``: no controller actor; ``fixed``: observes and keeps the configured parameters;
    ``random``: a random arm at each decision; ``learned``: see ``buffer.controller.policy``."""
    interval_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Time between decisions; a reward needs the probe set measured within it."""
    kwargs: Kwargs = Field(default_factory=dict)
    """Settings of the policy: ``reward`` for each; ``arms`` for ``random`` and ``learned``;
    ``discount`` and ``exploration`` for ``learned``."""


class ControllerFile(SharedTables):
    """A configuration file as the controller reads it."""

    controller: ControllerTable = ControllerTable()


class FixedSettings(Table):
    """``controller.kwargs`` of the policy ``fixed``."""

    reward: Literal["kl", "agreement"] = "kl"
    """What a decision is judged by; see ``buffer.controller.policy.reward``."""


class RandomSettings(FixedSettings):
    """``controller.kwargs`` of the policy ``random``."""

    arms: dict[str, dict[str, float]] | None = None
    """Name of an arm to the sampling parameters it sets; all others keep their start values, and
    the start values themselves are always the first arm. ``None``: ``buffer.controller.arms``."""


class LearnedSettings(RandomSettings):
    """``controller.kwargs`` of the policy ``learned``."""

    discount: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """Weight of a reward one decision later: about ``1 / (1 - discount)`` decisions count."""
    exploration: Annotated[float, Field(ge=0)] = 0.3
    """Spread of the draws around an arm's estimate, in standard errors; 0 always exploits."""


SETTINGS: dict[str, type[FixedSettings]] = {
    "fixed": FixedSettings,
    "random": RandomSettings,
    "learned": LearnedSettings,
}


def settings(table: ControllerTable) -> FixedSettings:
    """The settings of a table's policy, with their defaults.

    Raises:
        ConfigError: the policy knows no such setting, or a value is impossible.
    """
    model = SETTINGS[table.policy]
    try:
        return model.model_validate(table.kwargs)
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        raise ConfigError(
            f"controller.kwargs of the policy {table.policy}, which takes {known}:\n"
            f"{explain(error)}"
        ) from error
