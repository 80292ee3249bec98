"""The rate limiter: how far inserts and draws may run ahead of each other.

The *balance* counts draws that inserts have paid for: each training sample inserted after the
buffer was first full enough to draw from adds ``samples_per_insert``, each draw takes one. With
``error_buffer`` E,

* ``n`` samples may be inserted if ``balance + samples_per_insert * n <= E``,
* ``n`` draws may be made if ``balance - n >= -E``.

Why the two sides cannot stall each other, whatever the sizes of inserts and draws: at a balance
<= 0 inserts are always admitted, at a balance >= 0 draws are. Permits that other producers hold
count as inserted; they lapse, so a dead producer holds nobody up for longer than its lease.

An insert pays the rate of its time. The balance is set to 0 when the limiter is switched on or off
(``samples_per_insert`` is ``None``).

This is the limiter of the buffer in memory; ``lua/limiter.lua`` has the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RETRY_SECONDS = 0.05
FILLING_RETRY_SECONDS = 0.25


def carried_over(balance: float, error_buffer: float) -> float:
    """An earlier run's balance, within this one's ``error_buffer``: nobody waits for long."""
    return max(-error_buffer, min(balance, error_buffer))


@dataclass
class Limiter:
    """The limiter of one buffer.

    Args:
        minimum: training samples inserted before the first draw.
        error_buffer: E, in draws.
        lease_seconds: how long a permit is good for.
    """

    minimum: int
    error_buffer: float
    lease_seconds: float
    balance: float = 0.0
    warm: bool = False
    """Whether ``minimum`` samples have been inserted."""
    _permits: dict[str, tuple[int, float]] = field(default_factory=dict)

    def holds_permit(self, producer: str, n: int, *, now: float) -> bool:
        """Whether a producer holds a permit for ``n`` samples that has not lapsed."""
        held, deadline = self._permits.get(producer, (0, 0.0))
        return held >= n and deadline > now

    def grant(self, producer: str, n: int, *, now: float) -> None:
        """Gives a producer its permit to insert ``n`` samples."""
        self._permits[producer] = (n, now + self.lease_seconds)

    def withdraw(self, producer: str) -> None:
        """Takes a producer's permit, if it holds one."""
        self._permits.pop(producer, None)

    def may_insert(
        self, producer: str, n: int, *, size: int, per_insert: float | None, now: float
    ) -> bool:
        """Whether ``n`` samples may be inserted into a buffer of ``size``."""
        if per_insert is None:
            return True
        others = sum(
            held
            for name, (held, deadline) in self._permits.items()
            if name != producer and deadline > now
        )
        if not self.warm and (others == 0 or size + others + n <= self.minimum):
            return True
        balance = self.balance + per_insert * others
        return balance <= 0 or balance + per_insert * n <= self.error_buffer

    def may_draw(self, n: int, *, per_insert: float | None) -> bool:
        """Whether ``n`` draws may be made from a buffer that is warm."""
        return per_insert is None or self.balance >= 0 or self.balance - n >= -self.error_buffer

    def inserted(self, n: int, *, total: int, per_insert: float | None) -> None:
        """Counts ``n`` samples, after which ``total`` have ever been inserted."""
        if self.warm:
            self.balance += (per_insert or 0.0) * n
        self.warm = self.warm or total >= self.minimum

    def drawn(self, n: int, *, per_insert: float | None) -> None:
        """Counts ``n`` draws."""
        if per_insert is not None:
            self.balance -= n
