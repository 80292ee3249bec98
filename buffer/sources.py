"""The Lua sources of the scripts: a file in ``lua/`` for each, and what several share."""

from __future__ import annotations

from functools import cache
from importlib import resources

OPERATIONS = (
    *("init", "reset", "permit", "release", "reserve", "commit", "sample", "slots", "masses"),
    *("take", "discard", "update", "probe", "set_params", "begin_epoch", "begin_attempt", "info"),
    *("dump", "load"),
)
SHARED = ("prelude", "cells", "limiter")
"""In front of every script."""
ALSO = {"reserve": ("eviction",), "sample": ("weighing",), "masses": ("weighing",)}


@cache
def source(operation: str) -> str:
    """The Lua source of an operation, behind what it shares with others."""
    folder = resources.files("buffer") / "lua"
    names = (*SHARED, *ALSO.get(operation, ()), operation)
    return "".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)
