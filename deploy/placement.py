"""Where synthesizers run: a place reserved for each, on the node that has fewest of them.

A place is a placement group of one bundle. It is held while its actor is dead, so that a training
that always asks for more workers cannot take the room before the successor comes; if its node
dies, Ray moves it. One for which there is no room beside the training is not asked for until nodes
come, which a node autoscaler is told of by the reservation.
"""

from __future__ import annotations

import logging
import time
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

from deploy.fitting import Amounts, Several, hosts

EXPIRY_SECONDS = 60.0
"""What is held for a pipeline that has died is free after so long."""
RENEWAL_SECONDS = 5.0
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 0.5
"""Nodes and places are looked at so often at most, however many actors ask at once."""
TRACE = 0.001
"""Of the resource that only one node has: so much of it says where a place is."""

logger = logging.getLogger(__name__)


class Places:
    """The places of numbered actors that all need the same resources.

    Args:
        need: of one actor.
        training: its workers, for which room is left on the nodes.
    """

    def __init__(self, need: Amounts, training: Several) -> None:
        self._need, self._training = dict(need), training
        self._groups: dict[int, PlacementGroup] = {}
        self._wishes: dict[int, str] = {}
        self._looked = float("-inf")
        self._nodes: list[dict[str, Any]] = []
        self._tables: dict[str, dict[str, Any]] = {}

    def of(self, number: int) -> PlacementGroupSchedulingStrategy | None:
        """The place of an actor that is to be started; ``None`` as long as it has none: ask again.

        None is asked for that would leave too little for the training: as soon as its workers are
        started again, whoever still waits would take their room. One that has come to be where
        they need it, since nodes died, is given up.
        """
        self._look()
        decided = self._decided()
        taken = self._wishes | decided
        mine = taken.pop(number, None)
        found = hosts(self._need, self._alive(), taken.values(), self._training)
        if mine not in found:
            self.give_up(number)
            if found:
                self._ask(number, found[0])
        elif number in decided:
            return PlacementGroupSchedulingStrategy(self._groups[number])
        return None

    def tenable(self, number: int) -> bool:
        """Whether the place of an actor still leaves enough for the training.

        It does not if too many nodes have died; then those with the highest numbers have to go. An
        actor whose own node has died is not looked at: it has gone.
        """
        self._look()
        decided, alive = self._decided(), self._alive()
        if decided.get(number) not in alive:
            return True
        lower = [node for other, node in decided.items() if other < number]
        return decided[number] in hosts(self._need, alive, lower, self._training)

    def give_up(self, number: int) -> None:
        """Frees the place of an actor that is not to come back."""
        group = self._groups.pop(number, None)
        self._wishes.pop(number, None)
        if group is not None:
            remove_placement_group(group)

    def held(self, wanted: int) -> list[dict[str, float]]:
        """What the actors take, or will, if there are to be so many; where it is known, with where.

        Thread-safe.
        """
        self._look()
        decided = self._decided()
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in self._nodes}
        found = []
        for number in sorted(self._groups.copy().keys() | range(wanted)):
            node = decided.get(number)
            there = {f"node:{addresses[node]}": TRACE} if node in addresses else {}
            found.append(self._need | there)
        return found

    def _ask(self, number: int, node: str) -> None:
        # Only a wish: what is full, or has just died, is passed over.
        self._wishes[number] = node
        self._groups[number] = placement_group(
            [self._need], strategy="STRICT_PACK", _soft_target_node_id=node
        )

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._nodes = ray.nodes()  # type: ignore[no-untyped-call]
            self._tables = placement_group_table()
            self._looked = now

    def _alive(self) -> dict[str, Amounts]:
        return {node["NodeID"]: node["Resources"] for node in self._nodes if node["Alive"]}

    def _decided(self) -> dict[int, str]:
        """The nodes of the places that are there."""
        found = {}
        for number, group in self._groups.copy().items():
            table = self._tables.get(group.id.hex(), {})
            if table.get("state") == "CREATED":
                (found[number],) = table["bundles_to_node_id"].values()
        return found


class Reservation:
    """Tells an autoscaler, and an elastic training, of the room that synthesizers need.

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
