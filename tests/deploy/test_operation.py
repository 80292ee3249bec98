"""Orders to a pipeline whose services have not begun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from rich.console import Console

from buffer.lease import RunLease
from buffer.memory import InMemoryReplayBuffer
from deploy.config import DEFAULT_CONFIG, load
from deploy.display import Display
from deploy.ending import Outcome
from deploy.interrupt import Interrupt
from deploy.operation import Operation
from deploy.supervisor import Totals
from deploy.views import View

pytestmark = pytest.mark.integration

NOBODY = "redis://127.0.0.1:1"
SETS = ["synthesizer.min_actors=1", "synthesizer.max_actors=3", "controller.policy=off"]


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Operation]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    config = load(DEFAULT_CONFIG, SETS)
    replay = InMemoryReplayBuffer(config.buffer)
    outcome = Outcome(earlier=Totals())
    yield Operation(
        config, NOBODY, replay, tmp_path, outcome, Interrupt(), resumes=False, environment={}
    )
    ray.shutdown()


def test_an_order_beyond_the_bounds_is_kept_and_ends_automatic_scaling(
    pipeline: Operation,
) -> None:
    def told() -> tuple[int, str]:
        status = pipeline._status()
        return status["synthesizers_wanted"], status["scaling"]

    assert told() == (1, "automatic")
    pipeline._scale(3)
    assert told() == (3, "automatic")
    pipeline._scale(4)
    assert told() == (4, "by hand")
    pipeline._scale(2)
    assert told() == (2, "by hand")


def test_what_was_started_is_stopped_when_the_rest_cannot_be(pipeline: Operation) -> None:
    pipeline._supervisor.start()
    display = Display(View(Console(quiet=True)))
    with pytest.raises(RuntimeError, match="threads can only be started once"):
        pipeline.run(Interrupt(), RunLease(NOBODY, "run"), display)
    assert not pipeline._supervisor._thread.is_alive()
    assert pipeline._supervisor.statuses() == []
