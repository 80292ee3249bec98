"""How the data-parallel workers of one training talk to each other outside the gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import distributed

from buffer.errors import SsdkdError


@dataclass(frozen=True)
class Ranks:
    """This worker's place among the workers; a single one needs no process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the process group's backend wants its tensors."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which decides, publishes and writes."""
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Everyone's values, by rank. All ranks must call it the same number of times.

        Args:
            values: as many on every rank.
        """
        if self.size == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        received = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(received, own)
        rows: list[list[float]] = torch.stack(received).tolist()
        return rows

    def of_lead(self, own: float | None) -> float | None:
        """Rank 0's value. All ranks must call it equally often."""
        shared = self.gather([math.nan if own is None else own])[0][0]
        return None if math.isnan(shared) else shared

    def first_error(self, own: SsdkdError | None) -> SsdkdError | None:
        """The error of the first rank that has one. All ranks must call it equally often.

        Args:
            own: this rank's, if it has one.
        """
        if self.size == 1:
            return own
        found: list[SsdkdError | None] = [None] * self.size
        on_gpu = self.device.type == "cuda"
        # NCCL sends objects from the current device, which need not be this rank's.
        with torch.cuda.device(self.device) if on_gpu else nullcontext():
            distributed.all_gather_object(found, own)
        return next((error for error in found if error is not None), None)
