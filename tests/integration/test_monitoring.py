"""A running pipeline tells what it does, to whoever asks as Prometheus would."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.buffer.servers import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

StartRun = Callable[..., Any]

MOVES = {
    "buffer": "up samples needed_samples capacity_samples class_samples parameter inserts_total "
    "draws_total evictions_total updates_total priority_gsum priority_bucket "
    "call_seconds_sum payload_bytes_total",
    "redis": "memory_used_bytes",
    "student": "step attempt elapsed_ratio samples_drawn kl_nats agreement_ratio "
    "effective_sample_ratio buffer_age_steps phase probe_kl_nats probe_agreement_ratio",
    "synthesizer": "images_total rounds_total round_seconds_sum busy_seconds_total "
    "prepared_ratio loss confidence_ratio modulation disagreement_nats "
    "last_insert_timestamp_seconds student_lag_steps",
    "distiller": "steps_total samples_total step_seconds_sum last_step_timestamp_seconds loss "
    "kl_nats agreement_ratio learning_rate accuracy_ratio sample_age_steps_sum "
    "repeated_draws_ratio weight_effective_ratio waiting_seconds_total "
    "checkpoint_seconds_total",
    "controller": "decisions_total reward last_decision_timestamp_seconds decision_seconds_sum "
    "interval_seconds",
    "pipeline": "synthesizers synthesizers_wanted start_timestamp_seconds",
}
"""What is not 0 for ever in a run that goes well."""
STANDS = {
    "buffer": "limiter_balance_draws shards_left_out duplicate_inserts_total redraws_total "
    "refusals_total",
    "redis": "memory_limit_bytes last_fork_seconds",
    "synthesizer": "waiting_seconds_total waits_total",
    "distiller": "refused_seconds_total refusals_total",
    "pipeline": "synthesizer_restarts_total",
}
"""What may stay 0."""


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


def full(names: dict[str, str]) -> set[str]:
    return {f"ssdkd_{whose}_{name}" for whose in names for name in names[whose].split()}


def samples(text: str) -> list[Sample]:
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


@pytest.mark.slow
def test_discovery_leads_to_the_metrics_of_every_service(start_run: StartRun) -> None:
    port = free_port()
    run = start_run(
        *("run.seconds=null", "run.steps=1000000", f"monitoring.port={port}"),
        "evaluation.every_share=0.0001",
    )
    here = f"http://127.0.0.1:{port}"

    def scraped() -> list[Sample]:
        with suppress(OSError):
            groups = json.loads(fetch(f"{here}/targets"))
            assert all(group["labels"]["run"] == "demo" for group in groups)
            targets = [target for group in groups for target in group["targets"]]
            return [s for each in targets for s in samples(fetch(f"http://{each}/metrics"))]
        return []

    awaited, moved = full(MOVES), set[str]()

    def all_have_moved() -> bool:
        moved.update(sample.name for sample in scraped() if sample.value)
        return awaited <= moved

    try:
        run.until(all_have_moved)
    except AssertionError as error:
        raise AssertionError(f"{error}: {sorted(awaited - moved)}") from error
    assert full(STANDS) <= {sample.name for sample in scraped()}
    assert fetch(f"{here}/health") == "ok\n"
    run.process.terminate()
    run.end(code=130)
