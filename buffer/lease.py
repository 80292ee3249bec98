"""One pipeline a run: the name of a run is held by whoever is that run, as long as it lives."""

from __future__ import annotations

import logging
import secrets
import threading
from types import TracebackType
from typing import Self

from buffer.connection import Connection
from buffer.errors import BufferUnavailable, ConfigError
from buffer.keys import Keys
from buffer.sources import source

logger = logging.getLogger(__name__)

HELD_SECONDS = 15.0
"""A name is free again so long after its pipeline was killed."""


class RunLease:
    """Holds the name of a run on a Redis server while it is open; renewed by a thread.

    Without it a second pipeline of the same name would empty the buffer of the first.

    Args:
        url: of the Redis server; of several the first holds the name.
        run: the name.

    Raises:
        BufferUnavailable: the server cannot be reached, or refuses us.
        ConfigError: on entering: a run of this name is alive.
    """

    def __init__(self, url: str, run: str) -> None:
        self._run = run
        self._keys = [*Keys(run).scripted, Keys(run).owner]
        self._token = secrets.token_hex(8)
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="run lease", daemon=True)
        self._connection = Connection(url.split(",")[0])
        self._hold = self._connection.script(source("hold"))
        self._give_up = self._connection.script(source("give_up"))

    def __enter__(self) -> Self:
        try:
            if not self._held():
                raise ConfigError(
                    f"run.name ({self._run}): a run of this name is alive on the Redis server at "
                    f"{self._connection.where}, and this one would empty its buffer; use another "
                    f"name, or end that run (the name is free {HELD_SECONDS:g} s after its end)"
                )
        except BaseException:
            self._connection.close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self._give_up(self._keys, [self._token])
        except BufferUnavailable as failure:  # it expires by itself
            logger.warning("the name of the run could not be given back: %s", failure)
        self._connection.close()

    @property
    def lost(self) -> bool:
        """Whether another run took the name, and emptied the buffer: nothing there is ours now.

        Known a few seconds later. It stays so, though the other should end: the name alone would
        not bring the data back.
        """
        return self._lost

    def _held(self) -> bool:
        return bool(self._hold(self._keys, [self._token, int(1000 * HELD_SECONDS)]))

    def _renew(self) -> None:
        while not self._lost and not self._ended.wait(HELD_SECONDS / 3):
            try:
                self._lost = not self._held()
            except BufferUnavailable as failure:
                logger.warning("the name of the run could not be renewed: %s", failure)
