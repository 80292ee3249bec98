"""What the Lua files say, and what they repeat of the Python ones."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from buffer import limiter, priorities
from buffer.sources import ALSO, OPERATIONS, SHARED

LEASE = ("hold", "give_up")


@pytest.mark.parametrize("operation", [*OPERATIONS, *LEASE])
def test_each_script_says_what_it_takes_returns_and_costs(operation: str) -> None:
    source = (resources.files("buffer") / "lua" / f"{operation}.lua").read_text()
    header = "\n".join(line for line in source.splitlines() if line.startswith("--"))
    for word in ("KEYS", "Returns", "Time"):
        assert re.search(rf"^-- {word}\b", header, re.MULTILINE)
    used = {int(number) for number in re.findall(r"\bARGV\[(\d)\]", source)}
    documented = {int(number) for number in re.findall(r"^-- ARGV\[(\d)\]", header, re.MULTILINE)}
    assert used == documented


def test_every_script_file_is_an_operation() -> None:
    files = {file.name for file in (resources.files("buffer") / "lua").iterdir()}
    also = [name for names in ALSO.values() for name in names]
    assert files == {f"{name}.lua" for name in (*OPERATIONS, *LEASE, *SHARED, *also)}


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            "RETRY_SECONDS, FILLING_RETRY_SECONDS",
            (limiter.RETRY_SECONDS, limiter.FILLING_RETRY_SECONDS),
        ),
        ("COHORTS, COHORTS_PER_BUFFER", (priorities.COHORTS, priorities.COHORTS_PER_BUFFER)),
    ],
)
def test_lua_and_python_agree_on_constants(line: str, values: tuple[float, ...]) -> None:
    prelude = (resources.files("buffer") / "lua" / "prelude.lua").read_text()
    found = re.search(rf"^local {line} = (.*)$", prelude, re.MULTILINE)
    assert found is not None
    assert tuple(float(value) for value in found[1].split(",")) == values


def test_lua_and_python_agree_on_the_value_of_a_level() -> None:
    sample = (resources.files("buffer") / "lua" / "weighing.lua").read_text()
    found = re.search(r"2 \^ \(\(level - (\d+)\) / (\d+) \* alpha\)", sample)
    assert found is not None
    constants = (priorities.LEVEL_OF_ONE, priorities.STEPS_PER_OCTAVE)
    assert tuple(int(number) for number in found.groups()) == constants
