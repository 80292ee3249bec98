"""The live run page in a real browser, while files of a run grow and its server comes and goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from playwright.sync_api import expect

from deploy.folder import claimed
from deploy.live import LivePage
from tests.deploy.browser import Open, colours
from tests.deploy.recorded import Recording


def test_a_live_page_follows_its_run_to_its_end(tmp_path: Path, open_page: Open) -> None:
    out = tmp_path / "run"
    with claimed(out):
        with LivePage(out, host="127.0.0.1", port=0, within=True) as server:
            recording = Recording(out).go_on(20)
            tab = open_page(server.address)
            page = tab.page
            expect(page.locator("#state")).to_have_text("running")
            expect(page.locator("#progress")).to_contain_text("distilling, 0:20, step 1,000")
            expect(page.locator("#moment-name")).to_contain_text("1 of 1")
            assert min(colours(page)) > 5
            recording.go_on(20)
            expect(page.locator("#progress")).to_contain_text("0:40, step 2,000")
            expect(page.locator("#moment-name")).to_contain_text("3 of 3")
            expect(page.locator("#summary-kl")).to_contain_text("at 0:40")
            recording.end()
        expect(page.locator("#state")).to_have_text("finished")
        expect(page.get_by_text("93.10 %")).to_be_visible()
        assert tab.asked_beyond(server.address) == []
    page.close()
    tab.problems.clear()  # its server has gone, as it should


def test_a_chosen_moment_stays_while_the_run_goes_on(tmp_path: Path, open_page: Open) -> None:
    recording = Recording(tmp_path).go_on(40)
    with LivePage(tmp_path, host="127.0.0.1", port=0) as server:
        page = open_page(server.address).page
        expect(page.locator("#moment-name")).to_contain_text("3 of 3")
        page.locator("#moment").focus()
        page.keyboard.press("Home")
        recording.go_on(10)
        expect(page.locator("#moment-name")).to_contain_text("1 of 4")
        page.close()


def test_a_live_page_says_that_the_pipeline_died_or_the_server_is_gone(
    tmp_path: Path, open_page: Open
) -> None:
    out = tmp_path / "run"
    with LivePage(out, host="127.0.0.1", port=0) as server:
        with claimed(out):
            Recording(out, "monitoring.interval_seconds=0.1").go_on(4)
            tab = open_page(server.address)
            expect(tab.page.locator("#state")).to_have_text("running")
        os.utime(out / "timeline.jsonl", (1e9, 1e9))
        expect(tab.page.locator("#state")).to_contain_text("died")
        with claimed(out):
            expect(tab.page.locator("#state")).to_have_text("running", timeout=15_000)
            server._server.close()
            expect(tab.page.locator("#state")).to_have_text("no answer", timeout=15_000)
    assert all("net::ERR" in problem for problem in tab.problems)
    tab.problems.clear()


def test_another_run_in_the_folder_begins_the_page_anew(tmp_path: Path, open_page: Open) -> None:
    Recording(tmp_path).go_on(30)
    with LivePage(tmp_path, host="127.0.0.1", port=0) as server:
        page = open_page(server.address).page
        expect(page.locator("#progress")).to_contain_text("step 1,500")
        for path in tmp_path.iterdir():
            if path.is_file():
                path.unlink()
        time.sleep(0.01)
        Recording(tmp_path, "run.name=second").go_on(10)
        expect(page.locator("h1")).to_have_text("second", timeout=15_000)
        expect(page.locator("#progress")).to_contain_text("step 500")
        page.close()
