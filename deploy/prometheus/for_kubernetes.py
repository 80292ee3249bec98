"""Prints the rules beside as a PrometheusRule, the form that Prometheus' operator takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).with_name("rules")
HEAD = "# Made from deploy/prometheus/rules by `make docs`: edit those.\n"


def resource() -> str:
    """The whole file."""
    groups: list[Any] = []
    for path in sorted(RULES.glob("*.yml")):
        groups += yaml.safe_load(path.read_text())["groups"]
    made = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "ssdkd", "namespace": "ssdkd"},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.safe_dump(made, sort_keys=False, width=100)


if __name__ == "__main__":
    print(resource(), end="")
