"""Places in a real cluster of several nodes, which need not be at work for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.config import ScalingConfig
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from deploy.fitting import Several
from deploy.placement import Places, Reservation
from distiller.service import resources
from tests.waiting import until

pytestmark = pytest.mark.integration

NOBODY = Several({"CPU": 1.0}, 0)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A head that holds nothing, two nodes of CPUs, one with a GPU as well."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for number, gpus in enumerate((0, 0, 1), start=2):  # with an address of its own each
        cluster.add_node(num_cpus=2, num_gpus=gpus, node_ip_address=f"127.0.0.{number}")
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def places() -> Iterator[Callable[..., Places]]:
    made: list[Places] = []

    def make(*, cpus: float, gpus: float = 0.0, training: Several = NOBODY) -> Places:
        made.append(Places(resources(cpus, gpus), training))
        return made[-1]

    yield make
    for each in made:
        for number in range(20):
            each.give_up(number)


def place(places: Places, number: int, seconds: float = 20.0) -> PlacementGroup | None:
    """The place of an actor, if it has one within so long."""
    deadline = time.monotonic() + seconds
    while (strategy := places.of(number)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return None if strategy is None else strategy.placement_group


def nodes_of(places: Places, count: int) -> Counter[str]:
    """Where the first so many places are."""
    groups = [place(places, number) for number in range(count)]
    assert None not in groups
    tables = [placement_group_table(group) for group in groups]
    return Counter(node for table in tables for node in table["bundles_to_node_id"].values())


def test_places_are_spread_over_the_nodes(places: Callable[..., Places]) -> None:
    found = nodes_of(places(cpus=0.5), 6)
    assert sorted(found.values()) == [2, 2, 2]


def test_fractions_of_a_gpu_share_it_and_other_nodes_are_passed_over(
    places: Callable[..., Places],
) -> None:
    some = places(cpus=0.25, gpus=0.5)
    found = nodes_of(some, 2)
    (node,) = found
    resources = {each["NodeID"]: each["Resources"] for each in ray.nodes()}
    assert resources[node]["GPU"] == 1
    assert not place(some, 2, 1), "a third half of one GPU"
    some.give_up(0)
    assert place(some, 2)


def test_a_place_is_held_while_nobody_sits_on_it(places: Callable[..., Places]) -> None:
    held = places(cpus=2)
    nodes_of(held, 3)
    assert not place(places(cpus=1), 0, 1)
    held.give_up(1)
    assert place(places(cpus=1), 1)


def trainers(count: int) -> PlacementGroup:
    """Room for workers of two CPUs each, as Ray Train asks for it."""
    return placement_group([{"CPU": 2.0}] * count)


def test_who_waits_for_room_takes_none_of_a_training_that_starts_its_workers_again(
    places: Callable[..., Places],
) -> None:
    some = places(cpus=2, training=Several({"CPU": 2.0}, 2))
    assert place(some, 0)
    for _ in range(2):
        group = trainers(2)
        assert group.wait(20)
        assert not place(some, 1, 1)
        remove_placement_group(group)
        assert not place(some, 1, 1), "the training's workers are only away for a moment"


def test_places_are_not_spread_so_that_a_large_worker_has_no_node(
    places: Callable[..., Places],
) -> None:
    some = places(cpus=0.5, training=Several({"CPU": 2.0}, 2))
    assert sorted(nodes_of(some, 4).values()) == [4]
    group = trainers(2)
    assert group.wait(20)
    remove_placement_group(group)


def test_a_place_that_the_training_has_come_to_need_is_given_up(
    places: Callable[..., Places],
) -> None:
    some = places(cpus=2, training=NOBODY)
    nodes_of(some, 3)
    some._training = Several({"CPU": 2.0}, 1)  # as if a node with a worker had died
    assert [some.tenable(number) for number in range(3)] == [True, True, False]
    assert some.of(2) is None
    group = trainers(1)
    assert group.wait(20)
    assert place(some, 1), "one was enough"
    remove_placement_group(group)


def workers(policy: ElasticScalingPolicy) -> Any:
    """For how many workers an elastic training thinks there is room."""
    policy._latest_reserved_resources_query_time = float("-inf")
    reserved = policy._get_reserved_resources()
    return None if reserved is None else policy._count_possible_workers(reserved)


def test_an_elastic_training_leaves_synthesizers_their_room(
    places: Callable[..., Places],
) -> None:
    policy = ElasticScalingPolicy(
        ScalingConfig(num_workers=(1, 10), resources_per_worker={"CPU": 1})
    )
    some = places(cpus=0.5)
    nodes_of(some, 3)
    reservation = Reservation("run", some)
    reservation.renew(3)
    policy.after_controller_start(SimpleNamespace(run_id="training"))  # type: ignore[arg-type]
    # One CPU of each node is whole.
    until(lambda: workers(policy) == 3)
    some.give_up(0)
    reservation._renewed = float("-inf")
    reservation.renew(1)
    assert [bundle["CPU"] for bundle in some.held(1)] == [0.5] * 3, "two that are, one that comes"
    reservation.end()
    until(lambda: workers(policy) == 6)
