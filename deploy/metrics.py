"""What the pipeline tells Prometheus of itself and of the synthesizers it keeps alive."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deploy.seat import STATES
from deploy.supervisor import Supervisor


class SupervisorCollector(Collector):
    """How many synthesizers there are, by what they do, how often one was replaced, since when.

    Args:
        supervisor: asked at every scrape.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._began = float(int(time.time()))

    def collect(self) -> Iterable[Metric]:
        """All families."""
        seats = self._supervisor.describe()
        count = Counter(seat["state"] for seat in seats)
        synthesizers = GaugeMetricFamily(
            "ssdkd_pipeline_synthesizers", "Synthesizers, by what they are doing.", labels=["state"]
        )
        for state in STATES:
            synthesizers.add_metric([state], count[state])
        yield synthesizers
        yield GaugeMetricFamily(
            "ssdkd_pipeline_synthesizers_wanted",
            "How many synthesizers there should be.",
            value=self._supervisor.wanted,
        )
        yield CounterMetricFamily(
            "ssdkd_pipeline_synthesizer_restarts",
            "Synthesizers that were started again after their death.",
            value=self._supervisor.totals().restarts,
        )
        yield GaugeMetricFamily(
            "ssdkd_pipeline_start_timestamp_seconds",
            "Unix time when this pipeline began: a run of the same name, or one that goes on, has "
            "another.",
            value=self._began,
        )
