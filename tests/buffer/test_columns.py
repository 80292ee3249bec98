"""Many payloads at once say the same as each on its own."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from buffer.codec import decode, encode, prepare, seal
from buffer.columns import Columns, combine, joined, read
from buffer.errors import SchemaError
from buffer.sample import IDENTITY_DTYPE, Identity, Sample
from buffer.version import Version


def sample(number: int, **fields: object) -> Sample:
    """A sample whose image and logits show its number."""
    plain = Sample(
        image=np.full((2, 3, 3), number % 256, np.uint8),
        predicted_class=number % 5,
        confidence=0.5,
        disagreement=float(number),
        targets={"logits": np.full(4, number, np.float32)},
        producer="synthesizer-0",
        born=Version(1, number),
        method="fast_meta",
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


FORMS: list[dict[str, object]] = [
    {},
    {"producer": "synthesizer-1"},
    {"producer": "synthesizer-10"},
    {"targets": {}},
    {"targets": {"logits": np.zeros(4, np.float16), "features": np.zeros((2, 2), np.int64)}},
    {"targets": {"scalar": np.array(7.0)}},
    {"targets": {"nothing": np.zeros((0, 3), np.float32)}},
    {"split": "probe"},
    {"image": np.zeros((1, 1, 1), np.uint8)},
]
SAMPLES = st.lists(st.sampled_from(FORMS), min_size=1, max_size=12).map(
    lambda forms: [sample(i, **form) for i, form in enumerate(forms)]
)


def names(n: int) -> np.ndarray:
    made = np.zeros(n, dtype=IDENTITY_DTYPE)
    made["shard"], made["incarnation"] = 3, 2**32 - 1
    made["slot"], made["generation"] = np.arange(n), np.arange(n) + 1
    return made


def rows_of(groups: list[tuple[np.ndarray, Columns]]) -> dict[int, tuple[Columns, int]]:
    """Where each payload went."""
    found: dict[int, tuple[Columns, int]] = {}
    for rows, columns in groups:
        for place, row in enumerate(rows.tolist()):
            assert row not in found
            found[row] = columns, place
    return found


@given(SAMPLES)
def test_payloads_written_together_are_those_written_one_by_one(samples: list[Sample]) -> None:
    identities = names(len(samples))
    together = seal(prepare(samples), identities)
    each = [
        encode(sample, Identity(*identity))
        for sample, identity in zip(samples, identities.tolist(), strict=True)
    ]
    assert together == each


@given(SAMPLES)
def test_payloads_read_together_say_what_each_says(samples: list[Sample]) -> None:
    payloads = seal(prepare(samples), names(len(samples)))
    found = rows_of(read(payloads))
    assert sorted(found) == list(range(len(samples)))
    for row, payload in enumerate(payloads):
        (identity, alone), (columns, place) = decode(payload), found[row]
        header = columns.headers[place]
        assert Identity(*header["identity"].tolist()) == identity
        assert header["predicted_class"] == alone.predicted_class
        assert header["step"] == alone.born.step
        assert header["disagreement"] == alone.disagreement
        assert np.array_equal(columns.images[place], alone.image)
        assert columns.targets.keys() == alone.targets.keys()
        for name, values in alone.targets.items():
            assert columns.targets[name].dtype == values.dtype
            assert np.array_equal(columns.targets[name][place], values)


@given(SAMPLES, st.data())
def test_what_is_damaged_is_left_out_and_nothing_else(
    samples: list[Sample], data: st.DataObject
) -> None:
    payloads: list[bytes | None] = [*seal(prepare(samples), names(len(samples)))]
    damaged = data.draw(st.sets(st.integers(0, len(payloads) - 1)))
    for row in damaged:
        whole = payloads[row]
        assert whole is not None
        kind = data.draw(st.sampled_from(["gone", "empty", "cut", "changed", "foreign"]))
        at = data.draw(st.integers(0, len(whole) - 1))
        changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))])
        payloads[row] = {
            "gone": None,
            "empty": b"",
            "cut": whole[:at],
            "changed": changed + whole[at + 1 :],
            "foreign": data.draw(st.binary(max_size=200)),
        }[kind]
    assert sorted(rows_of(read(payloads))) == sorted(set(range(len(payloads))) - damaged)


@given(SAMPLES, st.data())
def test_hostile_payloads_with_right_checksums_are_read_like_each_on_its_own(
    samples: list[Sample], data: st.DataObject
) -> None:
    payloads = seal(prepare(samples), names(len(samples)))
    for row, whole in enumerate(payloads):
        content = bytearray(whole[:-4])
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        payloads[row] = bytes(content) + struct.pack("<I", zlib.crc32(content))
    found = rows_of(read(payloads))
    for row, payload in enumerate(payloads):
        try:
            _, alone = decode(payload)
        except SchemaError:
            continue  # where it is for a name's sake: names are not read together
        columns, place = found[row]
        assert columns.images[place].tobytes() == alone.image.tobytes()


def test_pieces_are_put_where_they_belong() -> None:
    samples = [sample(i, **FORMS[i % 3]) for i in range(6)]
    groups = read(seal(prepare(samples), names(6)))
    assert len(groups) == 2  # by length; names of producers do not matter
    whole = combine(groups, 6)
    assert whole is not None
    assert whole.images[:, 0, 0, 0].tolist() == list(range(6))
    assert whole.targets["logits"][:, 0].tolist() == list(range(6))
    assert combine([], 6) is None


def test_arrays_that_were_read_can_be_torch_tensors_and_be_changed() -> None:
    ((_, columns),) = read(seal(prepare([sample(i) for i in range(3)]), names(3)))
    images, logits = map(torch.from_numpy, (columns.images, columns.targets["logits"]))
    images += 1
    logits += 1
    assert columns.images[:, 0, 0, 0].tolist() == logits[:, 0].tolist() == [1, 2, 3]


def test_a_batch_keeps_the_targets_that_all_its_pieces_have() -> None:
    with_logits = read(seal(prepare([sample(1)]), names(1)))[0][1]
    without = read(seal(prepare([sample(2, targets={})]), names(1)))[0][1]
    both = joined([with_logits, without, with_logits])
    assert both.targets == {}
    assert both.images[:, 0, 0, 0].tolist() == [1, 2, 1]


def test_a_sample_that_does_not_fit_is_refused_before_anything_is_reserved() -> None:
    with pytest.raises(SchemaError, match="is not uint8"):
        prepare([sample(1), sample(2, image=np.zeros((2, 2), np.uint8))])
