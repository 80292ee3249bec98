from __future__ import annotations

from buffer.version import NEVER, Version


def test_a_resumed_attempt_is_newer_although_its_step_went_back() -> None:
    assert Version(2, 10) > Version(1, 5000)


def test_within_an_attempt_the_later_step_is_newer() -> None:
    assert Version(1, 2) > Version(1, 1) > NEVER
