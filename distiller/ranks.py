"""What the data-parallel workers of one training tell each other outside the gradients.

Why every decision goes through here: a rank that stops, saves or changes its learning rate on its
own leaves the others waiting in a collective, or lets the copies of the student drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import distributed


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
        return [tensor.tolist() for tensor in received]
