"""The dashboards: current, of Grafana's schema as far as its SDK knows it, fit for operators."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.__main__ import files
from tests.deploy.dashboards import FOLDER, dashboards, panels, queries
from tests.deploy.manifests import DEPLOY

PROVISIONING = DEPLOY / "grafana" / "provisioning"
BOARDS = dashboards()
COLUMNS = 24

each_board = pytest.mark.parametrize("title", BOARDS)


def test_there_are_the_five_dashboards() -> None:
    named = {title.removeprefix("ssdkd: ") for title in BOARDS}
    assert named == {"Overview", "Synthesizers", "Buffer", "Distillers", "Controller"}


def test_committed_dashboards_are_what_the_code_says() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert committed == files(), "run `make docs` and commit the result"


@each_board
def test_grafana_s_sdk_reads_a_dashboard_without_losing_anything(title: str) -> None:
    register_default_plugins()
    read = models.Dashboard.from_json(BOARDS[title])
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == BOARDS[title]


@each_board
def test_every_panel_is_titled_explained_and_has_a_unit(title: str) -> None:
    known = {value for name, value in vars(units).items() if isinstance(value, str)}
    for panel in panels(BOARDS[title]):
        assert panel["title"]
        assert len(panel["description"]) > 30, panel["title"]
        if panel["type"] == "alertlist":
            continue
        if panel["type"] == "heatmap":
            unit = panel["options"]["yAxis"]["unit"]
        else:
            unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in known or unit.startswith("suffix:"), (panel["title"], unit)


@each_board
def test_every_series_has_a_name(title: str) -> None:
    for panel in panels(BOARDS[title]):
        for target in panel.get("targets", []):
            assert target["legendFormat"], panel["title"]


@each_board
def test_every_query_is_of_the_run_and_the_data_source_that_were_chosen(title: str) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(BOARDS[title]):
        for target in panel.get("targets", []):
            assert target["datasource"] == panel["datasource"] == chosen
    for asked in queries():
        series = len(re.findall("ssdkd_|ALERTS", asked.expr))
        assert asked.panel == "variable run" or asked.expr.count('run="$run"') == series, asked


@each_board
def test_panels_fill_their_rows_and_do_not_overlap(title: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[title]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    height = 1 + max(y for _, y in taken)
    assert taken == {(x, y) for x in range(COLUMNS) for y in range(height)}


def test_identities_are_unique() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    for board in BOARDS.values():
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(set(numbers)) == len(numbers)


def test_the_overview_begins_with_health_and_lists_alerts() -> None:
    first, *rest = BOARDS["ssdkd: Overview"]["panels"]
    assert first["title"] == "Is it healthy?"
    assert any(panel["type"] == "alertlist" for panel in rest)


def test_priorities_are_a_heatmap() -> None:
    (panel,) = (p for p in panels(BOARDS["ssdkd: Buffer"]) if p["title"] == "Priorities")
    assert panel["type"] == "heatmap"
    assert panel["targets"][0]["format"] == "heatmap"


def provisioned(kind: str) -> dict[str, Any]:
    (path,) = (PROVISIONING / kind).glob("*.yaml")
    read: dict[str, Any] = yaml.safe_load(path.read_text())
    return read


def test_provisioning_takes_its_places_from_the_environment_that_compose_sets() -> None:
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    grafana = compose["services"]["grafana"]
    (source,) = provisioned("datasources")["datasources"]
    (provider,) = provisioned("dashboards")["providers"]
    assert source["url"] == "${SSDKD_PROMETHEUS}"
    assert provider["options"]["path"] == "${SSDKD_DASHBOARDS}"
    assert grafana["environment"]["SSDKD_PROMETHEUS"] == "http://prometheus:9090"
    mounted = [volume.split(":")[:2] for volume in grafana["volumes"]]
    assert ["../grafana/dashboards", grafana["environment"]["SSDKD_DASHBOARDS"]] in mounted
