"""The buffer's images on the GPU: each is copied there once, however often it is drawn.

Letters in shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from buffer.columns import same_names
from buffer.sample import IDENTITY_DTYPE, Batch
from distiller.config import DistillerFile

NOBODY = np.uint32(2**32 - 1)
"""A slot that no buffer has."""


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor of an array that may be read-only, on the device."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


class ResidentImages:
    """Drawn images on a device, kept there by the slots of the buffer that they come from.

    Two samples may want one row, of different shards or one after the other. What is in a row
    counts only for the sample whose name is on it; the other is copied for its batch alone.

    Args:
        rows: images that are kept; 0 copies every drawn image.
        device: where they are.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self._device = rows, device
        self._names = np.zeros(rows, IDENTITY_DTYPE)
        self._names["slot"] = NOBODY
        self._images: Tensor | None = None
        self._shards = 1
        self.copied = 0
        """Images so far."""

    def of(self, batch: Batch) -> Tensor:
        """The images ``[B, C, H, W]`` of a batch, uint8, on the device."""
        if self.rows == 0:
            return self._copy(batch.images)
        if self._images is None:
            shape = (self.rows, *batch.images.shape[1:])
            self._images = torch.empty(shape, dtype=torch.uint8, device=self._device)
        rows = self._rows(batch.identities)
        self._take_in(batch, rows)
        images = self._images.index_select(0, to_device(rows, self._device))
        strangers = np.flatnonzero(~same_names(self._names.take(rows), batch.identities))
        if len(strangers):
            images[to_device(strangers, self._device)] = self._copy(batch.images[strangers])
        return images

    def _take_in(self, batch: Batch, rows: NDArray[np.int64]) -> None:
        assert self._images is not None
        missing = np.flatnonzero(~same_names(self._names.take(rows), batch.identities))
        # Who comes first has the row: two copies to one row at once might end in a mixture.
        _, first = np.unique(rows[missing], return_index=True)
        new = missing[first]
        if len(new):
            self._images[to_device(rows[new], self._device)] = self._copy(batch.images[new])
            self._names[rows[new]] = batch.identities[new]

    def _rows(self, names: NDArray[np.void]) -> NDArray[np.int64]:
        self._shards = max(self._shards, int(names["shard"].max()) + 1)
        slots, shards = (names[field].astype(np.int64) for field in ("slot", "shard"))
        rows: NDArray[np.int64] = (slots * self._shards + shards) % self.rows
        return rows

    def _copy(self, images: NDArray[np.uint8]) -> Tensor:
        self.copied += len(images)
        return to_device(images, self._device)


def resident_images(config: DistillerFile, device: torch.device) -> ResidentImages:
    """With room for all images of the buffer, if that fits into what is allowed of a GPU's memory.

    Args:
        config: its buffer, image shape and ``distiller.device_cache_mebibytes``.
        device: where the networks are; what is in the CPU's memory anyway is not kept twice.
    """
    rows = config.buffer.capacity + config.buffer.probe_capacity
    allowed = config.distiller.device_cache_mebibytes << 20
    fits = rows * math.prod(config.teacher.image_shape) <= allowed
    return ResidentImages(rows if fits and device.type != "cpu" else 0, device)
