"""The published contract: docstring and page promise the same, and name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import buffer

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "buffer.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE))
NAMED = [
    (number, file, name)
    for number, row in ROWS.items()
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", row)
]


@cache
def functions_of(file: str) -> dict[str, list[str]]:
    """The tests of a file, with their decorators."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {
        node.name: [ast.unparse(decorator) for decorator in node.decorator_list]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_docstring_and_the_page_make_the_same_promises() -> None:
    promised = re.findall(r"^(\d+)\. ([^.]+)\.", buffer.__doc__ or "", re.MULTILINE)
    shown = [(number, re.findall(r"\*\*(.+?)\.\*\*", row)[0]) for number, row in ROWS.items()]
    assert promised == shown
    assert [int(number) for number, _ in promised] == list(range(1, len(promised) + 1))


def test_each_promise_has_a_test() -> None:
    assert {number for number, _, _ in NAMED} == set(ROWS)


@pytest.mark.parametrize(("number", "file", "name"), NAMED)
def test_a_test_that_holds_a_promise_exists_and_is_run(number: str, file: str, name: str) -> None:
    decorators = functions_of(file)[name]
    assert not [mark for mark in decorators if "skip" in mark or "xfail" in mark]
