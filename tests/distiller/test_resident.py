from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from buffer.sample import IDENTITY_DTYPE, Batch
from distiller.resident import ResidentImages, resident_images

CPU = torch.device("cpu")


def batches(make_batch, shards: int, slots: int, count: int) -> Iterator[Batch]:
    """Draws whose image says its whole name, from a buffer in which slots are used again."""
    random = np.random.default_rng(0)
    for number in range(count):
        names = np.zeros(32, IDENTITY_DTYPE)
        names["shard"] = random.integers(0, shards, 32)
        names["slot"] = random.integers(0, slots, 32)
        names["incarnation"] = 7
        # Older and newer ones of a slot come in one batch, too.
        names["generation"] = number // 5 + random.integers(0, 2, 32)
        images = np.zeros((32, 1, 8, 8), np.uint8)
        for place, field in enumerate(("shard", "slot", "generation")):
            images[:, 0, 0, place] = names[field]
        yield replace(make_batch(32), images=images, identities=names)


@pytest.mark.parametrize(("shards", "slots"), [(1, 100), (4, 25), (3, 100)])
def test_every_draw_gets_its_own_image(make_batch, shards, slots):
    resident = ResidentImages(100, CPU)
    for batch in batches(make_batch, shards, slots, 50):
        images = resident.of(batch)
        assert images.dtype == torch.uint8
        np.testing.assert_array_equal(images.numpy(), batch.images)


@pytest.mark.parametrize(("shards", "slots"), [(1, 100), (4, 25)])
def test_an_image_is_copied_once(make_batch, shards, slots):
    resident, seen = ResidentImages(100, CPU), set()
    for batch in batches(make_batch, shards, slots, 5):
        batch.identities["generation"] = 1
        batch.images[:, 0, 0, 2] = 1
        resident.of(batch)
        seen |= {name.tobytes() for name in batch.identities}
    # The first batches show how many shards there are; until then rows are not yet final.
    assert len(seen) <= resident.copied < len(seen) + 32
    before = resident.copied
    resident.of(batch)
    assert resident.copied == before


def test_without_room_every_image_is_copied(make_batch):
    resident = ResidentImages(0, CPU)
    for batch in batches(make_batch, 1, 100, 3):
        np.testing.assert_array_equal(resident.of(batch).numpy(), batch.images)
    assert resident.copied == 96


def test_all_of_the_buffer_or_nothing_is_kept_and_only_on_a_gpu(make_config):
    # 2**14 images of 64 bytes are a mebibyte.
    fitting = ("buffer.capacity=16000", "buffer.probe_capacity=384")
    one = "distiller.device_cache_mebibytes=1"
    gpu = torch.device("cuda")
    assert resident_images(make_config(*fitting, one), gpu).rows == 2**14
    assert resident_images(make_config(*fitting, one), CPU).rows == 0
    assert resident_images(make_config("buffer.capacity=16001", *fitting[1:], one), gpu).rows == 0
