"""What Prometheus is told of the buffer and of the student, and of those who use the buffer.

The first is read at every scrape and never kept; the second is counted by each process that is a
client.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from buffer import metric_files
from buffer.errors import SsdkdError
from buffer.interface import BufferInfo, Replay, ServerInfo
from buffer.observer import Answer, Arguments, Observer
from buffer.priorities import LEVELS, STEPS_PER_OCTAVE, value_of
from buffer.progress import Phase, StudentProgress

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where the processes of a node keep their metrics in files, for one exporter to read: what
``prometheus_client`` calls its multiprocess mode. Set before a process begins, or not at all."""

ANSWER_SECONDS = 2.0
"""A buffer that says nothing for so long is away, to Prometheus, which gives up a scrape at 10."""

logger = logging.getLogger(__name__)


def process_registry() -> CollectorRegistry:
    """The registry of a service's process; its exporter reads them if :data:`FOLDER` is set.

    To be called before a metric is made. Where the folder cannot be, a service goes on without.
    """
    if folder := os.environ.get(FOLDER):
        metric_files.take_room()
        with suppress(OSError):  # each file says what came of that
            Path(folder).mkdir(parents=True, exist_ok=True)
    return CollectorRegistry()


CALL_BUCKETS = (0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0, 5.0)


class ClientMetrics(Observer):
    """What one process asks of the buffer's servers, for :func:`buffer.connect.connect`.

    Args:
        registry: where the metrics are registered; a fresh one per process and per test.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "ssdkd_buffer_call_seconds",
            "How long a service waited for the buffer's server, repetitions after a broken "
            "connection included.",
            ["op"],
            buckets=CALL_BUCKETS,
            registry=registry,
        )
        moved = Counter(
            "ssdkd_buffer_payload_bytes_total",
            "Bytes of images and their targets that services wrote (in) and read (out); what came "
            "from a cache was not read.",
            ["direction"],
            registry=registry,
        )
        self._moved = {direction: moved.labels(direction) for direction in ("in", "out")}

    def timed(
        self, operation: str, call: Callable[Arguments, Answer]
    ) -> Callable[Arguments, Answer]:
        """See :meth:`buffer.observer.Observer.timed`."""
        seconds = self._seconds.labels(operation)

        def observed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
            with seconds.time():
                return call(*args, **kwargs)

        return observed

    def moved(self, direction: Literal["in", "out"], payloads: Iterable[bytes | None]) -> None:
        """See :meth:`buffer.observer.Observer.moved`."""
        self._moved[direction].inc(sum(len(payload) for payload in payloads if payload))


class BufferCollector(Collector):
    """The state of the buffer, and what the distiller published of the student.

    A buffer that is away, or takes longer than :data:`ANSWER_SECONDS`, is reported as such, and no
    scrape fails: Prometheus would take the pipeline to be down.

    Args:
        replay: asked at every scrape, from a thread.
        minimum: training samples that it needs before the first draw.
    """

    def __init__(self, replay: Replay, minimum: int) -> None:
        self._replay, self._minimum = replay, minimum
        self._lock = Lock()
        self._asked: Future[list[Metric]] | None = None

    def collect(self) -> Iterable[Metric]:
        """All families, from one picture of the buffer."""
        with self._lock:  # a buffer that hangs has one thread that waits for it, not one a scrape
            if self._asked is None or self._asked.done():
                self._asked = _in_background(self._families)
            asked = self._asked
        try:
            return asked.result(ANSWER_SECONDS)
        except (SsdkdError, TimeoutError) as error:
            logger.debug("no metrics of the buffer: %s", error)
            return [_up(0.0)]

    def _families(self) -> list[Metric]:
        info, progress = self._replay.info(), self._replay.progress()
        params = self._replay.params().model_dump(exclude={"version"})
        servers = self._replay.servers()
        parameter = GaugeMetricFamily(
            "ssdkd_buffer_parameter", "Sampling parameters in force.", labels=["name"]
        )
        for name, value in params.items():
            if value is not None:  # off
                parameter.add_metric([name], value)
        needed = GaugeMetricFamily(
            "ssdkd_buffer_needed_samples",
            "Training samples that it needs before the first draw.",
            value=self._minimum,
        )
        families = [_up(1.0), parameter, needed, *_sizes(info), *_counters(info)]
        families.append(_priorities(info))
        families += _servers(servers)
        return [*families, *_student(progress)] if progress is not None else families


def _in_background(call: Callable[[], Answer]) -> Future[Answer]:
    """Its result, from a thread that the process does not wait for at its end."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised to who asks
            future.set_exception(error)

    Thread(target=run, name="buffer-metrics", daemon=True).start()
    return future


def _up(value: float) -> Metric:
    return GaugeMetricFamily("ssdkd_buffer_up", "Whether the buffer answers.", value=value)


