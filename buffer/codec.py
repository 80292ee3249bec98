"""Samples to bytes and back, as ``buffer.layout`` says."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from buffer.errors import SchemaError
from buffer.layout import (
    CRC,
    DTYPES,
    FORM,
    HEADER,
    MAGIC,
    SPLITS,
    TARGET,
    Layout,
    Place,
    layout_of,
    layout_of_form,
    text_of,
)
from buffer.sample import IDENTITY_DTYPE, SCHEMA_VERSION, Identity, Sample
from buffer.version import Version


class Prepared(NamedTuple):
    """n samples as bytes but for their names, which are only known once slots are reserved."""

    headers: NDArray[np.void]
    """``[n]`` of :data:`HEADER`."""
    bodies: list[bytes]
    """What follows the header, without the checksum."""
    layouts: list[Layout]
    """Of the forms among them."""


def prepare(samples: Sequence[Sample]) -> Prepared:
    """All of the samples' bytes but their names.

    Raises:
        SchemaError: a number is too large for its field; an image that is not uint8 ``[C, H, W]``;
            a target of a foreign dtype; names or targets too long, or too many, for their fields.
    """
    headers = _headers(samples)
    forms: dict[tuple[object, ...], tuple[bytes, bytes, list[tuple[str, str]]]] = {}
    bodies = []
    for sample in samples:
        targets = [(name, values.dtype, values.shape) for name, values in sample.targets.items()]
        key = (sample.producer, sample.method, sample.image.dtype, sample.image.shape, *targets)
        if key not in forms:
            codes = [(name, _stored_as(name, values)) for name, values in sample.targets.items()]
            forms[key] = _form(sample), b"".join(_names(sample)), codes
        form, names, codes = forms[key]
        arrays = [sample.targets[name].astype(code, copy=False).tobytes() for name, code in codes]
        bodies.append(b"".join((form, sample.image.tobytes(), *arrays, names)))
    return Prepared(headers, bodies, [layout_of_form(form) for form, _, _ in forms.values()])


def seal(prepared: Prepared, names: NDArray[np.void]) -> list[bytes]:
    """The payloads ``[n]`` of prepared samples under their names.

    Args:
        prepared: the samples.
        names: ``[n]`` of :data:`~buffer.sample.IDENTITY_DTYPE`.
    """
    prepared.headers["identity"] = names
    heads, size = prepared.headers.tobytes(), HEADER.itemsize
    sealed = []
    for row, body in enumerate(prepared.bodies):
        head = heads[row * size : (row + 1) * size]
        sealed.append(b"".join((head, body, CRC.pack(crc32(body, crc32(head))))))
    return sealed


def encode(sample: Sample, identity: Identity) -> bytes:
    """The bytes of a sample under its name.

    Raises:
        SchemaError: the sample does not fit the schema: see :func:`prepare`.
    """
    return seal(prepare([sample]), np.array([identity], dtype=IDENTITY_DTYPE))[0]


def rename(payload: bytes, identity: NDArray[np.void]) -> bytes:
    """An intact payload under another name, one of :data:`~buffer.sample.IDENTITY_DTYPE`."""
    start = HEADER.itemsize - IDENTITY_DTYPE.itemsize
    content = payload[:start] + identity.tobytes() + payload[HEADER.itemsize : -CRC.size]
    return content + CRC.pack(crc32(content))


def _headers(samples: Sequence[Sample]) -> NDArray[np.void]:
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


def _form(sample: Sample) -> bytes:
    if sample.image.dtype != np.uint8 or sample.image.ndim != 3:
        raise SchemaError(
            f"image ({sample.image.dtype} {list(sample.image.shape)}) is not uint8 [C, H, W]: "
            "it cannot be stored"
        )
    parts = []
    for name, values in sample.targets.items():
        encoded, code = name.encode(), _stored_as(name, values)
        try:
            parts.append(TARGET.pack(len(encoded), code.encode(), values.ndim))
        except struct.error as error:
            raise SchemaError(f"target {name!r} does not fit its field: {error}") from error
        parts += [encoded, struct.pack(f"<{values.ndim}I", *values.shape)]
    length = FORM.size + sum(map(len, parts))
    lengths = map(len, _names(sample))
    try:
        head = FORM.pack(length, *sample.image.shape, *lengths, len(sample.targets))
    except struct.error as error:
        raise SchemaError(f"a length of the sample does not fit its field: {error}") from error
    return head + b"".join(parts)


def names_of(sample: Sample) -> tuple[bytes, bytes]:
    """Producer and method."""
    return sample.producer.encode(), sample.method.encode()


def _names(sample: Sample) -> tuple[bytes, bytes]:
    return sample.producer.encode(), sample.method.encode()


def _stored_as(name: str, values: NDArray[np.generic]) -> str:
    code = values.dtype.newbyteorder("<").str
    if code not in DTYPES:
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
        producer=text_of(data[layout.producer : layout.method]),
        method=text_of(data[layout.method : -CRC.size]),
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


def _array(data: bytes, place: Place) -> NDArray[np.generic]:
    count = math.prod(place.shape)
    return np.frombuffer(data, place.dtype, count, place.start).reshape(place.shape)
