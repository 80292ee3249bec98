"""Many payloads at once: bytes to arrays, a few operations for a whole batch.

Payloads of one buffer nearly always have one layout: then a batch of them is a matrix of bytes, and
reading it costs little more than moving it. Others are read a layout at a time.

Letters in shapes: n payloads, L their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from buffer.errors import SchemaError
from buffer.layout import (
    HEADER,
    INTACT,
    SPLITS,
    Layout,
    Place,
    described,
    layout_of,
)
from buffer.sample import IDENTITY_DTYPE

_BEGIN = 6
"""Bytes of magic and schema version, in front of everything."""


class Columns(NamedTuple):
    """n samples, an array for each attribute."""

    headers: NDArray[np.void]
    """``[n]`` of :data:`buffer.layout.HEADER`."""
    images: NDArray[np.uint8]
    """``[n, C, H, W]``."""
    targets: dict[str, NDArray[np.generic]]
    """``[n, ...]`` each."""

    @classmethod
    def empty(cls, n: int, like: Columns) -> Self:
        """Room for n samples like others."""
        return cls(
            np.zeros(n, dtype=HEADER),
            np.zeros((n, *like.images.shape[1:]), dtype=np.uint8),
            {
                name: np.zeros((n, *values.shape[1:]), dtype=values.dtype)
                for name, values in like.targets.items()
            },
        )

    def at(self, rows: NDArray[np.intp]) -> Columns:
        """A copy of some rows."""
        # Many times faster than an index for structured arrays.
        return Columns(
            self.headers.take(rows),
            self.images.take(rows, axis=0),
            {name: values.take(rows, axis=0) for name, values in self.targets.items()},
        )

    def schema(self) -> dict[str, str]:
        """Dtype and shape of an image and of each named target."""
        arrays = {"image": self.images, **self.targets}
        return {name: described(a.dtype, a.shape[1:]) for name, a in arrays.items()}

    def fits(self, other: Columns) -> bool:
        """Whether samples of the other could be rows of this one."""
        return self.schema() == other.schema()

    def put(self, rows: NDArray[np.intp], other: Columns) -> None:
        """Replaces rows by the samples of another that fits."""
        self.headers[rows] = other.headers
        self.images[rows] = other.images
        for name, values in self.targets.items():
            values[rows] = other.targets[name]


def read(payloads: Sequence[bytes | None]) -> list[tuple[NDArray[np.intp], Columns]]:
    """The samples of the payloads that are intact, grouped by layout.

    Returns:
        Which payloads ``[m]``, and their samples (images may be views of one copy of all), for each
        layout. Payloads that are missing, damaged or foreign are in none of them.
    """
    checked = [payload or b"" for payload in payloads]
    left = [row for row, payload in enumerate(checked) if crc32(payload) == INTACT]
    groups = []
    while left:
        try:
            layout = layout_of(checked[left[0]])
        except SchemaError:
            left = left[1:]
            continue
        rows = [row for row in left if len(checked[row]) == layout.length]
        whole = len(rows) == len(checked)
        data = bytearray().join(checked if whole else [checked[row] for row in rows])
        same, samples = _parsed(np.frombuffer(data, dtype=np.uint8), layout)
        alike = np.array(rows, dtype=np.intp)[same]
        groups.append((alike, samples))
        if len(alike) == len(left):
            break
        left = sorted(set(left).difference(alike.tolist()))
    return groups


def combine(pieces: Sequence[tuple[NDArray[np.intp], Columns]], n: int) -> Columns | None:
    """Pieces of a batch as one, with the targets that all of them have.

    Args:
        pieces: which rows, in rising order, and their samples; all images have one shape.
        n: rows of the batch; those of no piece hold anything.

    Raises:
        SchemaError: images, or targets of a name, differ in dtype or shape.
    """
    if not pieces:
        return None
    rows, samples = pieces[0]
    if len(rows) == n:
        return samples
    shared = set.intersection(*(set(piece.targets) for _, piece in pieces))
    common = {name: values for name, values in samples.targets.items() if name in shared}
    whole = Columns.empty(n, like=samples._replace(targets=common))
    for rows, piece in pieces:
        forms = piece.schema()
        for name, form in whole.schema().items():
            if forms[name] != form:
                raise SchemaError(
                    f"{name} ({forms[name]}) differs from {form} of other samples: shards hold "
                    "samples that make no batch"
                )
        whole.put(rows, piece)
    return whole


def joined(pieces: Sequence[Columns]) -> Columns:
    """Batches with images of one shape, one after another, with the targets that all have."""
    ends = np.cumsum([len(piece.headers) for piece in pieces])
    placed = [
        (np.arange(end - len(piece.headers), end), piece)
        for end, piece in zip(ends.tolist(), pieces, strict=True)
    ]
    whole = combine(placed, int(ends[-1]))
    assert whole is not None
    return whole


def same_names(some: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.bool_]:
    """``[n]``: where two arrays of identities are equal; compared as bytes, which is faster."""
    name = f"V{IDENTITY_DTYPE.itemsize}"
    same: NDArray[np.bool_] = np.ascontiguousarray(some).view(name) == np.ascontiguousarray(
        others
    ).view(name)
    return same


def _parsed(data: NDArray[np.uint8], layout: Layout) -> tuple[NDArray[np.bool_], Columns]:
    """Payloads of one length: which have the form of the first, ``[n]``, and their samples."""
    matrix = data.reshape(-1, layout.length)
    # Once through memory for all that is looked at again.
    heads = np.ascontiguousarray(matrix[:, : layout.image.start])
    headers = heads[:, : HEADER.itemsize].view(HEADER)[:, 0]
    begin, form = heads[:, :_BEGIN].view(f"V{_BEGIN}"), heads[:, HEADER.itemsize :]
    form = form.view(f"V{form.shape[1]}")
    same: NDArray[np.bool_] = ((begin == begin[0]) & (form == form[0]))[:, 0]
    same &= headers["split"] < len(SPLITS)
    if not same.all():
        matrix, headers = matrix[same], headers[same]
    targets = {name: _values(matrix, place) for name, place in layout.targets.items()}
    return same, Columns(headers, _values(matrix, layout.image).view(np.uint8), targets)


def _values(matrix: NDArray[np.uint8], place: Place) -> NDArray[np.generic]:
    part = matrix[:, place.start : place.stop]
    if place.start == place.stop:
        return np.zeros((len(matrix), *place.shape), dtype=place.dtype)
    # Torch takes no numbers that stand where their size does not divide the address.
    aligned = part if np.dtype(place.dtype).itemsize == 1 else np.ascontiguousarray(part)
    return aligned.view(place.dtype).reshape(len(matrix), *place.shape)
