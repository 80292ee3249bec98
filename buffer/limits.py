"""What all clients of a shard must agree on: fields of ``meta``."""

from __future__ import annotations

from dataclasses import dataclass

from buffer.config import BufferTable
from buffer.keys import PROTOCOL


@dataclass(frozen=True)
class Limits:
    """What all clients of a buffer must agree on."""

    capacity: int
    probe_capacity: int
    min_size_to_sample: int
    error_buffer: float | None
    lease_seconds: float
    selector: str = "prioritized"
    max_times_sampled: int = 1
    eviction: str = "oldest"
    new_priority: str = "disagreement"

    @classmethod
    def of(cls, table: BufferTable) -> Limits:
        """The limits a configuration asks for."""
        return cls(
            capacity=table.capacity,
            probe_capacity=table.probe_capacity,
            min_size_to_sample=table.minimum,
            error_buffer=table.error_buffer,
            lease_seconds=table.lease_seconds,
            selector=table.selector,
            max_times_sampled=table.max_times_sampled,
            eviction=table.eviction,
            new_priority=table.new_priority,
        )

    def fields(self) -> dict[str, str]:
        """Fields of ``meta``, without those that are left to others."""
        values = {"protocol": PROTOCOL, **vars(self)}
        return {
            name: value if isinstance(value, str) else f"{value:.17g}"
            for name, value in values.items()
            if value is not None
        }
