"""All that a run exports: by name, by form, and as Prometheus' own checker sees it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from buffer.config import BufferTable
from buffer.metrics import FOLDER, BufferCollector
from buffer.progress import ProbeReport, StudentProgress
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.version import NEVER, Version
from deploy.exporter import NodeMetrics, exposition
from deploy.metrics import SupervisorCollector
from deploy.supervisor import Supervisor
from tests.deploy.manifests import ROOT

SERVICES = """
import numpy as np
from buffer.controller.metrics import ControllerMetrics
from buffer.metrics import ClientMetrics, process_registry
from distiller.metrics import DistillerMetrics
from synthesizer.metrics import Fate, SynthesizerMetrics

registry = process_registry()
client = ClientMetrics(registry)
client.timed("sample", lambda: None)()
client.timed("take", lambda: None)
client.moved("out", [b"four", None, b"five5"])
synthesizer = SynthesizerMetrics(registry)
synthesizer.observe_images(3, Fate.COMMITTED)
synthesizer.observe_losses({"total": 1.5})
synthesizer.round_seconds.observe(0.3)
distiller = DistillerMetrics(registry)
distiller.ages.observe_all(np.array([0, 3, 3]))
distiller.learning_rate.set(0.1)
controller = ControllerMetrics(registry)
controller.begin(["easy"], interval_seconds=20)
for gauge in (
    *(synthesizer.confidence, synthesizer.modulation, synthesizer.disagreement),
    *(distiller.loss, distiller.kl, distiller.agreement, distiller.repeated, distiller.effective),
    controller.reward,
):
    gauge.set(0.5)
print("ready", flush=True)
input()
"""
"""A process that is every service of a run at once."""

LABELS = {
    *("op", "direction", "shard", "result", "term", "arm", "split", "predicted_class", "side"),
    *("name", "phase", "state", "le"),
}
"""All of them bounded: no sample, actor or image has a name here."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the exporter of a node shows."""
    folder = tmp_path_factory.mktemp("metrics")
    with subprocess.Popen(
        [sys.executable, "-c", SERVICES],
        env=os.environ | {FOLDER: str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        page = NodeMetrics(folder).page("/metrics")
        assert page is not None
        yield page.body.decode()
        process.communicate("\n")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[str]:
    """What the pipeline shows."""
    probe = ProbeReport(
        params_version=NEVER,
        members=8,
        before_kl=2.0,
        after_kl=1.5,
        before_agreement=0.5,
        after_agreement=0.75,
        seconds=3.0,
    )
    registry = CollectorRegistry()
    with RedisServer.start() as server:
        replay = ReplayBuffer(BufferTable(capacity=4), url=server.url, run="run")
        image = np.zeros((1, 8, 8), np.uint8)
        sample = Sample(image=image, predicted_class=3, confidence=0.9, disagreement=1.0)
        replay.insert([sample], producer="p", sequence=1)
        replay.publish_progress(StudentProgress(version=Version(1, 7), probe=probe))
        registry.register(BufferCollector(replay, minimum=4))
        registry.register(SupervisorCollector(Supervisor(lambda number: None, 2)))
        yield exposition(registry).body.decode()
        replay.close()


@pytest.fixture(params=["node", "pipeline"])
def page(request: pytest.FixtureRequest) -> str:
    """Each of both."""
    text: str = request.getfixturevalue(request.param)
    return text


def families(page: str) -> list[Metric]:
    return list(text_string_to_metric_families(page))


def test_prometheus_finds_nothing_to_criticise(page: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_names_say_whose_a_metric_is_and_counters_that_they_are(page: str) -> None:
    whose = r"ssdkd_(buffer|redis|student|synthesizer|distiller|controller|pipeline)_[a-z_]+"
    for line in page.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert re.fullmatch(whose, name), name
            assert name.endswith("_total") == (kind == "counter"), name


def test_every_metric_is_explained_in_a_sentence(page: str) -> None:
    for family in families(page):
        assert re.fullmatch(r"[A-Z0-9].{8,}\.", family.documentation), family


def test_labels_are_bounded(page: str) -> None:
    for family in families(page):
        for sample in family.samples:
            assert set(sample.labels) <= LABELS, sample


def value_in(page: str) -> Callable[..., float | None]:
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families(page)
        for sample in family.samples
    }

    def value(name: str, /, **labels: str) -> float | None:
        return values.get((f"ssdkd_{name}", *sorted(labels.items())))

    return value


def test_what_processes_wrote_into_files_is_what_their_node_shows(node: str) -> None:
    value = value_in(node)
    assert value("buffer_call_seconds_count", op="sample") == 1
    assert value("buffer_payload_bytes_total", direction="out") == 9
    assert value("synthesizer_images_total", result="committed") == 3
    assert value("synthesizer_round_seconds_bucket", le="0.5") == 1
    assert value("synthesizer_loss", term="total") == 1.5
    assert value("distiller_sample_age_steps_bucket", le="1.0") == 1
    assert value("distiller_sample_age_steps_bucket", le="4.0") == 3
    assert value("distiller_sample_age_steps_sum") == 6
    assert value("distiller_learning_rate") == 0.1


def test_what_may_still_happen_is_counted_from_zero(node: str) -> None:
    value = value_in(node)
    assert value("buffer_call_seconds_count", op="take") == 0
    assert value("buffer_payload_bytes_total", direction="in") == 0
    assert value("synthesizer_images_total", result="abandoned") == 0
    assert value("controller_decisions_total", arm="easy") == 0


def test_an_accuracy_that_was_never_measured_is_not_shown(node: str) -> None:
    assert value_in(node)("distiller_accuracy_ratio") is None


def test_a_pipeline_says_when_it_began(pipeline: str) -> None:
    began = value_in(pipeline)("pipeline_start_timestamp_seconds")
    assert began == pytest.approx(time.time(), abs=60)
    assert began == int(began), "it is a label of what is recorded"


def test_every_metric_is_in_the_table_of_the_documentation(node: str, pipeline: str) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    table = set(re.findall(r"^\| `ssdkd_.*\|$", text, re.M))
    assert table == {row for page in (node, pipeline) for row in rows(page)}


def rows(page: str) -> Iterator[str]:
    """A line of the documentation's table for each metric of a page."""
    labels: dict[str, set[str]] = {}
    for family in families(page):
        for sample in family.samples:
            name = re.sub("_(bucket|sum|count)$", "", sample.name)
            labels.setdefault(name, set()).update(sample.labels.keys() - {"le"})
    meanings = dict(re.findall(r"^# HELP (\w+) (.*)$", page, re.M))
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", page, re.M):
        of = ", ".join(f"`{label}`" for label in sorted(labels.get(name, ())))
        yield f"| `{name}` | {kind} | {of} | {meanings[name].replace('|', chr(92) + '|')} |"
