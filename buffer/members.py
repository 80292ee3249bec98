"""The shards of a buffer, as a client sees them: connected, or left out for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from buffer.batches import Draws
from buffer.columns import Columns
from buffer.errors import BufferUnavailable
from buffer.replay import ReplayBuffer

Answer = TypeVar("Answer")

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
    def replay(self) -> ReplayBuffer | None:
        """The connection; ``None`` while it is left out."""
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
        # Not closed: another thread may be waiting for an answer. Sockets go with their last user.
        self._replay = None
        self._ask_again_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        """Closes its connections."""
        if self._replay is not None:
            self._replay.close()
            self._replay = None


class Members:
    """All shards of a buffer.

    Args:
        members: a shard each.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._all = members
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._all)

    def close(self) -> None:
        """Closes all connections."""
        for member in self._all:
            member.close()

    def live(self) -> list[Member]:
        """The shards that can be asked; those that come back learn what they missed."""
        with self._lock:
            back = [member for member in self._all if member.connect()]
            live = [member for member in self._all if member.connected]
            others = [member for member in live if member not in back]
            if back and others:
                known = [params for _, params in self.ask(others, ReplayBuffer.params)]
                if known:
                    newest = max(known, key=lambda params: params.version)
                    self.ask(back, lambda replay: replay.set_params(newest))
            live = [member for member in live if member.connected]
        if not live:
            raise BufferUnavailable(f"none of the {len(self._all)} shards can be reached")
        return live

    def ask(
        self, members: Sequence[Member], question: Callable[[ReplayBuffer], Answer]
    ) -> list[tuple[Member, Answer]]:
        """The answers of the members that can be reached; the others are left out from now on."""
        answers = []
        for member in members:
            replay = member.replay
            if replay is None:  # another thread has left it out
                continue
            try:
                answers.append((member, question(replay)))
            except BufferUnavailable as error:
                with self._lock:
                    if member.replay is replay:
                        member.leave_out(error)
        return answers

    def ask_all(self, question: Callable[[ReplayBuffer], Answer]) -> list[tuple[Member, Answer]]:
        """The answers of all members that can be reached: at least one.

        Raises:
            BufferUnavailable: none can.
        """
        while True:
            answers = self.ask(self.live(), question)
            if answers:
                return answers

    def in_turn(self, sequence: int) -> list[Member]:
        """The shards that can be asked, another one first for each sequence."""
        count = len(self._all)
        return sorted(self.live(), key=lambda member: (member.shard - sequence) % count)


def draw(replay: ReplayBuffer, n: int, **how: Any) -> tuple[Columns, Draws]:
    """A question for :meth:`Members.ask`: see :meth:`buffer.drawing.Drawing.draw`."""
    return replay.drawing.draw(n, **how)


def peek(replay: ReplayBuffer, n: int) -> tuple[Columns | None, Draws]:
    """A question for :meth:`Members.ask`: see :meth:`buffer.drawing.Drawing.peek`."""
    return replay.drawing.peek(n)
