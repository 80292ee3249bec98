"""A running pipeline tells what it does, to whoever asks as Prometheus would."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.buffer.servers import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

StartRun = Callable[..., Any]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


def names(text: str) -> set[str]:
    """Of the series that have a value."""
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}


def test_discovery_leads_to_the_metrics_of_every_service(start_run: StartRun) -> None:
    port = free_port()
    run = start_run("run.seconds=null", "run.steps=1000000", f"monitoring.port={port}")
    here = f"http://127.0.0.1:{port}"

    def scraped() -> set[str]:
        with suppress(OSError):
            groups = json.loads(fetch(f"{here}/targets"))
            assert all(group["labels"]["run"] == "demo" for group in groups)
            targets = [target for group in groups for target in group["targets"]]
            return set().union(*(names(fetch(f"http://{each}/metrics")) for each in targets))
        return set()

    wanted = {
        "ssdkd_buffer_samples",
        "ssdkd_student_step",
        "ssdkd_pipeline_synthesizers",
        "ssdkd_synthesizer_images_total",
        "ssdkd_distiller_steps_total",
        "ssdkd_controller_decisions_total",
    }
    run.until(lambda: wanted <= scraped())
    assert fetch(f"{here}/health") == "ok\n"
    run.process.terminate()
    run.end(code=130)
