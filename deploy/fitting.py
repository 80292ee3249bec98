"""Which processes have room beside which others on the nodes of a cluster. Pure: no Ray.

Why by all that a node has, not by what is free of it: the room of a training whose workers are
being started again looks free for a moment, and is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Amounts = Mapping[str, float]
"""Of resources, by name."""
ROUNDING = 1e-6
"""Three thirds fit into a whole."""


@dataclass(frozen=True)
class Several:
    """So many processes that all need the same."""

    need: Amounts
    count: int


def room(there: Amounts, need: Amounts) -> int:
    """For how many processes of one kind there is room."""
    return max(0, min(int(there.get(name, 0.0) / least + ROUNDING) for name, least in need.items()))


def hosts(
    need: Amounts, nodes: Mapping[str, Amounts], taken: Iterable[str], beside: Several
) -> list[str]:
    """The nodes that may take one more process, those with the fewest first.

    Args:
        need: of one process.
        nodes: what each has.
        taken: the node of each process of this kind so far; others than ``nodes`` do not count.
        beside: there must be room left for these, anywhere.
    """
    counts = Counter(taken)
    left = {node: _less(there, need, counts[node]) for node, there in nodes.items()}
    rooms = {node: room(there, beside.need) for node, there in left.items()}
    spare = sum(rooms.values()) - beside.count
    found = [
        node
        for node, there in left.items()
        if room(there, need) and spare >= rooms[node] - room(_less(there, need, 1), beside.need)
    ]
    return sorted(found, key=lambda node: (counts[node], node))


def all_fit(several: Several, nodes: Mapping[str, Amounts], beside: Several) -> bool:
    """Whether processes that are placed one after another, and these beside, have room."""
    taken: list[str] = []
    while len(taken) < several.count:
        found = hosts(several.need, nodes, taken, beside)
        if not found:
            return False
        taken.append(found[0])
    return True


def _less(there: Amounts, need: Amounts, count: int) -> Amounts:
    return {name: amount - count * need.get(name, 0.0) for name, amount in there.items()}
