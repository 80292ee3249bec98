"""The student snapshot as bytes: a self-describing header, then safetensors."""

from __future__ import annotations

import struct

from isal.isal_zlib import crc32

from buffer.errors import SchemaError
from buffer.version import Version

MAGIC = b"SSDS"
_HEADER = struct.Struct("<4sIIQI")


def pack(weights: bytes, version: Version) -> bytes:
    """A snapshot of ``weights`` (safetensors) that says which version it is."""
    return _HEADER.pack(MAGIC, *version, len(weights), crc32(weights)) + weights


def unpack(data: bytes) -> tuple[Version, bytes]:
    """The inverse of :func:`pack`.

    Raises:
        SchemaError: the bytes are truncated, corrupt or not a snapshot.
    """
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise SchemaError(f"{len(data)} bytes are not a student snapshot")
    _, attempt, step, length, crc = _HEADER.unpack_from(data)
    weights = data[_HEADER.size :]
    if len(weights) != length:
        raise SchemaError(f"student snapshot has {len(weights)} bytes of {length}: truncated")
    if crc32(weights) != crc:
        raise SchemaError("student snapshot's CRC32 differs: it is damaged")
    return Version(attempt, step), weights
