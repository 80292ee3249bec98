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
from ray.util.placement_group import placement_group_table

from deploy.placement import Places, Reservation

pytestmark = pytest.mark.integration


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

    def make(**needs: float) -> Places:
        made.append(Places(**needs))
        return made[-1]

    yield make
    for each in made:
        for number in range(20):
            each.give_up(number)


def nodes_of(places: Places, count: int) -> Counter[str]:
    """Where the first so many places are, when all is decided."""
    groups = [places.of(number).placement_group for number in range(count)]
    for group in groups:
        assert group.wait(20)
    tables = [placement_group_table(group) for group in groups]
    return Counter(node for table in tables for node in table["bundles_to_node_id"].values())


def until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


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
    assert not some.of(2).placement_group.wait(1), "a third half of one GPU"
    some.give_up(0)
    assert some.of(2).placement_group.wait(20)


def test_a_place_is_held_while_nobody_sits_on_it(places: Callable[..., Places]) -> None:
    held = places(cpus=2)
    nodes_of(held, 3)
    assert not places(cpus=1).of(0).placement_group.wait(1)
    held.give_up(1)
    assert places(cpus=1).of(1).placement_group.wait(20)


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
