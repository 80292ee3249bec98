"""The controller's configuration table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from buffer.config import SharedTables, Table


class ControllerTable(Table):
    """Who adjusts the sampling while the run goes on."""

    policy: Literal["off", "fixed", "random", "learned"] = "fixed"
    """``off``: no controller actor; ``fixed``: observes and keeps the configured parameters;
    ``random``: a random arm at each decision; ``learned``: see ``buffer.controller.policy``."""
    interval_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Time between decisions; a reward needs the probe set measured within it."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the policy; see its class."""


class ControllerFile(SharedTables):
    """A configuration file as the controller reads it."""

    controller: ControllerTable = ControllerTable()
