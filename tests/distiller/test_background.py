"""A training in the background, and the watch over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffer.errors import SsdkdError
from distiller.background import Watch


def test_a_training_that_says_nothing_for_too_long_is_given_up(tmp_path: Path) -> None:
    now = [0.0]
    journal = tmp_path / "metrics.jsonl"
    watch = Watch(journal, 100.0, clock=lambda: now[0])
    for said in range(1, 4):
        now[0] += 99.0
        watch.check()
        journal.write_text("{}\n" * said)
        watch.check()
    now[0] += 99.0
    watch.check()
    now[0] += 1.0
    with pytest.raises(SsdkdError, match=r"max_waiting_seconds: .* reported nothing for 100 s"):
        watch.check()


def test_a_training_has_a_minute_to_begin_whatever_the_setting(tmp_path: Path) -> None:
    now = [0.0]
    watch = Watch(tmp_path / "metrics.jsonl", 1.0, clock=lambda: now[0])
    now[0] = 59.0
    watch.check()
    now[0] = 60.0
    with pytest.raises(SsdkdError, match="reported nothing for 60 s"):
        watch.check()
