"""Every Redis key of a replay buffer and its type: the database schema.

All keys of a shard begin with ``{ssdkd:<run>:<shard>}:``. The braces are a hash tag: Redis Cluster
keeps all of them on one node, and one ACL pattern (``~{ssdkd:<run>:<shard>}:*``) covers them.

==================  ======  ========================================================================
meta                hash    ``protocol incarnation created``, the limits of ``buffer.config``, and
                            ``process least_generation``: see ``lua/reserve.lua``
params              hash    the sampling parameters in force, one field each; absent is ''
counters            hash    sizes, heads, totals, the limiter's ``balance``, ``warm`` (0 or 1),
                            ``changes`` of what is drawn from
slots               string  24 bytes a slot, six little-endian uint32: state (0 empty, 1 reserved,
                            2 committed), generation, cell, position in the cell, attempt and step
                            of the newest priority update
groups              string  directory of the groups that are not empty, 72 bytes each: uint32 group,
                            items, then items in each of 16 cohorts; as many as ``groups:index`` has
                            fields, the rest is left over
groups:index        hash    group -> its place in the directory
cell:<cell>         string  uint32 pairs slot, generation of the items in the cell; as many as
                            ``groups`` says, the rest is left over
free                string  uint32 slots that are empty and behind the head, a stack of as many as
                            the counter ``free`` says; not used where the oldest are evicted
queue               list    uint32 pairs slot, generation, oldest first; only for ``fifo``
x:<slot>            string  payload, see ``buffer.layout``; may be older or newer than the slot says
seen                hash    producer -> its newest insert: uint32 epoch, sequence, committed (0 or
                            1), inserted, then until committed uint32 pairs slot, generation
epochs              hash    producer -> epoch of the newest process that inserts under this name
permits             hash    producer -> uint32 samples, float64 deadline (server time, seconds)
schema              hash    ``image`` or a target's name -> dtype and shape of all stored ones
attempts            hash    role -> its newest attempt; outlives a reset
progress            string  JSON of ``buffer.progress.StudentProgress``
progress:version    string  ``<attempt>.<step>`` of it
student             string  the student snapshot, see ``buffer.snapshots``
student:version     string  ``<attempt>.<step>`` of it
owner               string  token of the pipeline that is the run; expires, see ``buffer.lease``
==================  ======  ========================================================================

A cell is the number ``label << 16 | level << 8 | cohort``: predicted class below 65536, priority
level below 256, insertion cohort below 16 (see ``buffer.priorities``). A group is the number
``label << 8 | level``: the cells that differ in the cohort only.

Slots ``[0, capacity)`` are the ring of training samples, ``[capacity, capacity + probe_capacity)``
that of probe samples, which are in no cell.

Scripts get ``cell:`` as a declared key and append the cell's number to it. Redis asks for declared
keys so that Cluster can route a script and ACLs can judge it; the hash tag and the pattern above
hold for the derived names too, so both judge them right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PROTOCOL = 2
"""Of keys, records and scripts together: clients of two protocols cannot share a buffer."""


@dataclass(frozen=True)
class Keys:
    """The keys of one shard of a run."""

    run: str
    shard: int = 0

    def _key(self, name: str) -> str:
        return f"{{ssdkd:{self.run}:{self.shard}}}:{name}"

    @property
    def scripted(self) -> list[str]:
        """KEYS of every script, in the order that ``lua/prelude.lua`` names them."""
        names = (
            *("meta", "params", "counters", "slots", "groups", "groups:index", "cell:"),
            *("seen", "permits", "schema", "free", "queue", "attempts"),
            *("progress", "progress:version", "student", "student:version"),
        )
        return [self._key(name) for name in names]

    @property
    def meta(self) -> str:
        """Limits, protocol and incarnation."""
        return self._key("meta")

    @property
    def owner(self) -> str:
        """Who is the run of this name."""
        return self._key("owner")

    @property
    def params(self) -> str:
        """The sampling parameters."""
        return self._key("params")

    @property
    def epochs(self) -> str:
        """Epochs of producers."""
        return self._key("epochs")

    @property
    def schema(self) -> str:
        """Dtype and shape of arrays."""
        return self._key("schema")

    @property
    def progress(self) -> str:
        """The student's progress; its version is under ``version_of`` this key."""
        return self._key("progress")

    @property
    def student(self) -> str:
        """The student snapshot; its version is under ``version_of`` this key."""
        return self._key("student")

    @staticmethod
    def version_of(key: str) -> str:
        """Where the version of a published value is."""
        return f"{key}:version"

    def payloads(self, slots: Iterable[int]) -> list[str]:
        """The payload keys of slots."""
        prefix = self._key("x:")
        return [f"{prefix}{slot}" for slot in slots]
