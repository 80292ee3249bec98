"""The order of things that are republished: who is newer."""

from __future__ import annotations

from typing import NamedTuple


class Version(NamedTuple):
    """When something was made: compared lexicographically, larger is newer.

    ``attempt`` grows by one each time a job starts or resumes, so that a trainer resumed from an
    older checkpoint is newer, not stale, although its step went back.
    """

    attempt: int
    step: int


NEVER = Version(0, 0)
