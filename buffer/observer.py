"""Whoever wants to know what a client of the buffer asks of its servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Observer:
    """One who does not want to know, at no cost. Told from several threads."""

    def timed(
        self, operation: str, call: Callable[Arguments, Answer]
    ) -> Callable[Arguments, Answer]:
        """The same call, observed each time it is made.

        Args:
            operation: one of :data:`~buffer.sources.OPERATIONS`, ``store`` or ``fetch``.
            call: what is sent to the server, and waited for.
        """
        return call

    def moved(self, direction: Literal["in", "out"], payloads: Iterable[bytes | None]) -> None:
        """Takes note of payloads that went into the buffer, or came out of it."""


UNOBSERVED = Observer()
