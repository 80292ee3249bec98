"""Many payloads at once: bytes to arrays and back, a few operations for a whole batch.

Payloads of one buffer nearly always have one layout: then a batch of them is a matrix of bytes, and
reading it costs little more than moving it. Others are read a layout at a time.

Letters in shapes: n payloads, L their bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from buffer.codec import (
    CRC,
    HEADER,
    INTACT,
    SPLITS,
    Layout,
    Place,
    description,
    form,
    headers_of,
    layout_of,
    stored_as,
)
from buffer.errors import SchemaError
from buffer.sample import IDENTITY_DTYPE, Sample

_FORM = ("magic", "schema", "targets", "channels", "height", "width", "producer", "method")
"""Header fields on which the layout depends."""


class Columns(NamedTuple):
    """n samples, an array for each attribute."""

    headers: NDArray[np.void]
    """``[n]`` of :data:`buffer.codec.HEADER`."""
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
        return Columns(
            self.headers[rows],
            self.images[rows],
            {name: values[rows] for name, values in self.targets.items()},
        )

    def schema(self) -> dict[str, str]:
        """Dtype and shape of an image and of each named target."""
        arrays = {"image": self.images, **self.targets}
        return {name: f"{values.dtype} {list(values.shape[1:])}" for name, values in arrays.items()}

    def fits(self, other: Columns) -> bool:
        """Whether samples of the other could be rows of this one."""
        return self.schema() == other.schema()

    def put(self, rows: NDArray[np.intp], other: Columns) -> None:
        """Replaces rows by the samples of another that fits."""
        self.headers[rows] = other.headers
        self.images[rows] = other.images
        for name, values in self.targets.items():
            values[rows] = other.targets[name]


class Sheet(NamedTuple):
    """Samples of one layout as bytes, without their names and checksums."""

    rows: NDArray[np.intp]
    """``[m]``: which of the samples these are."""
    payloads: NDArray[np.uint8]
    """``[m, L]``."""


def prepare(samples: Sequence[Sample]) -> list[Sheet]:
    """All of the samples' bytes but their names, which are only known once slots are reserved.

    Raises:
        SchemaError: a sample does not fit the schema: see :func:`buffer.codec.encode`.
    """
    by_form: dict[tuple[object, ...], list[int]] = {}
    for row, sample in enumerate(samples):
        by_form.setdefault(form(sample), []).append(row)
    return [_sheet(np.array(rows), [samples[row] for row in rows]) for rows in by_form.values()]


def seal(sheets: Sequence[Sheet], names: NDArray[np.void]) -> list[bytes]:
    """The payloads ``[n]`` of prepared samples under their names.

    Args:
        sheets: of :func:`prepare`.
        names: ``[n]`` of :data:`~buffer.sample.IDENTITY_DTYPE`.
    """
    sealed = [b""] * len(names)
    for sheet in sheets:
        # The header ends with the identity.
        start = HEADER.itemsize - IDENTITY_DTYPE.itemsize
        sheet.payloads[:, start : HEADER.itemsize] = _as_bytes(names[sheet.rows])
        for row, payload in zip(sheet.rows.tolist(), sheet.payloads, strict=True):
            content = payload.tobytes()
            sealed[row] = content + CRC.pack(zlib.crc32(content))
    return sealed


def read(payloads: Sequence[bytes | None]) -> list[tuple[NDArray[np.intp], Columns]]:
    """The samples of the payloads that are intact, grouped by layout.

    Returns:
        Which payloads ``[m]``, and their samples (views of one copy), for each layout. Payloads
        that are missing, damaged or foreign are in none of them.
    """
    checked = [payload or b"" for payload in payloads]
    sums = np.fromiter(map(zlib.crc32, checked), dtype=np.uint32, count=len(checked))
    lengths = np.fromiter(map(len, checked), dtype=np.int64, count=len(checked))
    left = np.flatnonzero((sums == INTACT) & (lengths > HEADER.itemsize))
    groups = []
    while left.size:
        first = checked[left[0]]
        try:
            layout = layout_of(first)
        except SchemaError:
            left = left[1:]
            continue
        rows = left[lengths[left] == layout.length]
        matrix = np.frombuffer(
            b"".join([checked[row] for row in rows.tolist()]), dtype=np.uint8
        ).reshape(len(rows), layout.length)
        same = _same_form(matrix, layout)
        groups.append((rows[same], _columns(matrix, layout, same)))
        left = np.setdiff1d(left, rows[same], assume_unique=True)
    return groups


def combine(
    pieces: Sequence[tuple[NDArray[np.intp], Columns]], order: NDArray[np.intp]
) -> Columns | None:
    """Pieces of a batch as one, with the targets that all of them have.

    Args:
        pieces: which rows, and their samples; all images have one shape.
        order: ``[n]``: the row that each sample of the result is; rows of no piece hold anything.
    """
    if not pieces:
        return None
    rows, samples = pieces[0]
    if len(pieces) == 1:
        place = np.zeros(int(max(order.max(), rows.max())) + 1, dtype=np.intp)
        place[rows] = np.arange(len(rows))
        return samples.at(place[order])
    shared = set.intersection(*(set(piece.targets) for _, piece in pieces))
    common = {name: values for name, values in samples.targets.items() if name in shared}
    whole = Columns.empty(int(order.max()) + 1, like=samples._replace(targets=common))
    for rows, piece in pieces:
        whole.put(rows, piece)
    return whole.at(order)


def joined(pieces: Sequence[Columns]) -> Columns:
    """Batches with images of one shape as one, with the targets that all of them have."""
    lengths = [len(piece.headers) for piece in pieces]
    ends = np.cumsum(lengths)
    placed = [
        (np.arange(end - n, end), piece)
        for n, end, piece in zip(lengths, ends, pieces, strict=True)
    ]
    if len(pieces) == 1:
        return pieces[0]
    whole = combine(placed, np.arange(ends[-1]))
    assert whole is not None
    return whole


def _sheet(rows: NDArray[np.intp], samples: Sequence[Sample]) -> Sheet:
    described = np.frombuffer(description(samples[0]), dtype=np.uint8)
    parts = [
        headers_of(samples),
        np.broadcast_to(described, (len(samples), len(described))),
        np.stack([sample.image for sample in samples]),
    ]
    for name, values in samples[0].targets.items():
        stacked = np.stack([sample.targets[name] for sample in samples])
        parts.append(stacked.astype(stored_as(name, values), copy=False))
    payloads = np.empty((len(samples), sum(part[0].nbytes for part in parts)), dtype=np.uint8)
    start = 0
    for part in parts:
        stop = start + part[0].nbytes
        payloads[:, start:stop] = _as_bytes(part)
        start = stop
    return Sheet(rows, payloads)


def _as_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """``[n, ...]`` as ``[n, bytes]``."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    return rows.view(np.uint8) if rows.size else np.zeros((len(values), 0), dtype=np.uint8)


