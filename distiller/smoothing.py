"""What a sample's KL is, from more than the view that was seen last.

Why: a step sees one crop of a sample, perhaps blended with another one. On crops of 16 of 32 pixels
a twentieth of what KL (its logarithm) varies by is due to the sample, on blended whole images a
third (docs/benchmarks.md): priorities that follow the last view alone follow chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distiller.config import DistillerFile


class SmoothedKl:
    """Moving averages of the KL of the samples that one worker has seen.

    Args:
        smoothing: what an average keeps of itself, in [0, 1); until it is made of as many views as
            that amounts to, all count alike. 0: the newest view alone.
        capacity: of the buffer; averages of more samples than that are not kept.
    """

    def __init__(self, smoothing: float, *, capacity: int) -> None:
        self._newest, self._capacity = 1.0 - smoothing, capacity
        self._known: dict[bytes, tuple[int, float]] = {}
        """Views and average by identity; the sample that was seen last is the last."""

    def update(self, identities: NDArray[np.void], kl: NDArray[np.float32]) -> NDArray[np.float64]:
        """Takes in a batch.

        Args:
            identities: ``[B]`` of :data:`~buffer.sample.IDENTITY_DTYPE`; one may be there twice.
            kl: ``[B]`` nats.

        Returns:
            ``[B]`` nats.
        """
        if self._newest == 1.0:
            return kl.astype(np.float64)
        averages = [
            self._average(identity.tobytes(), float(value))
            for identity, value in zip(identities, kl, strict=True)
        ]
        while len(self._known) > self._capacity:
            del self._known[next(iter(self._known))]
        return np.array(averages)

    def _average(self, identity: bytes, value: float) -> float:
        views, average = self._known.pop(identity, (0, 0.0))
        average += max(self._newest, 1 / (views + 1)) * (value - average)
        self._known[identity] = (views + 1, average)
        return average


def smoothed_kl(config: DistillerFile) -> SmoothedKl:
    """As the configuration asks for."""
    return SmoothedKl(config.distiller.priority_smoothing, capacity=config.buffer.capacity)
