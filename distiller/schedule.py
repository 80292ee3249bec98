"""What changes over the budget: the learning rate, and how much of an image the networks see."""

from __future__ import annotations

import math

from distiller.config import DistillerTable

CROP_MULTIPLE = 4
"""Crops' heights and widths are multiples of so many pixels: networks halve them twice or more."""
SHARES = 1000
"""Of the budget, at which is asked how large crops are: more than there are multiples."""


def learning_rate(table: DistillerTable, share: float, *, first_share: float = 0.0) -> float:
    """Learning rate at a share of the budget.

    The budget begins when the first service starts, training only when the buffer has filled: the
    schedule spans what is left of the budget from the first step on, so that it begins at the peak
    (after the warm-up) however long the filling took.

    Args:
        table: peak, ``schedule`` and ``warmup_share``.
        share: of the budget that is spent, in [0, 1].
        first_share: the same at the first step; at most ``share``.

    Returns:
        ``peak * min(1, (share - first_share) / warmup_share)``, times
        ``(1 + cos(pi u)) / 2`` with ``u = (share - first_share) / (1 - first_share)`` for
        ``cosine``.
    """
    trained = share - first_share
    rate = table.learning_rate
    if table.warmup_share > 0:
        rate *= min(1.0, trained / table.warmup_share)
    if table.schedule == "cosine":
        progress = min(1.0, trained / (1.0 - first_share)) if first_share < 1.0 else 1.0
        rate *= (1.0 + math.cos(math.pi * progress)) / 2.0
    return rate


def crop_size(
    table: DistillerTable,
    share: float,
    image_size: tuple[int, int],
    *,
    first_share: float = 0.0,
) -> tuple[int, int] | None:
    """Height and width of what the networks see at a share of the budget.

    Why they grow: crops of half the height take little more than a third of the time, and teach
    most of what there is to learn at first (progressive resizing; Tan and Le 2021,
    https://arxiv.org/abs/2104.00298).

    Args:
        table: ``first_crop`` and ``whole_from``.
        share: of the budget that is spent, in [0, 1].
        image_size: height and width of whole images.
        first_share: the share at the first step, from which on they grow; at most ``share``.

    Returns:
        ``None`` where images are whole.
    """
    if table.first_crop == 1.0 or share >= table.whole_from:
        return None
    grown = (share - first_share) / (table.whole_from - first_share)
    seen = table.first_crop + (1.0 - table.first_crop) * grown
    height, width = (
        min(side, max(1, round(side * seen / CROP_MULTIPLE)) * CROP_MULTIPLE) for side in image_size
    )
    return None if (height, width) == image_size else (height, width)


def crop_sizes(table: DistillerTable, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """All heights and widths that the networks see in a training, whole images last."""
    shares = (part / SHARES for part in range(SHARES + 1))
    sizes = (crop_size(table, share, image_size) or image_size for share in shares)
    return list(dict.fromkeys(sizes))
