"""The dashboards as they are committed, and what they ask Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tests.deploy.manifests import DEPLOY

FOLDER = DEPLOY / "grafana" / "dashboards"


class Asked(NamedTuple):
    """A query of a panel."""

    dashboard: str
    panel: str
    expr: str

    def with_values(self, values: Mapping[str, str]) -> str:
        """The query with Grafana's variables replaced.

        Raises:
            KeyError: there is a variable without a value.
        """
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], self.expr)


def dashboards() -> dict[str, dict[str, Any]]:
    """All of them, by title."""
    read = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return {dashboard["title"]: dashboard for dashboard in read}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels, without the headings of rows."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def queries() -> list[Asked]:
    """Every query of every panel, and of the variable that lists the runs."""
    asked = [
        Asked(title, panel["title"], target["expr"])
        for title, dashboard in dashboards().items()
        for panel in panels(dashboard)
        for target in panel.get("targets", [])
    ]
    for title, dashboard in dashboards().items():
        (run,) = (v for v in dashboard["templating"]["list"] if v["name"] == "run")
        (series,) = re.findall(r"label_values\((\w+), run\)", run["query"])
        asked.append(Asked(title, "variable run", series))
    return asked
