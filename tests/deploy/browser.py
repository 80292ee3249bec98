"""A real browser for the tests of the run page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)


class Tab:
    """A page in the browser, with what went wrong in it and what it asked for."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.problems, self.asked = page, list[str](), list[str]()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def asked_beyond(self, address: str) -> list[str]:
        """The requests to other places than this, and than the page itself."""
        return [url for url in self.asked if not url.startswith((address, "data:"))]


expect.set_options(timeout=30_000)

Open = Callable[..., Tab]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed: the run page is not seen")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens an address; a page in which something went wrong fails the test."""
    tabs: list[Tab] = []

    def open_page(
        address: str | Path, size: str = "laptop", scheme: str = "light", **options: str
    ) -> Tab:
        if isinstance(address, Path):
            address = f"file://{address}"
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        tabs.append(Tab(context.new_page(), address))
        return tabs[-1]

    yield open_page
    problems = [problem for tab in tabs for problem in tab.problems]
    for tab in tabs:
        tab.page.context.close()
    assert problems == []


def colours(page: Page) -> list[int]:
    """How many different pixels each tile of the gallery has."""
    page.wait_for_function("() => document.getElementById('tiles').dataset.drawn === gallery.shown")
    counts: list[int] = page.evaluate("""() => {
        const pixels = (each) => each.getContext('2d').getImageData(0, 0, each.width, each.height);
        const tiles = [...document.querySelectorAll('.tile canvas')];
        return tiles.map((each) => new Set(pixels(each).data).size);
    }""")
    return counts
