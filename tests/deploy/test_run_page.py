"""The run page as a file and as a server gives it, without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from buffer.errors import ConfigError
from deploy import report, run_page
from deploy.config import load
from deploy.live import LivePage, serve, shown
from deploy.run_page import MOST_PICTURE_BYTES, PARTS, PNG, embeddable, write
from tests.deploy.recorded import Recording

EVIL = "</script><script>alert(1)</script><!-- <script> & \u2028 {{style}}"


class Scripts(HTMLParser):
    """The scripts of a page: their attributes and their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.links: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.found.append((dict(attrs), ""))
        self.links += [f"{tag} {value}" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.found[-1]
            self.found[-1] = attributes, text + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def embedded(path: Path) -> dict[str, Any]:
    scripts = Scripts(path.read_text())
    (text,) = [text for attributes, text in scripts.found if attributes.get("id") == "data"]
    data: dict[str, Any] = json.loads(text)
    return data


def test_the_charts_library_is_the_one_that_its_note_says() -> None:
    folder = PARTS / "echarts"
    digest = hashlib.sha256((folder / "echarts.common.min.js").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "Apache ECharts" in (folder / "NOTICE").read_text()
    assert "Bostock" in (folder / "LICENSE-d3").read_text()


@pytest.mark.parametrize("path", sorted(PARTS.rglob("*.js")), ids=lambda path: path.name)
def test_no_script_can_end_its_own_tag(path: Path) -> None:
    assert not re.search(r"</script|<!--", path.read_text(encoding="utf-8"), re.I)


def test_parts_of_the_page_are_short(tmp_path: Path) -> None:
    parts = [path for path in PARTS.iterdir() if path.is_file()]
    assert {path.suffix for path in parts} == {".html", ".css", ".js"}
    assert max(len(path.read_text().splitlines()) for path in parts) <= 300


def test_a_report_holds_all_it_needs(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(30).end()
    path = write(tmp_path)
    page = Scripts(path.read_text())
    assert {link for link in page.links if not link.startswith("a #")} == {"link data:,"}
    data = embedded(path)
    assert (data["live"], data["state"], data["run"]["run"]["name"]) == (False, "finished", "demo")
    pictures = data["journals"]["pictures"]["lines"]
    assert len(pictures) == 2
    assert all(line["file"].startswith("data:image/png;base64,") for line in pictures)


def test_only_the_pages_own_scripts_may_run(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4)
    text = write(tmp_path).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    own = [script for attributes, script in Scripts(text).found if "type" not in attributes]
    for script in own:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.partition("style-src")[0]


def test_no_text_of_a_run_can_break_out_of_its_tag(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4).end(error=EVIL)
    path = write(tmp_path)
    assert "alert(1)</script>" not in path.read_text()
    assert embedded(path)["result"]["error"] == EVIL
    assert len(Scripts(path.read_text()).found) == 7
    assert json.loads(embeddable([EVIL])) == [EVIL]


def test_pictures_of_a_report_are_bounded_and_missing_ones_left_out(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(40)
    lines = [json.loads(line) for line in (tmp_path / "pictures.jsonl").read_text().splitlines()]
    for line in lines:
        (tmp_path / line["file"]).write_bytes(PNG + bytes(MOST_PICTURE_BYTES // 2 - len(PNG)))
    assert len(embedded(write(tmp_path))["journals"]["pictures"]["lines"]) == 2
    for line in lines:
        (tmp_path / line["file"]).unlink()
    assert embedded(write(tmp_path))["journals"]["pictures"]["lines"] == []


def test_a_report_holds_no_file_but_pictures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Recording(out).go_on(20)
    (tmp_path / "secret.png").write_text("secret")
    line = json.loads((out / "pictures.jsonl").read_text().splitlines()[0])
    for file in ("../secret.png", str(tmp_path / "secret.png"), "pictures/../../secret.png"):
        with (out / "pictures.jsonl").open("a") as journal:
            journal.write(json.dumps(line | {"file": file}) + "\n")
    assert len(embedded(write(out))["journals"]["pictures"]["lines"]) == 1


@pytest.mark.parametrize("secret", [b"secret", PNG + b"secret"], ids=["any", "a picture"])
def test_links_lead_neither_into_a_report_nor_out_of_a_server(
    tmp_path: Path, secret: bytes
) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    Recording(out).go_on(20)
    elsewhere.mkdir()
    (elsewhere / "000001.png").write_bytes(secret)

    def given() -> tuple[int, int]:
        with LivePage(out, host="127.0.0.1", port=0) as page:
            status, *_ = get(f"{page.address}pictures/000001.png")
        return len(embedded(write(out))["journals"]["pictures"]["lines"]), status

    assert given() == (1, 200)
    (out / "pictures" / "000001.png").unlink()
    (out / "pictures" / "000001.png").symlink_to(elsewhere / "000001.png")
    assert given() == (0, 404)
    shutil.rmtree(out / "pictures")
    (out / "pictures").symlink_to(elsewhere)
    assert given() == (0, 404)


def test_only_pictures_are_given_as_such(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(20)
    (tmp_path / "pictures" / "000001.png").write_bytes(b"secret")
    with (tmp_path / "pictures.jsonl").open("a") as journal:
        journal.write('{"time": 1.0}\n')
    assert embedded(write(tmp_path))["journals"]["pictures"]["lines"] == []
    with LivePage(tmp_path, host="127.0.0.1", port=0) as page:
        assert get(f"{page.address}pictures/000001.png")[0] == 404


def test_values_that_json_has_not_are_shown_as_text_or_as_unknown(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4)
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("mine: {date: 2026-11-21, endless: .inf, 2026-11-21: key}\n")
    shown = {"date": "2026-11-21", "endless": None}
    assert embedded(write(tmp_path))["run"]["mine"] == shown


def test_a_report_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run has begun there"):
        write(tmp_path)


def get(address: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_a_server_gives_the_page_its_news_and_its_pictures(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(30)
    with LivePage(tmp_path, host="127.0.0.1", port=0) as page:
        status, kind, body = get(page.address)
        assert (status, kind) == (200, "text/html; charset=utf-8")
        assert b"connect-src 'self'" in body
        status, kind, body = get(f"{page.address}news/0-0-0-0")
        assert (status, kind) == (200, "application/json")
        (first, *_) = json.loads(body)["journals"]["pictures"]["lines"]
        status, kind, body = get(page.address + first["file"])
        assert (status, kind, body) == (200, "image/png", (tmp_path / first["file"]).read_bytes())


@pytest.mark.parametrize(
    "path",
    [
        *("pictures/../config.yaml", "pictures/%2e%2e/config.yaml", "pictures/9.png"),
        *("config.yaml", "student.safetensors", "pictures/000001.png.partial"),
        *("news/0-0-0", "news/a-0-0-0"),
    ],
)
def test_a_server_gives_nothing_else(tmp_path: Path, path: str) -> None:
    Recording(tmp_path).go_on(20)
    with LivePage(tmp_path, host="127.0.0.1", port=0) as page:
        assert get(page.address + path)[0] == 404


def test_before_a_run_has_begun_its_page_looks_again(tmp_path: Path) -> None:
    with LivePage(tmp_path, host="127.0.0.1", port=0, within=True) as page:
        status, kind, body = get(page.address)
        assert (status, kind, body) == (503, "text/html; charset=utf-8", run_page.WAITING)
        Recording(tmp_path).go_on(2)
        assert get(page.address)[0] == 200


def test_an_earlier_run_in_the_folder_is_not_shown_as_this_one(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(20).end()
    with LivePage(tmp_path, host="127.0.0.1", port=0, within=True) as page:
        for path in ("", "news/0-0-0-0", "pictures/000001.png"):
            assert get(page.address + path)[0] == 503
        report.clear(tmp_path)
        assert get(page.address)[0] == 503
        Recording(tmp_path).go_on(2)
        assert get(page.address)[0] == 200
        news = json.loads(get(f"{page.address}news/0-0-0-0")[2])
        assert (news["state"], news["result"]) == ("running", None)


def test_a_run_shows_its_page_only_if_it_is_asked_to(tmp_path: Path) -> None:
    notes: list[str] = []
    off = load(Path("deploy/configs/digits.yaml")).monitoring
    assert off.page_port is None
    with shown(off, tmp_path, notes.append):
        assert notes == []
    with shown(off.model_copy(update={"page_port": 0}), tmp_path, notes.append):
        (address,) = re.findall(r"run page: (http://127\.0\.0\.1:\d+/)", notes[0])
        assert get(address)[0] == 503


def test_an_address_that_cannot_be_shown_at_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = load(Path("deploy/configs/digits.yaml")).monitoring
    nowhere = table.model_copy(update={"page_port": 0, "page_host": "192.0.2.1"})
    with shown(nowhere, tmp_path, print):
        pass
    assert "monitoring.page_host (192.0.2.1): no run page is shown" in caplog.text


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run has begun there"):
        serve(tmp_path, "127.0.0.1", 0, Console(quiet=True))
    Recording(tmp_path).go_on(2)
    with pytest.raises(ConfigError, match=r"--host \(192.0.2.1\): nothing can be shown there"):
        serve(tmp_path, "192.0.2.1", 0, Console(quiet=True))
