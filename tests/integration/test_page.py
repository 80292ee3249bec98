"""The page of a real run, watched for a minute."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.buffer.servers import free_port
from tests.deploy.browser import Open

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

StartRun = Callable[..., Any]
A_MINUTE = 60_000
"""Milliseconds, for a loaded machine."""


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # not yet, or the run has not begun
        return False


def test_a_run_of_a_minute_updates_its_page_and_leaves_it_behind(
    start_run: StartRun, open_page: Open
) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    often = ["monitoring.interval_seconds=1", "monitoring.pictures_seconds=5"]
    run = start_run("run.seconds=60", f"monitoring.page_port={port}", *often, ui=True)
    run.until(lambda: answers(address))
    tab = open_page(address)
    page = tab.page
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#progress")).to_contain_text("distilling", timeout=A_MINUTE)
    pictures, curve = page.evaluate("known.pictures.length"), page.locator("#summary-kl")
    said = curve.inner_text()
    page.wait_for_function(
        "(seen) => known.pictures.length >= seen + 2", arg=pictures, timeout=A_MINUTE
    )
    expect(curve).not_to_have_text(said)
    expect(page.locator("#state")).to_have_text("finished", timeout=2 * A_MINUTE)
    result, output = run.end()
    assert f"run page: {address}" in output
    expect(page.get_by_text(f"{result['student_accuracy']:.2f} %").first).to_be_visible()
    assert tab.asked_beyond(address) == []
    page.close()
    tab.problems.clear()  # its server went with the run
    left = open_page(run.out / "report.html").page
    expect(left.locator("#state")).to_have_text("finished")
    assert left.locator(".tile").count() > 20
    expect(left.locator("#chart-waiting")).to_be_visible()
