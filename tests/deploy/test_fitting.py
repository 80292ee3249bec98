"""What has room beside what."""

from __future__ import annotations

import pytest

from deploy.fitting import Several, all_fit, hosts, room

NOBODY = Several({"CPU": 1}, 0)


def test_room_is_what_the_scarcest_resource_allows() -> None:
    assert room({"CPU": 4, "GPU": 1}, {"CPU": 1, "GPU": 0.5}) == 2
    assert room({"CPU": 1}, {"CPU": 1 / 3}) == 3
    assert room({"CPU": 4}, {"CPU": 1, "GPU": 1}) == 0
    assert room({"CPU": -0.5}, {"CPU": 1}) == 0


def test_the_nodes_with_the_fewest_come_first_and_full_ones_not_at_all() -> None:
    nodes = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}, "c": {"CPU": 1.0}, "d": {"CPU": 0.0}}
    assert hosts({"CPU": 1}, nodes, ["a", "c", "gone"], NOBODY) == ["b", "a"]


def test_the_room_of_those_beside_is_left_to_them() -> None:
    nodes = {"a": {"CPU": 4.0}, "b": {"CPU": 4.0}}
    worker = Several({"CPU": 4}, 1)
    assert hosts({"CPU": 2}, nodes, [], worker) == ["a", "b"]
    assert hosts({"CPU": 2}, nodes, ["a"], worker) == ["a"]
    assert hosts({"CPU": 2}, nodes, ["a", "a"], worker) == []


def test_who_needs_no_gpu_does_not_take_the_room_of_who_does() -> None:
    nodes = {"a": {"CPU": 4.0, "GPU": 1.0}, "b": {"CPU": 4.0}}
    assert hosts({"CPU": 2}, nodes, [], Several({"CPU": 4, "GPU": 1}, 1)) == ["b"]


@pytest.mark.parametrize(("count", "fit"), [(1, True), (3, True), (4, False)])
def test_processes_fit_together_or_not(count: int, fit: bool) -> None:
    nodes = {"a": {"CPU": 4.0}, "b": {"CPU": 4.0}}
    assert all_fit(Several({"CPU": 2}, count), nodes, Several({"CPU": 2}, 1)) is fit
