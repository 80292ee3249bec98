"""A few samples of the buffer to look at, and how old all of its items are.

Letters in shapes: M images, C channels, H height, W width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from buffer.config import ModelSpec
from buffer.errors import RateLimited
from buffer.interface import Replay
from buffer.sample import Batch
from deploy.sink import Histogram, Pictures, Snapshot

MOST_CLASSES, MOST_PER_CLASS = 20, 8
LONGEST_SIDE = 64
"""Pixels; larger images are shown smaller."""
MOST_DRAWN, MOST_DRAWN_BYTES, DRAWN_PER_CLASS = 2048, 32 << 20, 64
AGE_BINS = 20


def draw(replay: Replay, spec: ModelSpec, snapshot: Snapshot) -> Pictures | None:
    """What a draw that nobody counts brings; ``None`` if there is too little to draw from.

    Args:
        replay: the run's buffer.
        spec: of the teacher: how many classes there are, and how large images are.
        snapshot: of the run, just now.

    Raises:
        BufferUnavailable: see :class:`~buffer.interface.Replay`.
    """
    if snapshot.params is None:
        return None
    wanted = min(MOST_DRAWN, DRAWN_PER_CLASS * spec.classes)
    affordable = MOST_DRAWN_BYTES // int(np.prod(spec.image_shape))
    try:
        batch = replay.sample(
            max(1, min(wanted, affordable)), student_step=snapshot.step, counted=False
        )
    except RateLimited:
        return None
    shown = chosen(batch, spec.classes)
    difficulties = (1.0 - batch.confidences[shown]) ** snapshot.params.difficulty_exponent
    return Pictures(
        time=snapshot.time,
        elapsed_seconds=snapshot.elapsed_seconds,
        step=snapshot.step,
        images=reduced(batch.images[shown]),
        predicted_classes=batch.predicted_classes[shown],
        target_labels=batch.target_labels[shown],
        confidences=batch.confidences[shown],
        difficulties=difficulties,
        ages=batch.ages[shown],
        buffer_ages=buffer_ages(batch),
    )


def chosen(batch: Batch, classes: int) -> NDArray[np.intp]:
    """The places in a batch of the samples to show, sorted by class.

    Different ones, up to :data:`MOST_PER_CLASS` of a class as they were drawn, of classes that are
    spread evenly over those that there are: the same ones each time as far as they are drawn.

    Args:
        batch: one draw.
        classes: K, how many there are.
    """
    _, first = np.unique(batch.identities, return_index=True)
    first.sort()
    predicted = batch.predicted_classes[first]
    present = np.unique(predicted)
    wanted = np.linspace(0, classes - 1, min(classes, MOST_CLASSES))
    nearest = np.unique(present[np.abs(present - wanted[:, None]).argmin(axis=1)])
    return np.concatenate([first[predicted == each][:MOST_PER_CLASS] for each in nearest])


def reduced(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images ``[M, C, H, W]`` of at most :data:`LONGEST_SIDE` pixels a side: means of blocks."""
    count, channels, height, width = images.shape
    factor = -(-max(height, width) // LONGEST_SIDE)
    if factor == 1:
        return images
    rows, columns = max(1, height // factor), max(1, width // factor)
    whole = images[:, :, : rows * factor, : columns * factor]
    blocks = whole.reshape(count, channels, rows, -1, columns, whole.shape[3] // columns)
    means: NDArray[np.uint8] = blocks.mean(axis=(3, 5)).round().astype(np.uint8)
    return means


def buffer_ages(batch: Batch) -> Histogram:
    """The ages of all items of the buffer, estimated from those drawn.

    Weighs each by 1 / P, which undoes that some are drawn more often than others. The counts add up
    to the number of items, in :data:`AGE_BINS` bins of equal width, the oldest in the last.
    """
    weights = 1.0 / batch.probabilities
    counts, edges = np.histogram(
        batch.ages, bins=AGE_BINS, range=(0.0, float(batch.ages.max() + 1)), weights=weights
    )
    counts *= batch.population / weights.sum()
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))
