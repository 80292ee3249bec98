"""What the supervisor knows of one synthesizer that is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

State = Literal[
    "starting", "running", "draining", "restarting", "waiting for resources", "quarantine"
]
STATES: tuple[State, ...] = get_args(State)


@dataclass
class Seat:
    """One wanted actor: whoever sits on it now, and what its predecessors did."""

    actor: Any = None
    run: Any = None
    started: float = 0.0
    """When its last actor was created; 0 before the first."""
    deaths: int = 0
    restart_at: float | None = 0.0
    homeless: bool = False
    """There is no room for it."""
    quarantine: Exception | None = None
    """What killed it too often."""
    drained_by: float | None = None
    """When it has to be gone, if it is not wanted any more."""
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """What the actor is doing, in a word or three."""
        if self.quarantine is not None:
            return "quarantine"
        if self.drained_by is not None:
            return "draining"
        if self.homeless:
            return "waiting for resources"
        if self.status:
            return "running"
        return "restarting" if self.actor is None and self.started else "starting"

    def describe(self, number: int) -> dict[str, Any]:
        """What the actor is doing, as plain data."""
        reason = None if self.quarantine is None else str(self.quarantine)
        return {"number": number, "state": self.state, "deaths": self.deaths, "reason": reason} | {
            key: self.status.get(key) for key in ("pid", "node", "rounds")
        }
