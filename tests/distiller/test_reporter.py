"""Rank 0 and a buffer that is away."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from buffer.errors import BufferUnavailable
from buffer.memory import InMemoryReplayBuffer
from buffer.models import from_bytes
from buffer.version import NEVER, Version
from distiller import reporter
from distiller.trainer import Trainer

FOR_EVER = 1_000_000


class Away(InMemoryReplayBuffer):
    """A real buffer behind a line that breaks: so many calls fail, by name."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.faults = Counter()

    def _maybe_fail(self, name):
        if self.faults[name] > 0:
            self.faults[name] -= 1
            raise BufferUnavailable("the line is down")

    def info(self):
        self._maybe_fail("info")
        return super().info()

    def probe(self, n):
        self._maybe_fail("probe")
        return super().probe(n)

    def publish_progress(self, progress):
        self._maybe_fail("publish_progress")
        super().publish_progress(progress)

    def publish_student(self, weights, *, version):
        self._maybe_fail("publish_student")
        super().publish_student(weights, version=version)


@pytest.fixture
def train(make_config, make_samples, tmp_path, monkeypatch):
    """Trains for 40 steps while the named calls fail; the buffer, the result and the journal."""
    monkeypatch.setattr(reporter, "RETRY_SECONDS", 0.001)

    def run(*assignments, **faults):
        config = make_config(
            "run.steps=40",
            "distiller.snapshot_seconds=0.001",
            "distiller.probe_seconds=0.001",
            *assignments,
        )
        replay = Away(config.buffer, seed=0)
        replay.insert(make_samples(64), producer="p", sequence=0)
        replay.insert(make_samples(16, seed=5, split="probe"), producer="p", sequence=1)
        journal = tmp_path / "metrics.jsonl"
        with Trainer(config, replay, attempt=1, journal=journal) as trainer:
            replay.faults.update(faults)
            metrics = trainer.run(lambda: None)
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        return replay, metrics, lines

    return run


def test_a_buffer_that_is_away_for_a_while_ends_no_training(train, caplog):
    replay, metrics, _ = train(publish_progress=3, publish_student=3, probe=3)
    assert metrics["student_steps"] == 40
    assert sum(replay.faults.values()) == 0
    assert replay.progress().version == Version(1, 40)
    assert replay.progress().probe is not None
    assert replay.fetch_student(newer_than=NEVER)[0] == Version(1, 40)
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert "the student was not published, the buffer is away: the line is down" in messages
    assert "no probe samples could be fetched, the buffer is away" in messages


def test_the_journal_has_a_line_for_what_could_not_be_published(train):
    _, _, lines = train(publish_student=20)
    unpublished = lines[:20]
    assert unpublished[0]["phase"] == "filling"
    assert len({tuple(line["version"]) for line in unpublished}) > 10


def test_members_that_could_not_be_fetched_are_asked_for_when_it_is_due_again(train):
    replay, _, lines = train("distiller.probe_seconds=1000", probe=FOR_EVER)
    assert FOR_EVER - replay.faults["probe"] == 1
    assert lines[-1]["probe"] is None


def test_what_was_inserted_before_a_first_step_without_the_buffer_stays_unknown(train, caplog):
    _, metrics, _ = train(info=1)
    assert metrics["inserted_at_first_step"] is None
    assert metrics["first_step_at_seconds"] > 0
    assert "the samples inserted before the first step were not counted" in caplog.text


def test_the_end_is_tried_again_until_it_is_published(train):
    replay, _, lines = train(
        "distiller.snapshot_seconds=1000", publish_student=8, publish_progress=3
    )
    assert replay.progress().phase == "finished"
    version, weights = replay.fetch_student(newer_than=NEVER)
    assert version == Version(1, 40)
    assert from_bytes(weights)
    assert [line["phase"] for line in lines].count("finished") == 1


def test_an_end_that_cannot_be_published_is_an_error(train):
    with pytest.raises(
        BufferUnavailable, match=r"max_waiting_seconds \(0\.05\): the trained student could not be"
    ):
        train("distiller.max_waiting_seconds=0.05", publish_progress=FOR_EVER)
