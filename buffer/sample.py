"""The sample schema: what travels between the services.

Letters in shapes: B batch, K classes, C channels, H height, W width.

``buffer.layout`` says what their bytes look like.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from buffer.version import NEVER, Version

SCHEMA_VERSION = 2

IDENTITY_DTYPE = np.dtype(
    [("shard", "<u2"), ("incarnation", "<u4"), ("slot", "<u4"), ("generation", "<u4")]
)
"""A structured array of identities; equal rows name the same immutable payload."""

Split = Literal["train", "probe"]


class Identity(NamedTuple):
    """The name of one stored payload, never given to another one.

    ``incarnation`` is a random 32-bit number drawn when a shard is initialised, so that an emptied
    or restored server never hands out an old name; ``generation`` counts the uses of a slot.
    """

    shard: int
    incarnation: int
    slot: int
    generation: int


@dataclass(frozen=True)
class Sample:
    """One synthetic image and what the teacher says of it. Immutable once inserted."""

    image: NDArray[np.uint8]
    """``[C, H, W]``."""
    predicted_class: int
    """The teacher's argmax on the stored 8-bit image; what the modulating function counts."""
    confidence: float
    """The teacher's largest softmax value on the stored 8-bit image, in (0, 1]."""
    disagreement: float
    """KL(teacher || student) at T = 1 when the sample was made, nats; its first priority."""
    target_label: int = -1
    """What the generator was asked for; -1 if nothing."""
    targets: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    """Named teacher outputs on the stored 8-bit image: ``logits`` ``[K]`` for classification."""
    split: Split = "train"
    """``probe`` samples are never drawn for training."""
    member: int = 0
    """Which generator of an ensemble made it."""
    producer: str = ""
    """Name of the synthesizer."""
    born: Version = NEVER
    """(attempt, student step) of the student snapshot in use when it was made."""
    method: str = ""
    """Name of the inversion method."""


@dataclass(frozen=True)
class Batch:
    """One draw of B samples, with replacement."""

    images: NDArray[np.uint8]
    """``[B, C, H, W]``."""
    targets: dict[str, NDArray[np.generic]]
    """Named teacher outputs ``[B, ...]``, for the names that every drawn sample carries."""
    target_labels: NDArray[np.int64]
    """``[B]``; -1 where the generator was asked for nothing."""
    predicted_classes: NDArray[np.int64]
    """``[B]``, the teacher's argmax."""
    confidences: NDArray[np.float32]
    """``[B]``, the teacher's confidence."""
    identities: NDArray[np.void]
    """``[B]`` of :data:`IDENTITY_DTYPE`."""
    probabilities: NDArray[np.float64]
    """``[B]``: the probability each was drawn with, under the distribution really used."""
    weights: NDArray[np.float64]
    """``[B]``: raw importance weights ``(N P)^-beta``; what priorities are multiplied with."""
    weight_mean: float
    """The expected raw weight of a draw; divided by it, weights average 1 over draws."""
    ages: NDArray[np.int64]
    """``[B]``: student steps since each was made, never below 0."""
    params_version: Version
    """The sampling parameters this draw was made under."""
    population: int
    """N: how many items could have been drawn."""
