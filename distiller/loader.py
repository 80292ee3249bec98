"""Between the replay buffer and the training step: draws ahead, and pushes priorities behind it.

Both run in a thread of their own, so that a step never waits for the network unless the buffer
itself has nothing to give. Ready to be used with any :class:`~buffer.interface.Replay`.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from buffer.errors import BufferUnavailable, RateLimited, Starved
from buffer.interface import Replay
from buffer.sample import Batch
from buffer.version import Version
from buffer.waiting import Waits

SHORTEST_WAIT_SECONDS = 0.01
UNAVAILABLE_WAIT_SECONDS = 1.0
CLOSE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class _Patience:
    """How long a draw may be refused: begins anew whenever samples have come in.

    Why: a large buffer takes long to fill, and filling is not starving.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._since, self._inserted = clock(), 0

    def saw(self, inserted: int) -> None:
        """Takes note of how many samples were ever inserted."""
        if inserted > self._inserted:
            self._since, self._inserted = self._clock(), inserted

    @property
    def ended(self) -> bool:
        return self._clock() - self._since >= self._seconds


class ReplayLoader:
    """Draws batches ahead of the training step.

    A draw that the buffer refuses is repeated after about the time it names. The same holds while
    the buffer is unreachable.

    Args:
        replay: where samples are drawn; used from the loader's thread.
        batch_size: B.
        prefetch: batches drawn ahead of the one in hand.
        seed: makes the sequence of draws reproducible over an unchanging buffer; and of the jitter,
            which spreads workers that were refused together.
        max_waiting_seconds: a draw refused for so long, while nothing was inserted either, is an
            error.
        student_step: tells the current student step, from which ages are counted.
        note: is told how long each wait after a refusal was, in seconds, in the loader's thread.
        clock: monotonic seconds.

    Attributes:
        waiting_seconds: how long the consumer has waited for batches.
    """

    def __init__(
        self,
        replay: Replay,
        *,
        batch_size: int,
        prefetch: int,
        seed: int,
        max_waiting_seconds: float,
        student_step: Callable[[], int] = lambda: 0,
        note: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replay = replay
        self._batch_size = batch_size
        self._max_waiting_seconds = max_waiting_seconds
        self._student_step = student_step
        self._clock = clock
        self._random = random.Random(seed)
        self._slots = threading.Semaphore(prefetch)
        self._drawn: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._waits = Waits(seed=seed, stopping=self._stop, note=note)
        self._thread = threading.Thread(target=self._run, name="replay-loader", daemon=True)
        self.waiting_seconds = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def poll(self, timeout_seconds: float) -> Batch | None:
        """The next batch, or ``None`` if there was none within the time.

        Raises:
            Starved: the buffer refused a draw for ``max_waiting_seconds``, and nothing came in.
            BufferUnavailable: it could not be reached for as long.
        """
        started = self._clock()
        try:
            found = self._drawn.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        finally:
            self.waiting_seconds += self._clock() - started
        if isinstance(found, BaseException):
            self._drawn.put(found)
            raise found
        self._slots.release()
        return found

    def close(self) -> None:
        """Ends the thread, which may be left in a last draw; drops what was drawn ahead."""
        self._stop.set()
        self._slots.release()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            while self._slots.acquire() and not self._stop.is_set():
                batch = self._draw()
                if batch is None:
                    return
                self._drawn.put(batch)
        except BaseException as error:  # raised again in the consumer's thread
            self._drawn.put(error)

    def _draw(self) -> Batch | None:
        """One batch, however often it must be asked for; ``None`` if the loader is closed first."""
        patience = _Patience(self._max_waiting_seconds, self._clock)
        seed = self._random.getrandbits(31)
        while not self._stop.is_set():
            try:
                return self._sample(seed, patience)
            except (RateLimited, BufferUnavailable) as error:
                self._back_off(error, patience)
        return None

    def _sample(self, seed: int, patience: _Patience) -> Batch:
        try:
            return self._replay.sample(
                self._batch_size, seed=seed, student_step=self._student_step()
            )
        except RateLimited:
            patience.saw(self._replay.info().inserted)
            raise

    def _back_off(self, refusal: RateLimited | BufferUnavailable, patience: _Patience) -> None:
        if patience.ended:
            if isinstance(refusal, BufferUnavailable):
                raise refusal
            raise Starved(
                f"max_waiting_seconds ({self._max_waiting_seconds:g}): no batch of "
                f"{self._batch_size} could be drawn for so long, and nothing was inserted; the "
                f"buffer says: {refusal}"
            ) from refusal
        named = getattr(refusal, "retry_after_seconds", UNAVAILABLE_WAIT_SECONDS)
        self._waits.wait(max(SHORTEST_WAIT_SECONDS, named))


class _Update(NamedTuple):
    identities: NDArray[np.void]
    priorities: NDArray[np.float64]
    version: Version


class PriorityPusher:
    """Pushes priority updates from a thread of its own, the oldest dropped when it lags.

    Losing an update is harmless: the sample keeps its priority until it is drawn again. How many
    were lost is logged at the end.

    Args:
        replay: where priorities are set; used from the pusher's thread.
        limit: updates that may wait.
    """

    def __init__(self, replay: Replay, *, limit: int = 64) -> None:
        self._replay = replay
        self._limit = limit
        self._waiting: deque[_Update] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="priority-pusher", daemon=True)
        self._dropped = 0
        self._failed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def push(
        self, identities: NDArray[np.void], priorities: NDArray[np.float64], version: Version
    ) -> None:
        """Hands an update over and returns at once.

        Raises:
            BaseException: what ended the pusher's thread, if something did.
        """
        if self._error is not None:
            raise self._error
        with self._changed:
            if len(self._waiting) == self._limit:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(_Update(identities, priorities, version))
            self._changed.notify()

    def close(self) -> None:
        """Pushes what waits, then ends the thread; gives up after a while."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        if self._dropped or self._failed:
            logger.warning(
                "priority updates lost: %d because newer ones came faster than they could be "
                "pushed, %d because the buffer could not be reached; their samples kept their "
                "priorities",
                self._dropped,
                self._failed,
            )

    def _run(self) -> None:
        try:
            while (update := self._next()) is not None:
                try:
                    self._replay.update_priorities(
                        update.identities, update.priorities, version=update.version
                    )
                except BufferUnavailable:
                    self._failed += 1
        except BaseException as error:  # raised again at the next push
            self._error = error

    def _next(self) -> _Update | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None
