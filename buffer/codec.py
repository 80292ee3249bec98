"""Samples as bytes: a fixed header, then raw little-endian arrays. Nothing is ever pickled.

::

    header                       magic, schema version, split, targets, scalars, C H W, lengths
    identity                     shard, incarnation, slot, generation
    crc                          CRC32 of everything else
    producer, method             UTF-8
    image                        C*H*W bytes
    per target                   lengths and dtype, name, dimensions, raw values

Why strict: a reader takes these bytes from a server that others write to. Every length is checked
against what is there, and whatever is left over or missing is an error.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from buffer.errors import SchemaError
from buffer.sample import SCHEMA_VERSION, Identity, Sample, Split
from buffer.version import Version

MAGIC = b"SSDK"
_HEADER = struct.Struct("<4sHBB iidd III III HH")
_IDENTITY = struct.Struct("<HIII")
_CRC = struct.Struct("<I")
_TARGET = struct.Struct("<B3sB")
_SPLITS: tuple[Split, ...] = ("train", "probe")
_DTYPES = frozenset(
    ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)


class Content(NamedTuple):
    """The bytes of a sample that has no name yet."""

    header: bytes
    body: bytes


def encode(sample: Sample, identity: Identity) -> bytes:
    """The bytes of a sample under its name.

    Raises:
        SchemaError: see :func:`prepare`.
    """
    return seal(prepare(sample), identity)


def prepare(sample: Sample) -> Content:
    """All of a sample's bytes but its name, which is only known once a slot is reserved.

    Raises:
        SchemaError: the sample does not fit the schema: an image that is not uint8 ``[C, H, W]``,
            a target of a foreign dtype, a number or a name too large for its field.
    """
    if sample.image.dtype != np.uint8 or sample.image.ndim != 3:
        raise SchemaError(
            f"image ({sample.image.dtype} {list(sample.image.shape)}) is not uint8 [C, H, W]: "
            "it cannot be stored"
        )
    producer, method = sample.producer.encode(), sample.method.encode()
    try:
        header = _HEADER.pack(
            *(MAGIC, SCHEMA_VERSION, _SPLITS.index(sample.split), len(sample.targets)),
            *(sample.predicted_class, sample.target_label, sample.confidence),
            *(sample.disagreement, sample.member, *sample.born, *sample.image.shape),
            *(len(producer), len(method)),
        )
        targets = [_encode_target(name, values) for name, values in sample.targets.items()]
    except struct.error as error:
        raise SchemaError(
            f"a number or name of the sample does not fit its field: {error}"
        ) from error
    return Content(header, b"".join((producer, method, sample.image.tobytes(), *targets)))


def seal(content: Content, identity: Identity) -> bytes:
    """The bytes of a prepared sample under its name."""
    head = content.header + _IDENTITY.pack(*identity)
    return head + _CRC.pack(zlib.crc32(content.body, zlib.crc32(head))) + content.body


def decode(data: bytes) -> tuple[Identity, Sample]:
    """The inverse of :func:`encode`. Arrays are read-only views of ``data``.

    Raises:
        SchemaError: the bytes are truncated, corrupt, too long or of another schema version.
    """
    reader = _Reader(data)
    header = reader.unpack(_HEADER)
    magic, version, split, target_count = header[:4]
    if magic != MAGIC:
        raise SchemaError(f"magic ({magic!r}) is not {MAGIC!r}: not a sample")
    if version != SCHEMA_VERSION:
        raise SchemaError(f"schema version ({version}) is not {SCHEMA_VERSION}: cannot be read")
    identity = Identity(*reader.unpack(_IDENTITY))
    checked = zlib.crc32(data[: reader.offset])
    (crc,) = reader.unpack(_CRC)
    if crc != zlib.crc32(memoryview(data)[reader.offset :], checked):
        raise SchemaError("CRC32 differs: the sample is damaged")
    if split >= len(_SPLITS):
        raise SchemaError(f"split ({split}) is neither 0 nor 1: cannot be read")
    predicted_class, target_label, confidence, disagreement, member, attempt, step = header[4:11]
    shape, (producer_length, method_length) = header[11:14], header[14:]
    sample = Sample(
        producer=reader.text(producer_length),
        method=reader.text(method_length),
        image=reader.array("|u1", shape).view(np.uint8),
        targets=dict(_decode_target(reader) for _ in range(target_count)),
        predicted_class=predicted_class,
        target_label=target_label,
        confidence=confidence,
        disagreement=disagreement,
        member=member,
        born=Version(attempt, step),
        split=_SPLITS[split],
    )
    reader.finish()
    return identity, sample


def _encode_target(name: str, values: NDArray[np.generic]) -> bytes:
    dtype = values.dtype.newbyteorder("<").str
    if dtype not in _DTYPES:
        raise SchemaError(f"target {name!r} has dtype {values.dtype}: it cannot be stored")
    encoded = name.encode()
    head = _TARGET.pack(len(encoded), dtype.encode(), values.ndim)
    dimensions = struct.pack(f"<{values.ndim}I", *values.shape)
    return head + encoded + dimensions + values.astype(dtype, copy=False).tobytes()


def _decode_target(reader: _Reader) -> tuple[str, NDArray[np.generic]]:
    name_length, dtype, dimensions = reader.unpack(_TARGET)
    name = reader.text(name_length)
    shape = reader.unpack(struct.Struct(f"<{dimensions}I"))
    code = dtype.decode("latin-1")
    if code not in _DTYPES:
        raise SchemaError(f"target {name!r} has dtype {code!r}: cannot be read")
    return name, reader.array(code, shape)


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

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self._data, self.take(layout.size))

    def text(self, length: int) -> str:
        start = self.take(length)
        try:
            return self._data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise SchemaError(f"a name is not UTF-8: {error}") from error

    def array(self, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        kind, count = np.dtype(dtype), math.prod(shape)
        start = self.take(count * kind.itemsize)
        try:
            return np.frombuffer(self._data, dtype=kind, count=count, offset=start).reshape(shape)
        except ValueError as error:
            raise SchemaError(f"{len(shape)} dimensions ({shape[:4]}): {error}") from error

    def finish(self) -> None:
        if self.offset != len(self._data):
            raise SchemaError(f"{len(self._data) - self.offset} bytes too many: cannot be read")
