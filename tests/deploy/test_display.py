"""A display at work, on the streams of a process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from buffer.errors import SsdkdError
from deploy import display
from deploy.display import Display
from deploy.outlook import State
from deploy.views import JsonView, PlainView
from tests.waiting import until


def test_what_is_looked_at_is_shown_until_another_phase_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(display, "POLL_SECONDS", 0.01)
    stream = io.StringIO()
    looks = iter(range(1_000_000))
    with Display(PlainView(Console(file=stream, width=80))) as shown:
        shown.enter("starting")
        shown.watch(lambda: State(phase="distilling", elapsed_share=next(looks) / 1000))
        until(lambda: "distilling" in stream.getvalue(), seconds=10)
        shown.enter("saving")
        looked = next(looks)
        time.sleep(0.1)
        assert next(looks) == looked + 1, "it goes on looking"
    lines = stream.getvalue().splitlines()
    assert lines[0] == "  0 %  starting"
    assert lines[-1].endswith("saving")


def test_why_a_run_failed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    view = JsonView(out, Console(file=io.StringIO()))
    with pytest.raises(SsdkdError), Display(view):
        raise SsdkdError("no room at redis://user:secret@host")
    told = json.loads(out.getvalue().splitlines()[-1])
    assert told == {"event": "error", "error": "no room at redis://***@host"}


@pytest.mark.parametrize("mode", ["json", "quiet"])
def test_what_anybody_prints_stays_out_of_what_a_program_reads(mode: str) -> None:
    program = (
        "import logging; from deploy import logs; from deploy.display import Mode, shown\n"
        f"with shown(Mode('{mode}')) as display:\n"
        "    logs.configure('warning', display.logs)\n"
        "    print('noise'); logging.getLogger('deploy').warning('hear'); display.enter('saving')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "noise" in done.stderr
    assert "WARNING pipeline: hear" in done.stderr
    phases = [json.loads(line)["phase"] for line in done.stdout.splitlines()]
    assert phases == (["saving"] if mode == "json" else [])


@pytest.mark.parametrize("mode", ["json", "plain", "rich"])
def test_a_run_goes_on_when_nobody_reads_any_more(mode: str) -> None:
    program = (
        "import sys; from deploy.display import Mode, shown\n"
        f"with shown(Mode('{mode}')) as display:\n"
        "    for phase in ('starting', 'ending', 'saving'):\n"
        "        display.enter(phase); display.note('x')\n"
        "print('the end', file=sys.stderr)"
    )
    unread, written = os.pipe()
    os.close(unread)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=written, stderr=subprocess.PIPE, text=True
    )
    os.close(written)
    assert "the end" in done.stderr
    assert "Traceback" not in done.stderr
