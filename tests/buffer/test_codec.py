from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from buffer.codec import decode, encode
from buffer.errors import SchemaError
from buffer.layout import FORM, HEADER
from buffer.sample import Identity, Sample
from buffer.version import Version

UINT32 = st.integers(0, 2**32 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
TARGETS = st.sampled_from([*DTYPES, "float16", "float32", "float64"]).flatmap(
    lambda dtype: arrays.arrays(
        dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    )
)
FINITE = st.floats(allow_nan=False)
SAMPLES = st.builds(
    Sample,
    image=arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 3)),
    predicted_class=INT32,
    confidence=FINITE,
    disagreement=FINITE,
    target_label=INT32,
    targets=st.dictionaries(st.text(max_size=8), TARGETS, max_size=3),
    split=st.sampled_from(["train", "probe"]),
    member=UINT32,
    producer=st.text(max_size=20),
    born=st.builds(Version, UINT32, UINT32),
    method=st.text(max_size=20),
)
IDENTITIES = st.builds(Identity, st.integers(0, 2**16 - 1), UINT32, UINT32, UINT32)
NAME = Identity(1, 2**32 - 1, 3, 4)
PLAIN = Sample(
    image=np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
    predicted_class=3,
    confidence=0.5,
    disagreement=0.25,
    targets={"logits": np.array([1.5, -2.0], dtype=np.float32)},
    producer="synthesizer-0",
    method="fast_meta",
)


def same(one: Sample, other: Sample) -> bool:
    scalars = [replace(sample, image=np.zeros(0), targets={}) for sample in (one, other)]
    return (
        repr(scalars[0]) == repr(scalars[1])
        and equal_arrays(one.image, other.image)
        and one.targets.keys() == other.targets.keys()
        and all(equal_arrays(one.targets[name], other.targets[name]) for name in one.targets)
    )


def equal_arrays(one: Any, other: Any) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@given(SAMPLES, IDENTITIES)
def test_a_sample_comes_back_as_it_was(sample: Sample, identity: Identity) -> None:
    name, decoded = decode(encode(sample, identity))
    assert name == identity
    assert same(decoded, sample)


def test_strided_and_big_endian_arrays_come_back_by_value() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)[:, ::2, ::-2]
    logits = np.array([1.0, 2.0], dtype=">f4")
    _, decoded = decode(encode(replace(PLAIN, image=image, targets={"logits": logits}), NAME))
    assert np.array_equal(decoded.image, image)
    assert np.array_equal(decoded.targets["logits"], logits)


def test_decoded_arrays_cannot_be_changed() -> None:
    _, decoded = decode(encode(PLAIN, NAME))
    assert not decoded.image.flags.writeable
    assert not decoded.targets["logits"].flags.writeable


@given(SAMPLES, st.data())
def test_truncated_bytes_are_refused(sample: Sample, data: st.DataObject) -> None:
    encoded = encode(sample, NAME)
    length = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(SchemaError):
        decode(encoded[:length])


@given(SAMPLES, st.data())
def test_a_changed_byte_anywhere_is_noticed(sample: Sample, data: st.DataObject) -> None:
    encoded = bytearray(encode(sample, NAME))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SchemaError):
        decode(bytes(encoded))


@given(SAMPLES, st.data())
def test_hostile_bytes_with_a_right_checksum_raise_nothing_but_schema_errors(
    sample: Sample, data: st.DataObject
) -> None:
    encoded = bytearray(encode(sample, NAME))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    try:
        _, decoded = decode(sealed(encoded))
    except SchemaError:
        return
    assert decoded.image.ndim == 3


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SchemaError):
        decode(data)


def sealed(encoded: bytearray) -> bytes:
    """With a checksum that fits: what a hostile producer could write."""
    content = bytes(encoded[:-4])
    return content + struct.pack("<I", zlib.crc32(content))


def changed(at: int, value: bytes) -> bytes:
    encoded = bytearray(encode(PLAIN, NAME))
    encoded[at : at + len(value)] = value
    return sealed(encoded)


FORM_AT = HEADER.itemsize
TARGET_AT = FORM_AT + FORM.size
NAMES = len("synthesizer-0fast_meta")


def with_dimensions(dimensions: bytes) -> bytes:
    """A sample whose only target has these dimensions, and no bytes."""
    empty = encode(replace(PLAIN, targets={"t": np.zeros((0,), np.float32)}), NAME)
    target = empty[TARGET_AT : TARGET_AT + 4] + bytes([len(dimensions) // 4]) + b"t" + dimensions
    length = (FORM.size + len(target)).to_bytes(2, "little")
    head = empty[:FORM_AT] + length + empty[FORM_AT + 2 : TARGET_AT]
    rest = empty[-4 - NAMES - PLAIN.image.nbytes :]
    return sealed(bytearray(head + target + rest))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: changed(0, b"JUNK"), "magic .* not a sample"),
        (lambda: changed(4, b"\x09\x00"), r"schema version \(9\) is not 2: cannot be read"),
        (lambda: changed(6, b"\x02"), r"split \(2\) is neither 0 nor 1"),
        (lambda: changed(TARGET_AT - 1, b"\x00"), r"a form of \d+ bytes that describes 19"),
        (lambda: changed(TARGET_AT - 1, b"\x02"), "truncated"),
        (lambda: changed(FORM_AT, b"\xff\xff"), "truncated|describes"),
        (lambda: changed(FORM_AT + 2, b"\xff\xff\xff\xff"), "truncated"),
        (lambda: changed(FORM_AT + 2, b"\x01"), r"\d+ bytes too many"),
        (lambda: changed(-4 - NAMES, b"\xff"), "a name is not UTF-8"),
        (lambda: with_dimensions(bytes(4) + b"\xff" * 8), r"3 dimensions \(\(0, 4294967295"),
        (lambda: with_dimensions(bytes(4 * 200)), r"200 dimensions .*maximum supported"),
        (lambda: changed(TARGET_AT + 1, b"|O8"), r"dtype '\|O8': cannot be read"),
        (lambda: encode(PLAIN, NAME) + b"x", "CRC32 differs: the sample is damaged"),
        (lambda: encode(PLAIN, NAME)[:10], "10 bytes where at least 57 belong: truncated"),
    ],
)
def test_what_is_wrong_is_said(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        decode(data())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": np.zeros((3, 2, 2), np.float32)}, r"image \(float32 \[3, 2, 2\]\) is not uint8"),
        ({"image": np.zeros((2, 2), np.uint8)}, r"image \(uint8 \[2, 2\]\) is not uint8 \[C, H, W"),
        ({"targets": {"a": np.array([None])}}, "target 'a' has dtype object: it cannot be stored"),
        ({"targets": {"a" * 256: np.zeros(1)}}, "does not fit its field"),
        ({"producer": "p" * 65536}, "does not fit its field"),
        ({"member": -1}, "does not fit its field"),
        ({"born": Version(0, 2**32)}, "does not fit its field"),
    ],
)
def test_samples_that_do_not_fit_the_schema_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        encode(replace(PLAIN, **fields), NAME)
