"""Where synthesizers run: a place reserved for each, on the node that has fewest of them.

A place is a placement group of one bundle. It is held while its actor is dead, so that a training
that always asks for more workers cannot take the room before the successor comes; if its node
dies, Ray moves it. A place that no node has room for waits, and a node autoscaler sees it waiting.
"""

from __future__ import annotations

from collections import Counter

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deploy.cluster import bundle


class Places:
    """The places of numbered actors that all need the same resources.

    Args:
        cpus: of one actor.
        gpus: of one actor.
    """

    def __init__(self, *, cpus: float, gpus: float = 0.0) -> None:
        self._resources = bundle(cpus, gpus)
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
        decided = placement_group_table(self._groups[number])["bundles_to_node_id"].values()
        return next((node for node in decided if node), self._wishes[number])

    def _fits(self, resources: dict[str, float]) -> bool:
        return all(resources.get(name, 0.0) >= least for name, least in self._resources.items())
