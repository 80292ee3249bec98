"""The rules of Prometheus: valid, tested one by one, and explained."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, ROOT
from tests.deploy.rules import ALERTS, PROMETHEUS, RECORDS

CONFIGS = (PROMETHEUS / "prometheus.yml", DEPLOY / "docker" / "prometheus.yml")
UNIT_TESTS = {path: path.read_text() for path in sorted((PROMETHEUS / "tests").glob("*.yml"))}

each_alert = pytest.mark.parametrize("name", ALERTS)


def promtool(*arguments: str | Path) -> None:
    """Runs Prometheus' own checker."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: it comes with prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_a_configuration_and_its_rules_are_valid(path: Path) -> None:
    promtool("check", "config", path)


def test_the_rules_have_no_duplicates() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *(PROMETHEUS / "rules").glob("*.yml"))


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_rules_say_what_their_unit_tests_expect(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_rule_has_a_unit_test() -> None:
    for name in ALERTS:
        assert any(f'alertname="{name}"' in text for text in UNIT_TESTS.values()), name
    for name in RECORDS:
        assert any(f"'{name}{{" in text for text in UNIT_TESTS.values()), name


def test_every_unit_test_of_an_alert_sees_it_silent_too() -> None:
    for text in UNIT_TESTS.values():
        for case in yaml.safe_load(text)["tests"]:
            expected = [each["exp_samples"] for each in case["promql_expr_test"]]
            assert "alertname" not in str(expected) or [] in expected, case["name"]


@each_alert
def test_an_alert_says_what_is_wrong_why_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert name.startswith("Ssdkd")
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert "{{ $labels.run }}" in notes["summary"]
    assert notes["description"].endswith(".")
    page, _, section = notes["runbook"].partition("#")
    assert section == name.lower()
    found = re.search(rf"^#+ {name}\n+(.+)", (ROOT / page).read_text(), re.M)
    assert found, f"{page} has no section {name}"
    assert len(found[1]) > 40, "it says nothing"


def test_recorded_series_are_named_by_level_metric_and_operation() -> None:
    for name in RECORDS:
        assert re.fullmatch(r"(run|shard|pipeline):ssdkd_[a-z_]+:[a-z0-9_]+", name), name


def test_settings_that_alerts_speak_of_exist() -> None:
    settings = (ROOT / "docs" / "configuration.md").read_text()
    for alert in ALERTS.values():
        spoken = re.findall(r"\b(?:buffer|distiller)\.(\w+)", alert["annotations"]["description"])
        assert all(f"| `{key}` |" in settings for key in spoken), spoken


def test_both_configurations_scrape_a_run_alike() -> None:
    ours, compose = (yaml.safe_load(path.read_text()) for path in CONFIGS)
    assert ours["global"] == compose["global"]
    (here,) = ours["scrape_configs"]
    there = next(each for each in compose["scrape_configs"] if each["job_name"] == "ssdkd")
    (source,) = there["http_sd_configs"]
    assert source["url"] == "http://head:9464/targets"
    (ours_source,) = here["http_sd_configs"]
    assert here == there | {"http_sd_configs": [source | {"url": ours_source["url"]}]}
