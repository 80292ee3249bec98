from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from deploy.journals import Tail, read


def test_only_whole_lines_are_read_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"b"')
    assert tail.read() == [{"a": 1}]
    assert tail.read() == []
    with path.open("a") as file:
        file.write(": 2}\n\n")
    assert tail.read() == [{"b": 2}]


def test_a_torn_line_is_left_out_and_those_after_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"torn\n"no object"\n\xff\n{"b": 2}\n')
    assert list(read(path).values) == [{"a": 1}, {"b": 2}]


def test_numbers_that_are_not_finite_become_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"loss": NaN, "kl": [Infinity, -Infinity, 1.0]}\n')
    assert list(read(path).values) == [{"loss": None, "kl": [None, None, 1.0]}]


def test_a_file_that_begins_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    end = read(path).end
    path.write_text('{"b": 1}\n')
    values, end = read(path, end)
    assert (list(values), end) == ([{"b": 1}], 9)


def test_a_long_file_takes_no_more_memory_than_the_lines_that_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    wide = json.dumps({str(label): label for label in range(1000)})
    with path.open("w") as file:
        for number in range(3000):
            file.write(f'{{"number": {number}, "counts": {wide}}}\n')
        file.write('{"event": "start"}\n')
    tracemalloc.start()
    try:
        numbers = [line.get("number") for line in read(path, most=4).values]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert numbers == [0, 1000, 1999, 2999, None]
    assert peak < 2 << 20 < path.stat().st_size
