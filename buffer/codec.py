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

``buffer.columns`` reads and writes many payloads at once; that is why the form stands in one piece,
and why the checksum is not the standard library's, which would take longer than all the rest.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from buffer.errors import SchemaError
from buffer.sample import IDENTITY_DTYPE, SCHEMA_VERSION, Identity, Sample, Split
from buffer.version import Version

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
_TARGET = struct.Struct("<B3sB")
_DTYPES = frozenset(
    ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)


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


def encode(sample: Sample, identity: Identity) -> bytes:
    """The bytes of a sample under its name.

    Raises:
        SchemaError: the sample does not fit the schema: see :func:`headers_of`,
            :func:`description`.
    """
    headers = headers_of([sample])
    headers["identity"] = identity
    arrays = [(array, stored_as(name, array)) for name, array in sample.targets.items()]
    content = b"".join(
        (
            *(headers.tobytes(), form_of(sample), sample.image.tobytes()),
            *(array.astype(code, copy=False).tobytes() for array, code in arrays),
            *names_of(sample),
        )
    )
    return content + CRC.pack(crc32(content))


def rename(payload: bytes, identity: NDArray[np.void]) -> bytes:
    """An intact payload under another name, one of :data:`~buffer.sample.IDENTITY_DTYPE`."""
    start = HEADER.itemsize - IDENTITY_DTYPE.itemsize
    content = payload[:start] + identity.tobytes() + payload[HEADER.itemsize : -CRC.size]
    return content + CRC.pack(crc32(content))


def headers_of(samples: Sequence[Sample]) -> NDArray[np.void]:
    """``[n]`` of :data:`HEADER`, without identities.

    Raises:
        SchemaError: a number is too large for its field.
    """
    headers = np.zeros(len(samples), dtype=HEADER)
    headers["magic"], headers["schema"] = MAGIC, SCHEMA_VERSION
    try:
        headers["split"] = [SPLITS.index(sample.split) for sample in samples]
        headers["attempt"] = [sample.born.attempt for sample in samples]
        headers["step"] = [sample.born.step for sample in samples]
        for name in ("predicted_class", "target_label", "confidence", "disagreement", "member"):
            headers[name] = [getattr(sample, name) for sample in samples]
    except OverflowError as error:
        raise SchemaError(f"a number of the sample does not fit its field: {error}") from error
    return headers


def form_of(sample: Sample) -> bytes:
    """The form of a sample's bytes.

    Raises:
        SchemaError: an image that is not uint8 ``[C, H, W]``; a target of a foreign dtype; names
            or targets too long, or too many, for their fields.
    """
    if sample.image.dtype != np.uint8 or sample.image.ndim != 3:
        raise SchemaError(
            f"image ({sample.image.dtype} {list(sample.image.shape)}) is not uint8 [C, H, W]: "
            "it cannot be stored"
        )
    parts = []
    for name, values in sample.targets.items():
        encoded, code = name.encode(), stored_as(name, values)
        try:
            parts.append(_TARGET.pack(len(encoded), code.encode(), values.ndim))
        except struct.error as error:
            raise SchemaError(f"target {name!r} does not fit its field: {error}") from error
        parts += [encoded, struct.pack(f"<{values.ndim}I", *values.shape)]
    length = FORM.size + sum(map(len, parts))
    lengths = map(len, names_of(sample))
    try:
        head = FORM.pack(length, *sample.image.shape, *lengths, len(sample.targets))
    except struct.error as error:
        raise SchemaError(f"a length of the sample does not fit its field: {error}") from error
    return head + b"".join(parts)


def names_of(sample: Sample) -> tuple[bytes, bytes]:
    """Producer and method."""
    return sample.producer.encode(), sample.method.encode()


def stored_as(name: str, values: NDArray[np.generic]) -> str:
    """The dtype that a target is stored with.

    Raises:
        SchemaError: it is none that can be.
    """
    code = values.dtype.newbyteorder("<").str
    if code not in _DTYPES:
        raise SchemaError(f"target {name!r} has dtype {values.dtype}: it cannot be stored")
    return code


def decode(data: bytes) -> tuple[Identity, Sample]:
    """The inverse of :func:`encode`. Arrays are read-only views of ``data``.

    Raises:
        SchemaError: the bytes are truncated, corrupt, too long or of another schema version.
    """
    layout = layout_of(data)
    (header,) = np.frombuffer(data, dtype=HEADER, count=1)
    sample = Sample(
        producer=_text(data[layout.producer : layout.method]),
        method=_text(data[layout.method : -CRC.size]),
        image=_array(data, layout.image).view(np.uint8),
        targets={name: _array(data, place) for name, place in layout.targets.items()},
        predicted_class=int(header["predicted_class"]),
        target_label=int(header["target_label"]),
        confidence=float(header["confidence"]),
        disagreement=float(header["disagreement"]),
        member=int(header["member"]),
        born=Version(int(header["attempt"]), int(header["step"])),
        split=SPLITS[header["split"]],
    )
    return Identity(*header["identity"].tolist()), sample


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
    layout = _layout(data[start : start + int.from_bytes(data[start : start + 2], "little")])
    if len(data) < layout.length:
        raise SchemaError(f"{len(data)} bytes where {layout.length} belong: truncated")
    if len(data) > layout.length:
        raise SchemaError(f"{len(data) - layout.length} bytes too many: cannot be read")
    return layout


@lru_cache(maxsize=256)
def _layout(form: bytes) -> Layout:
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


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"a name is not UTF-8: {error}") from error


def _array(data: bytes, place: Place) -> NDArray[np.generic]:
    count = math.prod(place.shape)
    return np.frombuffer(data, place.dtype, count, place.start).reshape(place.shape)


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
        length, dtype, dimensions = _TARGET.unpack_from(self._data, self.take(_TARGET.size))
        start = self.take(length)
        name, code = _text(self._data[start : start + length]), dtype.decode("latin-1")
        if code not in _DTYPES:
            raise SchemaError(f"target {name!r} has dtype {code!r}: cannot be read")
        layout = struct.Struct(f"<{dimensions}I")
        return name, code, layout.unpack_from(self._data, self.take(layout.size))
