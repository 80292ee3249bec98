"""The run page: one HTML file that needs nothing else, or its live form that a server answers for.

Nothing of a run can act in the page: what is embedded is JSON in which no tag can end, the page
shows it as text, and its policy lets no script run but those it was made with, and nothing be
fetched but from where it came.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from deploy import history
from deploy.journals import thinned
from deploy.report import write_atomically
from deploy.timeline import FOLDER

REPORT = "report.html"
PARTS = Path(__file__).parent / "page"
SCRIPTS = ("echarts/echarts.common.min.js", "data.js", "charts.js", "sections.js", "gallery.js")
MAIN = "page.js"
MOST_PICTURES, MOST_PICTURE_BYTES = 60, 8 << 20
"""In a file; more are left out, evenly."""

PICTURE, PNG = re.compile(rf"{FOLDER}/\d+\.png"), b"\x89PNG\r\n\x1a\n"
WAITING = b"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>Not begun yet</title><p>The run has not begun yet. This page looks again every two seconds.
"""


def write(out: Path, *, claimed: bool | None = None) -> Path:
    """Writes ``report.html`` of what is in a run's folder, whether or not the run has ended.

    Args:
        out: the folder.
        claimed: whether a live run holds it; default: looks.

    Returns:
        The file.

    Raises:
        ConfigError: no run has begun in the folder.
        OSError: it cannot be written.
    """
    data = {"live": False, "run": history.run(out), **history.news(out, claimed=claimed)}
    pictures = data["journals"]["pictures"]
    pictures["lines"] = _embedded(pictures["lines"], out)
    write_atomically(out / REPORT, page(data))
    return out / REPORT


def live(out: Path) -> bytes:
    """The page that asks its server for everything but the configuration.

    Raises:
        ConfigError: no run has begun in the folder.
    """
    return page({"live": True, "run": history.run(out)})


def page(data: dict[str, Any]) -> bytes:
    """The page with its data, styles and scripts in it."""
    scripts = [_part(name) for name in (*SCRIPTS, MAIN)]
    filled = {
        "policy": _policy(scripts, live=data["live"]),
        "style": _part("page.css"),
        "data": embeddable(data),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # In one pass: what is filled in is not looked at again.
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], _part("page.html"))
    return text.encode()


def embeddable(data: Any) -> str:
    """JSON that can stand in a script tag: no text in it can end the tag, or begin a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _policy(scripts: list[str], *, live: bool) -> str:
    """The content security policy: our own scripts, and no address but that of a live page."""
    hashes = (base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in scripts)
    allowed = " ".join(f"'sha256-{each.decode()}'" for each in hashes)
    ours = "'self'" if live else "'none'"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {allowed}",
            "style-src 'unsafe-inline'",  # of ECharts' tooltips
            f"img-src data: {ours}" if live else "img-src data:",
            f"connect-src {ours}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def picture(out: Path, file: str) -> Path | None:
    """A picture of a run by its name; ``None`` for any other file.

    Who may write to a run's folder must not get at our other files: links out of it lead nowhere.
    """
    if not PICTURE.fullmatch(file):
        return None
    path = (out / file).resolve()
    if path.parent != out.resolve() / FOLDER or not path.is_file():
        return None
    with path.open("rb") as opened:
        return path if opened.read(len(PNG)) == PNG else None


def _embedded(lines: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The pictures' lines with the pictures in them; without those that are not there."""
    found = ((line, picture(out, str(line.get("file")))) for line in lines)
    there = [(line, path) for line, path in found if path is not None]
    sizes = sum(path.stat().st_size for _, path in there)
    most = min(MOST_PICTURES, len(there) * MOST_PICTURE_BYTES // max(1, sizes))
    return [
        line | {"file": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()}
        for line, path in thinned(there, most)
    ]
