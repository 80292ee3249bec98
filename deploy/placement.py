"""Where synthesizers run: a place reserved for each, on the node that has fewest of them.

A place is a placement group of one bundle. It is held while its actor is dead, so that a training
that always asks for more workers cannot take the room before the successor comes; if its node
dies, Ray moves it. A place that no node has room for waits, and a node autoscaler sees it waiting.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distiller.service import resources

EXPIRY_SECONDS = 60.0
"""What is held for a pipeline that has died is free after so long."""
RENEWAL_SECONDS = 5.0
ANSWER_SECONDS = 10.0
TRACE = 0.001
"""Of the resource that only one node has: so much of it says where a place is."""

logger = logging.getLogger(__name__)


class Places:
    """The places of numbered actors that all need the same resources.

    Args:
        cpus: of one actor.
        gpus: of one actor.
    """

    def __init__(self, *, cpus: float, gpus: float = 0.0) -> None:
        self._resources = resources(cpus, gpus)
        self._groups: dict[int, PlacementGroup] = {}
        self._wishes: dict[int, str | None] = {}

    def of(self, number: int) -> PlacementGroupSchedulingStrategy:
        """The place of an actor; reserved by the first call."""
        if number not in self._groups:
            # Only a wish: what is full, or has just died, is passed over.
            wish = self._wishes[number] = self._emptiest()
            self._groups[number] = placement_group(
                [self._resources], strategy="STRICT_PACK", _soft_target_node_id=wish
            )
        return PlacementGroupSchedulingStrategy(self._groups[number])

    def give_up(self, number: int) -> None:
        """Frees the place of an actor that is not to come back."""
        group = self._groups.pop(number, None)
        if group is not None:
            remove_placement_group(group)

    def held(self, wanted: int) -> list[dict[str, float]]:
        """What the actors take, or will, if there are to be so many; where it is known, with where.

        Thread-safe.
        """
        groups = dict(self._groups)
        addresses = {
            node["NodeID"]: node["NodeManagerAddress"]
            for node in ray.nodes()  # type: ignore[no-untyped-call]
        }
        found = []
        for number in sorted(groups.keys() | range(wanted)):
            decided = _decided(groups[number]) if number in groups else None
            there = {f"node:{addresses[decided]}": TRACE} if decided in addresses else {}
            found.append(self._resources | there)
        return found

    def _emptiest(self) -> str | None:
        """The node with fewest places among those that are large enough for one."""
        taken = Counter(self._node_of(number) for number in self._groups)
        fitting = [
            node["NodeID"]
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"] and self._fits(node["Resources"])
        ]
        return min(fitting, key=lambda node: (taken[node], node), default=None)

    def _node_of(self, number: int) -> str | None:
        """Where a place is, or where it was wished for as long as nobody has decided."""
        return _decided(self._groups[number]) or self._wishes[number]

    def _fits(self, there: dict[str, float]) -> bool:
        return all(there.get(name, 0.0) >= least for name, least in self._resources.items())


class Reservation:
    """Keeps an elastic training from counting the room of synthesizers as its own.

    Ray Train asks for as many workers as the whole cluster could hold, whoever is there; with more
    than there is room for it would wait, try again, and never train. What is held in this way is
    left out of its count, and also what an actor is still waiting for: the training then makes room
    for it.

    Args:
        run: the run's name.
        places: of its synthesizers.
    """

    def __init__(self, run: str, places: Places) -> None:
        self._requester, self._places = f"ssdkd-{run}", places
        self._coordinator: Any = get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
        self._renewed = float("-inf")

    def renew(self, wanted: int) -> None:
        """Holds the room of so many actors a while longer; call it again and again."""
        now = time.monotonic()
        if now - self._renewed < RENEWAL_SECONDS:
            return
        self._renewed = now
        held = self._coordinator.request_resources.remote(
            requester_id=self._requester,
            resources=self._places.held(wanted),
            expire_after_s=EXPIRY_SECONDS,
            priority=ResourceRequestPriority.HIGH,
        )
        try:
            ray.get(held, timeout=ANSWER_SECONDS)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            logger.warning("the training may count the room of synthesizers as its own: %s", error)

    def end(self) -> None:
        """Frees what was held."""
        self._coordinator.cancel_request.remote(self._requester)


def _decided(group: PlacementGroup) -> str | None:
    """The node of a place, if that has been decided."""
    nodes = placement_group_table(group)["bundles_to_node_id"].values()
    return next((node for node in nodes if node), None)
