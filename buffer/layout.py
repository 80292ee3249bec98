"""Samples as bytes: a fixed header, then raw little-endian arrays. Nothing is ever pickled.

::

    header                       :data:`HEADER`: magic, schema version, scalars, identity
    form                         all that decides what is where: :data:`FORM`: lengths and counts;
                                 then per target lengths and dtype, name, dimensions
    image                        C*H*W bytes
    per target                   raw values
    producer, method             UTF-8
    crc                          CRC32 of everything else

Why strict: a reader takes these bytes from a server that others write to. Every length is checked
against what is there, and whatever is left over or missing is an error.

``buffer.columns`` reads many payloads at once; that is why the form stands in one piece,
and why the checksum is not the standard library's, which would take longer than all the rest.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from isal.isal_zlib import crc32

from buffer.errors import SchemaError
from buffer.sample import IDENTITY_DTYPE, SCHEMA_VERSION, Split

MAGIC = b"SSDK"
HEADER = np.dtype(
    [
        *(("magic", "S4"), ("schema", "<u2"), ("split", "u1")),
        *(("predicted_class", "<i4"), ("target_label", "<i4")),
        *(("confidence", "<f8"), ("disagreement", "<f8")),
        *(("member", "<u4"), ("attempt", "<u4"), ("step", "<u4")),
        ("identity", IDENTITY_DTYPE),
    ]
)
FORM = struct.Struct("<HIIIHHB")
"""Length of the whole form; channels, height, width; lengths of producer and method; targets."""
SPLITS: tuple[Split, ...] = ("train", "probe")
CRC = struct.Struct("<I")
INTACT = 0x2144DF1C
"""CRC32 of anything followed by its own CRC32."""
TARGET = struct.Struct("<B3sB")
DTYPES = frozenset(
    ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)


@lru_cache(maxsize=256)
def described(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> str:
    """Dtype and shape of an array, as the stored schema has them."""
    return f"{dtype} {list(shape)}"


class Place(NamedTuple):
    """Where an array is in a payload."""

    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """What is where in a payload."""

    image: Place
    targets: dict[str, Place]
    producer: int
    """Where it begins."""
    method: int
    length: int

    def schema(self) -> dict[str, str]:
        """Dtype and shape of the image and of each named target."""
        places = {"image": self.image, **self.targets}
        return {name: described(np.dtype(p.dtype), p.shape) for name, p in places.items()}


def layout_of(data: bytes) -> Layout:
    """What is where in a payload, checked against its length and its checksum.

    Raises:
        SchemaError: as :func:`decode`.
    """
    if len(data) < HEADER.itemsize:
        raise SchemaError(f"{len(data)} bytes where at least {HEADER.itemsize} belong: truncated")
    (header,) = np.frombuffer(data, dtype=HEADER, count=1)
    if header["magic"] != MAGIC:
        raise SchemaError(f"magic ({header['magic']!r}) is not {MAGIC!r}: not a sample")
    if header["schema"] != SCHEMA_VERSION:
        raise SchemaError(
            f"schema version ({header['schema']}) is not {SCHEMA_VERSION}: cannot be read"
        )
    if crc32(data) != INTACT:
        raise SchemaError("CRC32 differs: the sample is damaged")
    if header["split"] >= len(SPLITS):
        raise SchemaError(f"split ({header['split']}) is neither 0 nor 1: cannot be read")
    start = HEADER.itemsize
    layout = layout_of_form(data[start : start + int.from_bytes(data[start : start + 2], "little")])
    if len(data) < layout.length:
        raise SchemaError(f"{len(data)} bytes where {layout.length} belong: truncated")
    if len(data) > layout.length:
        raise SchemaError(f"{len(data) - layout.length} bytes too many: cannot be read")
    return layout


@lru_cache(maxsize=256)
def layout_of_form(form: bytes) -> Layout:
    """What is where in payloads of a form.

    Raises:
        SchemaError: it is no form.
    """
    reader = _Reader(form)
    reader.take(FORM.size)
    length, channels, height, width, producer, method, targets = FORM.unpack_from(form)
    descriptions = [reader.target() for _ in range(targets)]
    if not reader.offset == length == len(form):
        raise SchemaError(
            f"a form of {length} bytes that describes {reader.offset}: cannot be read"
        )
    image = _place(HEADER.itemsize + length, "|u1", (channels, height, width))
    places, stop = {}, image.stop
    for name, code, shape in descriptions:
        places[name] = _place(stop, code, shape)
        stop = places[name].stop
    end = stop + producer + method
    return Layout(image, places, stop, stop + producer, end + CRC.size)


def _place(start: int, code: str, shape: tuple[int, ...]) -> Place:
    try:
        np.empty(0, np.uint8).reshape((0, *shape))
    except ValueError as error:
        raise SchemaError(f"{len(shape)} dimensions ({shape[:4]}): {error}") from error
    return Place(start, start + math.prod(shape) * np.dtype(code).itemsize, code, shape)


def text_of(data: bytes) -> str:
    """A name.

    Raises:
        SchemaError: it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"a name is not UTF-8: {error}") from error


class _Reader:
    """Walks over bytes, never beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0

    def take(self, length: int) -> int:
        """The offset of the next ``length`` bytes, which are consumed."""
        start, self.offset = self.offset, self.offset + length
        if self.offset > len(self._data):
            raise SchemaError(
                f"{len(self._data)} bytes where at least {self.offset} belong: truncated"
            )
        return start

    def target(self) -> tuple[str, str, tuple[int, ...]]:
        """Name, dtype and shape of the next target."""
        length, dtype, dimensions = TARGET.unpack_from(self._data, self.take(TARGET.size))
        start = self.take(length)
        name, code = text_of(self._data[start : start + length]), dtype.decode("latin-1")
        if code not in DTYPES:
            raise SchemaError(f"target {name!r} has dtype {code!r}: cannot be read")
        layout = struct.Struct(f"<{dimensions}I")
        return name, code, layout.unpack_from(self._data, self.take(layout.size))
