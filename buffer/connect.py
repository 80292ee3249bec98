"""The buffer of a run, wherever it is: on one server, or on several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from buffer.config import BufferTable
from buffer.connection import host_of
from buffer.division import table_of_shard
from buffer.interface import Replay
from buffer.members import Member
from buffer.observer import UNOBSERVED, Observer
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.shards import ShardedReplayBuffer


def connect(
    table: BufferTable,
    *,
    url: str,
    run: str,
    params: SamplingParams | None = None,
    seed: int | None = None,
    fresh: bool = False,
    observer: Observer = UNOBSERVED,
) -> Replay:
    """The buffer of a run: on one server, or on several.

    Args:
        table: the limits of the whole buffer.
        url: of the Redis server, or of several, separated by commas.
        run: names the buffer.
        params: it starts with if it is new; default: the table's.
        seed: of draws that bring none of their own.
        fresh: whether to begin with an empty buffer.
        observer: of this client's calls, whichever server they go to.

    Raises:
        BufferUnavailable: no server can be reached.
        ConfigError, ProtocolMismatch: as :class:`~buffer.replay.ReplayBuffer`.
    """
    urls = url.split(",")
    count = table.shards or len(urls)
    opened = partial(ReplayBuffer, run=run, params=params, seed=seed, observer=observer)
    if count == 1:
        return opened(table, url=urls[0], fresh=fresh)
    own = table_of_shard(table, count)

    def opener(shard: int) -> Callable[[bool], ReplayBuffer]:
        url = urls[shard % len(urls)]
        return lambda anew: opened(own, url=url, shard=shard, fresh=anew)

    members = [Member(i, host_of(urls[i % len(urls)]), opener(i)) for i in range(count)]
    return ShardedReplayBuffer(table, members, seed=seed, fresh=fresh)
