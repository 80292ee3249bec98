from __future__ import annotations

import pytest

from distiller.config import DistillerTable
from distiller.schedule import crop_size, crop_sizes


@pytest.mark.parametrize(
    ("share", "size"),
    [
        (0.0, (16, 16)),
        (0.09, (16, 16)),
        (0.11, (20, 20)),
        (0.4, (24, 24)),
        (0.69, (28, 28)),
        (0.71, None),
        (0.8, None),
        (1.0, None),
    ],
)
def test_crops_grow_to_whole_images(share: float, size: tuple[int, int] | None) -> None:
    table = DistillerTable(first_crop=0.5, whole_from=0.8)
    assert crop_size(table, share, (32, 32)) == size


def test_images_are_whole_unless_asked() -> None:
    assert crop_size(DistillerTable(), 0.0, (32, 32)) is None


def test_crops_grow_from_the_first_step_on() -> None:
    table = DistillerTable(first_crop=0.5, whole_from=0.8)
    sizes = [crop_size(table, share, (32, 32), first_share=0.4) for share in (0.4, 0.6, 0.79)]
    assert sizes == [(16, 16), (24, 24), None]
    assert crop_size(table, 0.9, (32, 32), first_share=0.9) is None


def test_all_sizes_of_a_training_are_known_beforehand() -> None:
    sizes = crop_sizes(DistillerTable(first_crop=0.5), (32, 24))
    assert [height for height, _ in sizes] == [16, 20, 20, 24, 24, 28, 28, 32]
    assert [width for _, width in sizes] == [12, 12, 16, 16, 20, 20, 24, 24]
    assert crop_sizes(DistillerTable(), (32, 24)) == [(32, 24)]


def test_a_crop_has_at_least_four_pixels_and_no_more_than_there_are() -> None:
    table = DistillerTable(first_crop=0.01)
    assert crop_size(table, 0.0, (8, 64)) == (4, 4)
    assert crop_size(table, 0.0, (3, 64)) == (3, 4)
