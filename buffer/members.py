"""One of several shards, as a client sees it: connected, or left out for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from buffer.errors import BufferUnavailable
from buffer.replay import ReplayBuffer

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class Member:
    """A shard.

    Args:
        shard: its number.
        where: its server, as it may be shown.
        open_: connects; told whether to begin with an empty buffer.
    """

    def __init__(self, shard: int, where: str, open_: Callable[[bool], ReplayBuffer]) -> None:
        self.shard = shard
        self._where = where
        self._open = open_
        self._replay: ReplayBuffer | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._ask_again_at = 0.0

    @property
    def connected(self) -> bool:
        """Whether it can be asked."""
        return self._replay is not None

    @property
    def replay(self) -> ReplayBuffer:
        """The connection of a connected member."""
        assert self._replay is not None
        return self._replay

    def connect(self, *, fresh: bool = False) -> bool:
        """Tries to connect, unless it is or the pause goes on; whether it now is and was not."""
        if self.connected or time.monotonic() < self._ask_again_at:
            return False
        try:
            self._replay = self._open(fresh)
        except BufferUnavailable as error:
            self.leave_out(error)
            return False
        if self._ask_again_at > 0:
            logger.warning("shard %d (%s) is back", self.shard, self._where)
        self._pause = FIRST_PAUSE_SECONDS
        return True

    def leave_out(self, error: BufferUnavailable) -> None:
        """Asks no more for a pause, which doubles each time."""
        logger.warning(
            "shard %d (%s) is left out for %g s, with its samples: %s",
            *(self.shard, self._where, self._pause, error),
        )
        self.close()
        self._ask_again_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        """Closes its connections."""
        if self._replay is not None:
            self._replay.close()
            self._replay = None
