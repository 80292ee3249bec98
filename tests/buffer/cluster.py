"""A real Redis Cluster: three primaries that share the slots, and a fourth without any."""

from __future__ import annotations

from pathlib import Path

import redis

from tests.buffer.servers import TcpServer
from tests.waiting import until

SLOTS = 16_384
OWNERS = 3


class Cluster:
    """A cluster whose slots tests can move, and whose nodes they can stop.

    Args:
        folder: of the files of its nodes.
        options: of each node, as on the command line.
        binary: the executable; default: the one the product uses.
    """

    def __init__(self, folder: Path, *options: str, binary: str | None = None) -> None:
        mode = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        # A node that gave its last slot away stays what it is, instead of becoming a replica.
        mode += ("--cluster-allow-replica-migration", "no")
        names = [folder / str(number) for number in range(OWNERS + 1)]
        self.nodes = [TcpServer(name, *mode, *options, binary=binary) for name in names]
        self.clients = [redis.Redis.from_url(node.url) for node in self.nodes]
        self._ids = [client.execute_command("CLUSTER MYID") for client in self.clients]
        share = -(-SLOTS // OWNERS)
        for number, client in enumerate(self.clients):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number < OWNERS:
                own = range(SLOTS)[number * share : (number + 1) * share]
                client.execute_command("CLUSTER ADDSLOTS", *own)
            client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        self.wait()

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def wait(self) -> None:
        """Until every node says that all is well, which takes each at least 2 seconds."""
        well = {"cluster_state": "ok", "cluster_known_nodes": str(len(self.nodes))}
        until(
            lambda: all(
                well.items() <= client.execute_command("CLUSTER INFO").items()
                for client in self.clients
            )
        )

    def slot_of(self, key: str) -> int:
        return int(self.clients[0].execute_command("CLUSTER KEYSLOT", key))

    def holder_of(self, key: str) -> int:
        """The number of the node that has a key's slot."""
        slot = self.slot_of(key)
        for first, last, (_, port, *_), *_ in self.clients[0].execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return [node.port for node in self.nodes].index(port)
        raise AssertionError(f"nobody has slot {slot}")

    def begin_move(self, slot: int, source: int, target: int) -> None:
        """From now on the source sends everybody who asks for a key it lacks to the target."""
        ids = self._ids
        self.clients[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        self.clients[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])

    def move_keys(self, slot: int, source: int, target: int) -> None:
        giver, port = self.clients[source], self.nodes[target].port
        while keys := giver.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            giver.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, source: int, target: int) -> None:
        """The slot is the target's: the others hear of it."""
        for number in (target, source):
            self.clients[number].execute_command("CLUSTER SETSLOT", slot, "NODE", self._ids[target])

    def move(self, slot: int, source: int, target: int) -> None:
        for step in (self.begin_move, self.move_keys, self.end_move):
            step(slot, source, target)

    def stop(self) -> None:
        for client, node in zip(self.clients, self.nodes, strict=True):
            client.close()
            node.stop()
