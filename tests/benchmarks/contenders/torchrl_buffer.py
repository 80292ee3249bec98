"""torchrl's prioritised buffer, in the memory of the process that draws. Needs ``torchrl``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from contender import ALPHA, BATCH, BETA, Contender, Drawn, Items, serve
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer


class TorchRL(Contender):
    """A ``TensorDictPrioritizedReplayBuffer`` on ``LazyTensorStorage``."""

    packages = ("torchrl", "tensordict", "torch")

    def open(self, capacity: int) -> None:
        self._replay = TensorDictPrioritizedReplayBuffer(
            alpha=ALPHA,
            beta=BETA,
            storage=LazyTensorStorage(capacity),
            batch_size=BATCH,
            priority_key="priority",
        )

    def prepare(self, items: Items) -> Any:
        columns = {
            "image": torch.from_numpy(items.images),
            "label": torch.from_numpy(items.labels),
            "logits": torch.from_numpy(items.logits),
            "priority": torch.from_numpy(items.priorities).float(),
        }
        return TensorDict(columns, [len(items.images)])

    def insert(self, prepared: Any) -> None:
        self._replay.extend(prepared)

    def sample(self) -> Drawn:
        batch = self._replay.sample()
        keys = ("image", "label", "logits", "index", "priority_weight")
        return Drawn(*(batch[key].numpy() for key in keys))

    def update(self, names: np.ndarray, priorities: np.ndarray) -> None:
        self._replay.update_priority(torch.from_numpy(names), torch.from_numpy(priorities).float())


if __name__ == "__main__":
    # A second thread halves copies of this size on an idle machine; on a busy one, where each waits
    # for the other to be scheduled, it makes them ten times as slow.
    torch.set_num_threads(1)
    serve(TorchRL())
