"""A real Prometheus watches a real run: every panel has data, and every metric is of use."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.buffer.servers import free_port
from tests.deploy.dashboards import queries
from tests.deploy.rules import PROMETHEUS, RECORDS, RULES
from tests.integration.prometheus_server import Prometheus

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

VARIABLES = {"run": "demo", "__rate_interval": "20s"}
PENDING = {"SsdkdSynthesizersStarved", "SsdkdDistillerStarved"}
"""What a healthy run may look like for a moment: synthesizers and distillers take turns in waiting,
and here they share two processors. Neither fires before ten minutes of it."""
WITHOUT_DATA = {"shard:ssdkd_redis_memory_used:ratio", "pipeline:ssdkd_student_agreement:avg5m"}
"""A private Redis has no limit, and the pipeline is younger than five minutes."""
NOT_SHOWN: dict[str, str] = {}
"""Metrics that no panel and no rule uses, and why."""
METRIC = r"\b(?:run:|shard:|pipeline:)?ssdkd_\w+(?::\w+)?"
PARTS = re.compile(r"_(bucket|sum|count|gsum|gcount)$")


def family(series: str) -> str:
    """The metric that a series is part of."""
    return PARTS.sub("", series)


def test_a_watched_run_fills_every_panel_and_rings_no_alarm(
    start_run: Callable[..., Any], tmp_path: Path
) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    port = free_port()
    run = start_run(
        *("run.seconds=null", "run.steps=1000000", f"monitoring.port={port}"),
        "evaluation.every_share=0.0001",
    )
    without_data = set(queries())
    with Prometheus(
        program, PROMETHEUS, tmp_path / "prometheus", targets=f"http://127.0.0.1:{port}/targets"
    ) as prometheus:

        def all_have_data() -> bool:
            for asked in list(without_data):
                if any(map(math.isfinite, prometheus.values(asked.with_values(VARIABLES)))):
                    without_data.remove(asked)
            return not without_data

        try:
            run.until(all_have_data)
        except AssertionError as error:
            raise AssertionError(f"{error}: {without_data}") from error
        check_rules(prometheus)
        check_use(prometheus)
    run.process.terminate()
    run.end(code=130)


def check_rules(prometheus: Prometheus) -> None:
    for rule in prometheus.rules():
        assert rule["health"] == "ok", rule
        if rule["type"] == "alerting":
            assert rule["state"] in ("inactive", "pending"), rule
            assert rule["state"] == "inactive" or rule["name"] in PENDING, rule
        else:
            assert prometheus.values(rule["name"]) or rule["name"] in WITHOUT_DATA, rule


def check_use(prometheus: Prometheus) -> None:
    """What is exported is shown or ruled by, and what is asked for is exported."""
    names = prometheus.ask("label/__name__/values")
    exported = {family(name) for name in names if name.startswith("ssdkd_")}
    expressions = [each.expr for each in queries()] + [rule["expr"] for rule in RULES]
    used = {family(name) for text in expressions for name in re.findall(METRIC, text)}
    assert exported - used == NOT_SHOWN.keys()
    assert used <= exported | RECORDS.keys()
