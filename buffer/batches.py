"""What both replay buffers do alike: check what comes in, and put batches together.

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from buffer.codec import Prepared
from buffer.columns import Columns, joined
from buffer.priorities import level_of
from buffer.sample import IDENTITY_DTYPE, Batch, Sample
from buffer.version import Version

MOST_DRAWS = 4096
"""Draws in one call: bounds how long a call keeps the server busy."""
DEFAULT_ERROR_BUFFER = 10.0 * MOST_DRAWS
"""What an ``error_buffer`` of ``None`` means for a new buffer: ten of the largest batches."""
LARGEST_UINT32 = 2**32 - 1
LARGEST_LABEL = 2**16 - 1


@dataclass(frozen=True)
class Draws:
    """B draws, before their samples are known. Fields as in :class:`~buffer.sample.Batch`."""

    identities: NDArray[np.void]
    probabilities: NDArray[np.float64]
    weights: NDArray[np.float64]
    weight_mean: float
    params_version: Version
    population: int

    def at(self, rows: NDArray[np.intp]) -> Draws:
        """Some of them, in another order."""
        return replace(
            self,
            identities=self.identities.take(rows),
            probabilities=self.probabilities.take(rows),
            weights=self.weights.take(rows),
        )


def check_samples(samples: Sequence[Sample], capacity: int, probe_capacity: int) -> None:
    """Whether samples can be inserted together.

    Raises:
        ValueError: there are none or too many, or one has an impossible class or priority.
    """
    if not samples:
        raise ValueError("samples ([]) is empty: nothing to insert")
    for split, most, limit in (
        ("train", capacity, "capacity"),
        ("probe", probe_capacity, "probe_capacity"),
    ):
        count = sum(sample.split == split for sample in samples)
        if count > most:
            raise ValueError(
                f"samples ({count} of split {split}) exceed {limit} ({most}): "
                "they would evict each other"
            )
    for sample in samples:
        if not 0 <= sample.predicted_class <= LARGEST_LABEL:
            raise ValueError(
                f"predicted_class ({sample.predicted_class}) is not in [0, {LARGEST_LABEL}]: "
                "the sample has no cell"
            )
    priority_levels([sample.disagreement for sample in samples], len(samples), "disagreement")


def schema_of(prepared: Prepared) -> dict[str, str]:
    """Dtype and shape of the image and of each named target.

    Raises:
        ValueError: two samples differ: they could not be drawn into one batch.
    """
    schema: dict[str, str] = {}
    for layout in prepared.layouts:
        for name, found in layout.schema().items():
            check_schema(name, found, schema.setdefault(name, found))
    return schema


def check_schema(name: str, found: str, expected: str) -> None:
    """Whether an array fits the others of its name.

    Raises:
        ValueError: it does not.
    """
    if found != expected:
        raise ValueError(
            f"{name} ({found}) differs from the others' {expected}: "
            "they could not be drawn into one batch"
        )


def check_count(n: int) -> None:
    """Whether ``n`` samples can be drawn at once.

    Raises:
        ValueError: they cannot.
    """
    if not 1 <= n <= MOST_DRAWS:
        raise ValueError(f"n ({n}) is not in [1, {MOST_DRAWS}]: the server would be kept too long")


def check_permit(n: int, capacity: int) -> None:
    """Whether a permit for ``n`` samples could ever be used.

    Raises:
        ValueError: it could not.
    """
    if not 1 <= n <= capacity:
        raise ValueError(f"n ({n}) is not in [1, {capacity}]: no insert has so many samples")


def check_uint32(**numbers: int) -> None:
    """Whether numbers can be stored: ``check_uint32(sequence=3)``.

    Raises:
        ValueError: one cannot.
    """
    for name, value in numbers.items():
        if not 0 <= value <= LARGEST_UINT32:
            raise ValueError(
                f"{name} ({value}) is not in [0, {LARGEST_UINT32}]: it cannot be stored"
            )


def priority_levels(
    priorities: ArrayLike, length: int, field: str = "priorities"
) -> NDArray[np.uint8]:
    """The levels of ``length`` priorities.

    Raises:
        ValueError: there are more or fewer, or one is negative or not finite.
    """
    array = np.asarray(priorities, dtype=np.float64)
    if array.shape != (length,):
        raise ValueError(
            f"{field} (shape {list(array.shape)}) does not fit {length} identities: "
            "each needs exactly one"
        )
    wrong = array[~(np.isfinite(array) & (array >= 0.0))]
    if wrong.size:
        raise ValueError(
            f"{field} ({wrong[0]:g}) is not a finite number >= 0: its sample could not be drawn"
        )
    return level_of(array)


def identity_array(
    shard: int, incarnation: int, slots: ArrayLike, generations: ArrayLike
) -> NDArray[np.void]:
    """``[B]`` of :data:`~buffer.sample.IDENTITY_DTYPE`."""
    slot_array = np.asarray(slots)
    identities = np.empty(slot_array.shape, dtype=IDENTITY_DTYPE)
    identities["shard"], identities["incarnation"] = shard, incarnation
    identities["slot"], identities["generation"] = slot_array, generations
    return identities


def assemble(samples: Sequence[Sample], draws: Draws, *, student_step: int) -> Batch:
    """The batch of ``samples``, one for each draw."""
    born = np.array([sample.born.step for sample in samples], dtype=np.int64)
    return Batch(
        images=_images(samples),
        targets=_targets(samples),
        target_labels=np.array([sample.target_label for sample in samples], dtype=np.int64),
        predicted_classes=np.array([sample.predicted_class for sample in samples], dtype=np.int64),
        confidences=np.array([sample.confidence for sample in samples], dtype=np.float32),
        identities=draws.identities,
        probabilities=draws.probabilities,
        weights=draws.weights,
        weight_mean=draws.weight_mean,
        ages=np.maximum(0, student_step - born),
        params_version=draws.params_version,
        population=draws.population,
    )


def batch_of(samples: Columns, draws: Draws, *, student_step: int) -> Batch:
    """The batch of ``samples``, a row for each draw."""
    headers = samples.headers
    return Batch(
        images=samples.images,
        targets=samples.targets,
        target_labels=headers["target_label"].astype(np.int64),
        predicted_classes=headers["predicted_class"].astype(np.int64),
        confidences=headers["confidence"].astype(np.float32),
        identities=draws.identities,
        probabilities=draws.probabilities,
        weights=draws.weights,
        weight_mean=draws.weight_mean,
        ages=np.maximum(0, student_step - headers["step"].astype(np.int64)),
        params_version=draws.params_version,
        population=draws.population,
    )


def probe_batch(found: Sequence[tuple[Columns | None, Draws]], params_version: Version) -> Batch:
    """Probe samples of one or several shards as a batch."""
    pieces = [samples for samples, _ in found if samples is not None]
    draws = replace(concatenate([each for _, each in found]), params_version=params_version)
    draws = replace(draws, population=len(draws.identities))
    if not pieces:
        return assemble([], draws, student_step=0)
    return batch_of(joined(pieces), draws, student_step=0)


def concatenate(rounds: Sequence[Draws]) -> Draws:
    """Rounds of one draw as one; each sample keeps the distribution it was drawn under."""
    if len(rounds) == 1:
        return rounds[0]
    lengths = [len(draws.identities) for draws in rounds]
    means = [draws.weight_mean for draws in rounds]
    return Draws(
        identities=np.concatenate([draws.identities for draws in rounds]),
        probabilities=np.concatenate([draws.probabilities for draws in rounds]),
        weights=np.concatenate([draws.weights for draws in rounds]),
        weight_mean=float(np.average(means, weights=lengths)) if any(lengths) else 1.0,
        params_version=rounds[0].params_version,
        population=rounds[0].population,
    )


def unweighted(identities: NDArray[np.void], params_version: Version) -> Draws:
    """Members taken for certain: probabilities and weights 1."""
    ones = np.ones(len(identities))
    return Draws(identities, ones, ones.copy(), 1.0, params_version, len(identities))


def _images(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    if not samples:
        return np.zeros((0, 0, 0, 0), dtype=np.uint8)
    return np.stack([sample.image for sample in samples])


def _targets(samples: Sequence[Sample]) -> dict[str, NDArray[np.generic]]:
    if not samples:
        return {}
    shared = set.intersection(*(set(sample.targets) for sample in samples))
    return {
        name: np.stack([sample.targets[name] for sample in samples])
        for name in samples[0].targets
        if name in shared
    }
