"""Every error this project raises on purpose.

::

    SsdkdError
    ├── ConfigError              a setting is impossible: names field, value and consequence
    ├── ModelError               a network cannot be built, or weights do not fit it
    ├── SchemaError              bytes in the buffer are not what the schema says
    ├── BufferUnavailable        the Redis server cannot be reached, or refuses us
    ├── ProtocolMismatch         the server holds data of another protocol or another shape
    ├── RateLimited              the samples-per-insert limiter says: not now
    ├── Starved                  no batch could be drawn for too long
    ├── Diverged                 the training left the finite numbers
    └── Interrupted              the user, or the cluster, asked the run to end early
        └── Stopped              by an order to its pipeline, which has obeyed
"""

from __future__ import annotations


class SsdkdError(Exception):
    """Base of all errors raised on purpose; anything else is a bug."""


class ConfigError(SsdkdError, ValueError):
    """A setting is impossible. The message names the field, its value and the consequence."""


class ModelError(SsdkdError, ValueError):
    """A network cannot be built from its specification, or weights do not fit it."""


class SchemaError(SsdkdError, ValueError):
    """Bytes are not a sample of this schema version: truncated, corrupt or foreign."""


class BufferUnavailable(SsdkdError, ConnectionError):
    """The Redis server cannot be reached or refuses the client."""


class ProtocolMismatch(SsdkdError):
    """The server holds a buffer of another protocol version or other limits.

    Also if it refuses a command for a reason that stays: other data under our keys, an old version.
    """


class RateLimited(SsdkdError):
    """The limiter refuses this operation for now; nothing has changed on the server.

    Attributes:
        retry_after_seconds: when asking again may succeed.
    """

    def __init__(self, reason: str, retry_after_seconds: float) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class Starved(SsdkdError):
    """No batch could be drawn for so long that waiting on makes no sense."""


class Diverged(SsdkdError, ArithmeticError):
    """A loss is not finite: the training cannot recover from it."""


class Interrupted(SsdkdError):
    """The user, or the cluster, asked the run to end early."""


class Stopped(Interrupted):
    """An order to the pipeline ended the run early: the pipeline did what it was told."""
