"""The controller's log file, ``controller.jsonl``: one JSON object a line, only ever appended to.

It is also the controller's memory. Why not Redis: what a policy has learned is of no use to any
other service, and a decision is anyhow written down with all that led to it. A restarted controller
looks for the decision that is in force in the buffer; a file left over from another run holds no
such decision, and is not believed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buffer.params import SamplingParams


@dataclass(frozen=True)
class ResumePoint:
    """What a controller needs to go on from a decision.

    Attributes:
        start: the parameters that arms are changes to.
        arms: all arms there were: name to changes.
        state: of the policy, after the decision.
    """

    start: SamplingParams
    arms: dict[str, dict[str, float]]
    state: dict[str, Any]


class Journal:
    """Appends records, and finds the one to go on from.

    Args:
        path: of the file; its folder is made. ``None`` keeps no journal.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(path)

    def write(self, event: str, **fields: Any) -> None:
        """Appends one record with its name and the Unix time."""
        if self._path is None:
            return
        line = json.dumps({"event": event, "time": time.time(), **fields})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def resume_point(self, in_force: SamplingParams, *, policy: str) -> ResumePoint | None:
        """Where the decision that put ``in_force`` in force left off.

        Args:
            in_force: the buffer's sampling parameters.
            policy: name of the policy; another one's memory is of no use.

        Returns:
            ``None`` if there is no such decision.
        """
        started: dict[str, Any] = {}
        found = None
        for record in self._records():
            if record["event"] == "start":
                started = record
            elif _decided(record, in_force) and started.get("policy") == policy:
                found = ResumePoint(
                    start=SamplingParams.model_validate(started["params"]),
                    arms=started["arms"],
                    state=record["state"],
                )
        return found

    def _records(self) -> Iterator[dict[str, Any]]:
        if self._path is None or not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # a process died while it wrote this line


def _end_last_line(path: Path) -> None:
    """A process that died while it wrote must not take the next record with it."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def _decided(record: dict[str, Any], in_force: SamplingParams) -> bool:
    if record["event"] != "decision":
        return False
    return SamplingParams.model_validate(record["params"]) == in_force
