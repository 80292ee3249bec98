"""What is shown of a run, in each mode."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.outlook import State
from deploy.views import (
    JSON_SECONDS,
    LINE_SECONDS,
    JsonView,
    PlainView,
    QuietView,
    RichView,
    clock,
    facts,
)

DISTILLING = State(
    phase="distilling",
    elapsed_seconds=75.2,
    elapsed_share=0.42,
    seconds_left=3700.0,
    step=1200,
    inverted=5000,
    drawn=64000,
    inverted_per_second=120.4,
    drawn_per_second=None,
    synthesizer_idle_share=0.05,
    distiller_idle_share=0.6,
    waiting="distillers",
    agreement=0.813,
    kl=0.1234,
    synthesizers=1,
    synthesizers_wanted=2,
)
RESULT: dict[str, Any] = {
    "method": "fast_meta",
    "config": {"run": {"name": "demo"}},
    "teacher_accuracy": 98.0,
    "student_accuracy": 90.5,
    "agreement": 91.0,
    "samples_inverted": 5000,
    "samples_drawn": 64000,
    "student_steps": 1200,
    "wall_seconds": 75.2,
}


def test_all_that_is_known_is_told() -> None:
    assert facts(DISTILLING) == [
        "step 1200, agreement 81.3 %, KL 0.123",
        "inverted 5000 (120/s), drawn 64000",
        "idle: synthesizers 5 %, distillers 60 %: distillers wait for samples",
        "1 of 2 synthesizers at work",
    ]


def test_what_is_not_known_is_left_out() -> None:
    assert facts(State()) == []
    assert facts(State(phase="preparing", prepared_share=0.25)) == [
        "the method is prepared to 25 %"
    ]
    assert facts(State(phase="filling", size=70, size_needed=50)) == ["50 of 50 samples"]
    assert facts(State(synthesizer_idle_share=0.5)) == ["idle: synthesizers 50 %, distillers ?"]


def test_a_student_that_diverges_is_shown_as_it_is() -> None:
    assert "KL nan" in facts(State(agreement=0.1, kl=float("nan")))[0]


def test_times_are_hours_minutes_and_seconds() -> None:
    assert (clock(75.2), clock(3700.0)) == ("0:01:15", "1:01:40")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_terminal_of_any_width_shows_all_of_it(width: int) -> None:
    stream = io.StringIO()
    view = RichView(Console(file=stream, force_terminal=True, width=width, height=60))
    view.open()
    view.show(DISTILLING)
    view.close()
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n")
    assert max(map(len, plain.splitlines())) <= width
    words = " ".join(plain.split())
    for part in ("distilling 42 % 0:01:15", "1:01:40 left", "(120/s)", "agreement 81.3 %"):
        assert part in words
    assert "━" in plain


def test_lines_that_stay_and_logs_are_above_the_bar() -> None:
    stream = io.StringIO()
    view = RichView(Console(file=stream, force_terminal=True, width=60))
    view.open()
    view.show(DISTILLING)
    view.note("metrics: http://127.0.0.1:9464/metrics")
    view.logs.print("a warning")
    view.close()
    shown = stream.getvalue()
    assert "http://127.0.0.1:9464/metrics" in re.sub(r"\x1b\[[\d;?]*m", "", shown)
    assert shown.index("a warning") < shown.rindex("distilling")
    assert shown.endswith("\x1b[?25h"), "the cursor is shown again"


def test_in_a_log_a_line_comes_with_each_tenth_and_each_phase() -> None:
    stream = io.StringIO()
    view = PlainView(Console(file=stream, width=40))
    view.show(State(phase="starting"))
    for step in range(100):
        view.show(State(phase="distilling", elapsed_share=step / 100, elapsed_seconds=step))
    view.show(State(phase="saving", elapsed_share=1.0, elapsed_seconds=100))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[0] == "  0 %  starting"
    assert lines[-1] == "100 %  saving"


def test_in_a_log_a_long_line_is_not_broken() -> None:
    stream = io.StringIO()
    PlainView(Console(file=stream, width=40)).show(DISTILLING)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith(" 42 %  distilling, step 1200, agreement 81.3 %")


def test_in_a_log_something_is_said_when_nothing_happens_for_long() -> None:
    stream = io.StringIO()
    view = PlainView(Console(file=stream, width=80))
    for second in range(int(2 * LINE_SECONDS) + 1):
        view.show(State(phase="filling", elapsed_seconds=second))
    assert len(stream.getvalue().splitlines()) == 3


def test_a_program_gets_an_object_a_line() -> None:
    out = io.StringIO()
    view = JsonView(out, Console(file=io.StringIO()))
    view.show(State(elapsed_seconds=0.0))
    view.show(State(elapsed_seconds=JSON_SECONDS / 2))
    view.show(DISTILLING)
    view.note("metrics: somewhere")
    view.result(RESULT, Path("/runs/demo"))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["progress", "progress", "note", "result"]
    assert lines[1] == {"event": "progress"} | vars(DISTILLING)
    assert lines[2]["text"] == "metrics: somewhere"
    assert lines[3] == {"event": "result", "folder": "/runs/demo", "result": RESULT}


def test_a_program_gets_no_number_that_json_does_not_have() -> None:
    out = io.StringIO()
    view = JsonView(out, Console(file=io.StringIO()))
    view.show(State(kl=float("nan"), agreement=float("inf")))
    line = json.loads(out.getvalue())
    assert (line["kl"], line["agreement"]) == (None, None)


def test_a_program_is_told_why_a_run_ended() -> None:
    out = io.StringIO()
    JsonView(out, Console(file=io.StringIO())).failed("no room")
    assert json.loads(out.getvalue()) == {"event": "error", "error": "no room"}


def test_who_wants_it_quiet_sees_the_summary_alone() -> None:
    stream = io.StringIO()
    view = QuietView(Console(file=stream, width=80), Console(file=io.StringIO()))
    view.open()
    view.show(DISTILLING)
    view.note("metrics: somewhere")
    view.failed("no room")
    assert stream.getvalue() == ""
    view.result(RESULT, Path("/runs/demo"))
    view.close()
    assert "90.50 %" in stream.getvalue()
