from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.errors import SchemaError
from buffer.snapshots import pack, unpack
from buffer.version import Version

UINT32 = st.integers(0, 2**32 - 1)


@given(st.binary(), UINT32, UINT32)
def test_a_snapshot_comes_back_with_its_version(weights: bytes, attempt: int, step: int) -> None:
    version = Version(attempt, step)
    assert unpack(pack(weights, version)) == (version, weights)


def test_a_truncated_snapshot_is_refused() -> None:
    with pytest.raises(SchemaError, match="has 9 bytes of 10: truncated"):
        unpack(pack(b"0123456789", Version(1, 1))[:-1])


def test_a_damaged_snapshot_is_refused() -> None:
    data = bytearray(pack(b"0123456789", Version(1, 1)))
    data[-1] ^= 1
    with pytest.raises(SchemaError, match="CRC32 differs"):
        unpack(bytes(data))


@pytest.mark.parametrize("data", [b"", b"SSDS", b"x" * 100])
def test_foreign_bytes_are_not_a_snapshot(data: bytes) -> None:
    with pytest.raises(SchemaError, match="are not a student snapshot"):
        unpack(data)