def _same_form(matrix: NDArray[np.uint8], layout: Layout) -> NDArray[np.bool_]:
    """``[n]``: which rows have the layout of the first one."""
    headers = _headers(matrix)
    same = headers["split"] < len(SPLITS)
    for field in _FORM:
        same &= headers[field] == headers[field][0]
    described = matrix[:, layout.names : layout.image.start]
    agree: NDArray[np.bool_] = same & (described == described[0]).all(axis=1)
    return agree


def _columns(matrix: NDArray[np.uint8], layout: Layout, rows: NDArray[np.bool_]) -> Columns:
    taken = matrix if rows.all() else matrix[rows]
    return Columns(
        _headers(taken),
        _values(taken, layout.image).view(np.uint8),
        {name: _values(taken, place) for name, place in layout.targets.items()},
    )


def _headers(matrix: NDArray[np.uint8]) -> NDArray[np.void]:
    return matrix[:, : HEADER.itemsize].view(HEADER)[:, 0]


def _values(matrix: NDArray[np.uint8], place: Place) -> NDArray[np.generic]:
    part = matrix[:, place.start : place.stop]
    if place.start == place.stop:
        return np.zeros((len(matrix), *place.shape), dtype=place.dtype)
    return part.view(place.dtype).reshape(len(matrix), *place.shape)