def _sizes(info: BufferInfo) -> Iterator[Metric]:
    samples = GaugeMetricFamily("ssdkd_buffer_samples", "Samples held.", labels=["split"])
    capacity = GaugeMetricFamily(
        "ssdkd_buffer_capacity_samples", "Samples that can be held.", labels=["split"]
    )
    for split, held, most in (
        ("train", info.size, info.capacity),
        ("probe", info.probe_size, info.probe_capacity),
    ):
        samples.add_metric([split], held)
        capacity.add_metric([split], most)
    classes = GaugeMetricFamily(
        "ssdkd_buffer_class_samples",
        "Training samples held, by the class that the teacher sees.",
        labels=["predicted_class"],
    )
    for label, count in sorted(info.class_counts.items()):
        classes.add_metric([str(label)], count)
    yield from (samples, capacity, classes)
    yield GaugeMetricFamily(
        "ssdkd_buffer_limiter_balance_draws",
        "Draws that inserted samples have paid for and nobody has made yet; negative: owed.",
        value=info.balance,
    )
    yield GaugeMetricFamily(
        "ssdkd_buffer_shards_left_out", "Shards that cannot be reached.", value=info.shards_left_out
    )


def _counters(info: BufferInfo) -> Iterator[Metric]:
    for name, meaning, count in (
        ("inserts", "Training samples inserted.", info.inserted),
        ("draws", "Draws answered.", info.sampled),
        ("evictions", "Samples evicted.", info.evicted),
        ("duplicate_inserts", "Inserts answered as repeated deliveries.", info.duplicates),
        ("redraws", "Draws repeated because the sample had been evicted.", info.redraws),
    ):
        yield CounterMetricFamily(f"ssdkd_buffer_{name}", meaning, value=count)
    updates = CounterMetricFamily(
        "ssdkd_buffer_updates", "Priority updates, by what became of them.", labels=["result"]
    )
    for result, count in info.updates._asdict().items():
        updates.add_metric([result], count)
    refusals = CounterMetricFamily(
        "ssdkd_buffer_refusals",
        "Times that a side had to wait for the other, or for the first samples.",
        labels=["side"],
    )
    refusals.add_metric(["insert"], info.insert_waits)
    refusals.add_metric(["sample"], info.sample_waits)
    yield from (updates, refusals)


def _priorities(info: BufferInfo) -> Metric:
    """A histogram with a bucket an octave, of those octaves that have items or lie between."""
    octaves = [level // STEPS_PER_OCTAVE for level, count in info.level_counts.items() if count]
    buckets, below, total = [], 0, 0.0
    for octave in range(min(octaves, default=0), max(octaves, default=-1) + 1):
        for level in range(STEPS_PER_OCTAVE * octave, STEPS_PER_OCTAVE * (octave + 1)):
            count = info.level_counts.get(level, 0)
            below, total = below + count, total + count * float(value_of([level])[0])
        # A level stands for what rounds to it: the bucket ends half a level above its last.
        last = min(STEPS_PER_OCTAVE * (octave + 1), LEVELS) - 1
        edge = float(value_of([last])[0]) * 2.0 ** (0.5 / STEPS_PER_OCTAVE)
        buckets.append((f"{edge:.4g}", float(below)))
    return GaugeHistogramMetricFamily(
        "ssdkd_buffer_priority",
        "Priorities of the training samples held.",
        buckets=[*buckets, ("+Inf", float(below))],
        gsum_value=total,
    )


def _servers(servers: Sequence[ServerInfo]) -> Iterator[Metric]:
    for name, meaning in (
        ("memory_used_bytes", "Memory that a shard's server has allocated."),
        ("memory_limit_bytes", "What it may allocate before it refuses inserts; 0: no limit."),
        ("last_fork_seconds", "How long its last fork kept all clients waiting; 0: none yet."),
    ):
        family = GaugeMetricFamily(f"ssdkd_redis_{name}", meaning, labels=["shard"])
        for server in servers:
            family.add_metric([str(server.shard)], getattr(server, name))
        yield family


def _student(progress: StudentProgress) -> Iterator[Metric]:
    for name, meaning, value in (
        ("step", "Student steps of the run.", progress.version.step),
        (
            "attempt",
            "How often the training has begun: anew, or after a crash from its newest checkpoint.",
            progress.version.attempt,
        ),
        ("elapsed_ratio", "Share of the budget that is spent.", progress.elapsed_share),
        ("samples_drawn", "Samples trained on, over all workers.", progress.samples_drawn),
        (
            "kl_nats",
            "Mean KL(teacher || student) of drawn samples, of the student that is trained.",
            progress.kl_mean,
        ),
        (
            "agreement_ratio",
            "Share of equal argmax on drawn samples, of the student that is trained.",
            progress.agreement,
        ),
        (
            "effective_sample_ratio",
            "Effective share of the samples held, 1 / (N sum P^2).",
            progress.ess_ratio,
        ),
        ("buffer_age_steps", "Mean age of the samples held.", progress.mean_age),
    ):
        yield GaugeMetricFamily(f"ssdkd_student_{name}", meaning, value=float(value))
    phase = GaugeMetricFamily("ssdkd_student_phase", "1 for the phase it is in.", labels=["phase"])
    for name in get_args(Phase):
        phase.add_metric([name], float(name == progress.phase))
    yield phase
    if (probe := progress.probe) is not None:
        yield GaugeMetricFamily(
            "ssdkd_student_probe_kl_nats",
            "Mean KL(teacher || student) of samples that it never trains on, of the average of its "
            "latest weights.",
            value=probe.after_kl,
        )
        yield GaugeMetricFamily(
            "ssdkd_student_probe_agreement_ratio",
            "Share of equal argmax on samples that it never trains on, of the average of its "
            "latest weights.",
            value=probe.after_agreement,
        )
