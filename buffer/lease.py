"""One pipeline a run: the name of a run is held by whoever is that run, as long as it lives."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from buffer.connection import Connection, host_of
from buffer.errors import BufferUnavailable, ConfigError, SsdkdError
from buffer.keys import Keys
from buffer.sources import source

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
HELD_SECONDS = 15.0
"""A name is free again so long after its pipeline was killed."""


class RunLease:
    """Holds the name of a run on its Redis servers while it is open; renewed by threads.

    Without it a second pipeline of the same name would empty the buffer of the first. Of several
    servers each that can be reached holds the name, so that two pipelines meet whichever is away.

    Args:
        url: of the Redis server, or of several, separated by commas.
        run: the name.
        patience_seconds: how long to wait for a name that is held: that of a run which died is
            free after :data:`HELD_SECONDS`.

    Raises:
        BufferUnavailable: on entering: no server can be reached, or all refuse us.
        ConfigError: on entering: a run of this name is alive, or a server is not to be used.
    """

    def __init__(self, url: str, run: str, *, patience_seconds: float = 0.0) -> None:
        self._run = run
        self._patience_seconds = patience_seconds
        token = secrets.token_hex(8)
        self._names = [_Name(part, run, token) for part in url.split(",")]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        failures = []
        with ExitStack() as stack:
            for name in self._names:
                stack.callback(name.give_up)
                try:
                    self._take(name)
                except BufferUnavailable as error:
                    failures.append(error)
            if len(failures) == len(self._names):
                raise failures[0]
            self._open = stack.pop_all()
        for failure in failures:
            logger.warning("the name of the run is not held everywhere: %s", failure)
        for name in self._names:
            name.keep()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def lost(self) -> bool:
        """Whether another run took the name, and emptied the buffer: nothing there is ours now.

        Known a few seconds later. It stays so, though the other should end: the name alone would
        not bring the data back.
        """
        return any(name.lost for name in self._names)

    def _take(self, name: _Name) -> None:
        deadline = time.monotonic() + self._patience_seconds
        while not (held := name.hold()) and time.monotonic() < deadline:
            time.sleep(RETRY_SECONDS)
        if not held:
            raise ConfigError(
                f"run.name ({self._run}): a run of this name is alive on the Redis server at "
                f"{name.where}, and this one would empty its buffer; use another "
                f"name, or end that run (the name is free {HELD_SECONDS:g} s after its end)"
            )


class _Name:
    """The name of a run on one server, which need not be there yet."""

    def __init__(self, url: str, run: str, token: str) -> None:
        self.where = host_of(url)
        self.lost = False
        self._url, self._token = url, token
        self._keys = [*Keys(run).scripted, Keys(run).owner]
        self._connection: Connection | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="run lease", daemon=True)

    def hold(self) -> bool:
        """Takes the name, or holds it longer: whether it is ours."""
        if self._connection is None:
            self._connection = Connection(self._url)
        hold = self._connection.script(source("hold"))
        return bool(hold(self._keys, [self._token, int(1000 * HELD_SECONDS)]))

    def keep(self) -> None:
        """Holds it until it is given up."""
        self._thread.start()

    def give_up(self) -> None:
        """Lets others have it, if it is ours."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._connection is None:
            return
        try:
            self._connection.script(source("give_up"))(self._keys, [self._token])
        except BufferUnavailable as failure:  # it expires by itself
            logger.warning("the name of the run could not be given back: %s", failure)
        self._connection.close()

    def _renew(self) -> None:
        while not self.lost and not self._ended.wait(HELD_SECONDS / 3):
            try:
                self.lost = not self.hold()
            except SsdkdError as failure:
                logger.warning("the name of the run could not be renewed: %s", failure)
