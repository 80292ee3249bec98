"""What a buffer says and keeps beside samples; each test runs in memory and on Redis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from buffer.errors import RateLimited
from buffer.interface import BufferInfo, Replay, UpdateCounts
from buffer.params import SamplingParams
from buffer.progress import ProbeReport, StudentProgress
from buffer.sample import IDENTITY_DTYPE, Sample
from buffer.version import NEVER, Version

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


def filled(make: Make, samples: list[Sample], **table: Any) -> Replay:
    replay = make(capacity=len(samples), **table)
    replay.insert(samples, producer="a", sequence=1)
    return replay


def test_info_counts_classes_and_levels_of_training_samples(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=4, probe_capacity=2)
    replay.insert(make_samples(3, label=[1, 1, 300]), producer="a", sequence=1)
    replay.insert(make_samples(1, label=9, split="probe"), producer="a", sequence=2)
    info = replay.info()
    assert info.class_counts == {1: 2, 300: 1}
    assert info.level_counts == {128: 3}
    assert (info.capacity, info.probe_capacity) == (4, 2)
    replay.insert(make_samples(4, label=5, priority=2.0), producer="a", sequence=3)
    assert replay.info().class_counts == {5: 4}
    assert replay.info().level_counts == {132: 4}


def test_an_empty_buffer_is_all_zeros(make_replay: Make) -> None:
    info = make_replay(capacity=4, probe_capacity=2).info()
    nothing = BufferInfo(
        *(0, 4, 0, 2, 0, 0, 0, 0, 0, UpdateCounts(0, 0, 0), 0.0, 0, 0, info.seconds)
    )
    assert info == nothing
    assert 0 <= info.seconds < 60


def test_draws_are_counted(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(2))
    replay.sample(3)
    replay.sample(4)
    assert replay.info().sampled == 7


def test_the_table_gives_the_start_parameters(make_replay: Make) -> None:
    params = make_replay(capacity=2, importance_exponent=0.7, samples_per_insert=0.1).params()
    assert params == SamplingParams(importance_exponent=0.7, samples_per_insert=0.1)


def test_given_start_parameters_win(make_replay: Make) -> None:
    given = SamplingParams(difficulty_exponent=0.1, adversarial_weight=1 / 3)
    assert make_replay(given, capacity=2).params() == given


def test_only_newer_parameters_replace_older_ones(make_replay: Make) -> None:
    replay = make_replay(capacity=2)
    newer = SamplingParams(version=Version(1, 5), uniform_share=0.5, samples_per_insert=2.0)
    assert replay.set_params(newer)
    for version in (NEVER, Version(1, 4), Version(1, 5)):
        assert not replay.set_params(SamplingParams(version=version))
    assert replay.params() == newer
    assert replay.set_params(newer)  # repeated, because the answer got lost
    resumed = SamplingParams(version=Version(2, 0))
    assert replay.set_params(resumed)
    assert replay.params() == resumed


def test_a_draw_says_which_parameters_it_was_made_under(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = filled(make_replay, make_samples(2))
    replay.set_params(SamplingParams(version=Version(3, 4)))
    assert replay.sample(1).params_version == Version(3, 4)
    assert replay.probe(1).params_version == Version(3, 4)


@pytest.mark.parametrize("version", [Version(-1, 0), Version(0, 2**32)])
def test_versions_that_cannot_be_stored_are_refused(make_replay: Make, version: Version) -> None:
    replay = make_replay(capacity=2)
    none = np.empty(0, dtype=IDENTITY_DTYPE)
    for call in (
        lambda: replay.set_params(SamplingParams(version=version)),
        lambda: replay.publish_progress(StudentProgress(version=version)),
        lambda: replay.publish_student(b"", version=version),
        lambda: replay.update_priorities(none, [], version=version),
    ):
        with pytest.raises(ValueError, match=r"is not in \[0, 4294967295\]"):
            call()


def test_attempts_of_a_role_count_from_one(make_replay: Make) -> None:
    replay = make_replay(capacity=2)
    assert [replay.begin_attempt("distiller") for _ in range(3)] == [1, 2, 3]
    assert replay.begin_attempt("controller") == 1


def test_attempts_are_above_what_the_role_has_published(make_replay: Make) -> None:
    replay = make_replay(capacity=2)
    replay.publish_student(b"w", version=Version(6, 1))
    replay.publish_progress(StudentProgress(version=Version(7, 0)))
    assert replay.begin_attempt("controller") == 1
    replay.set_params(SamplingParams(version=Version(4, 9)))
    assert [replay.begin_attempt("distiller") for _ in range(2)] == [8, 9]
    assert replay.begin_attempt("controller") == 5
    assert replay.begin_attempt("synthesizer-0") == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_progress_of_a_student_that_diverged_can_be_read(make_replay: Make, number: float) -> None:
    replay = make_replay(capacity=2)
    probe = ProbeReport(
        params_version=NEVER,
        members=3,
        before_kl=1.0,
        after_kl=number,
        before_agreement=0.5,
        after_agreement=0.5,
        seconds=2.0,
    )
    replay.publish_progress(
        StudentProgress(loss=number, kl_quantiles=(0.0, number, number), probe=probe)
    )
    found = replay.progress()
    assert found is not None
    assert found.probe is not None
    numbers = [found.loss, *found.kl_quantiles[1:], found.probe.after_kl]
    assert np.array_equal(numbers, [number] * 4, equal_nan=True)
    assert found.probe.before_kl == 1.0


def test_progress_is_replaced_unless_a_newer_one_is_there(make_replay: Make) -> None:
    replay = make_replay(capacity=2)
    assert replay.progress() is None
    first = StudentProgress(version=Version(1, 9), phase="distilling", kl_quantiles=(0.1, 0.2, 3.0))
    replay.publish_progress(first)
    replay.publish_progress(StudentProgress(version=Version(1, 8), loss=1.0))
    assert replay.progress() == first
    same_step = StudentProgress(version=Version(1, 9), phase="finished")
    replay.publish_progress(same_step)
    assert replay.progress() == same_step


def test_the_student_is_fetched_only_if_newer(make_replay: Make) -> None:
    replay = make_replay(capacity=2)
    assert replay.fetch_student(newer_than=NEVER) is None
    replay.publish_student(b"weights", version=Version(1, 10))
    assert replay.fetch_student(newer_than=NEVER) == (Version(1, 10), b"weights")
    assert replay.fetch_student(newer_than=Version(1, 10)) is None
    replay.publish_student(b"older", version=Version(1, 9))
    assert replay.fetch_student(newer_than=NEVER) == (Version(1, 10), b"weights")
    replay.publish_student(b"resumed", version=Version(2, 0))
    assert replay.fetch_student(newer_than=Version(1, 10)) == (Version(2, 0), b"resumed")


def test_a_student_older_than_the_one_known_was_published_since_the_server_lost_its_data(
    make_replay: Make,
) -> None:
    replay = make_replay(capacity=2)
    assert replay.fetch_student(newer_than=Version(3, 900)) is None
    replay.publish_student(b"weights", version=Version(1, 10))
    assert replay.fetch_student(newer_than=Version(3, 900)) == (Version(1, 10), b"weights")


def test_a_reset_buffer_is_as_new_but_counts_attempts_on(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(SamplingParams(uniform_share=0.1), capacity=4, probe_capacity=2)
    replay.insert(make_samples(4) + make_samples(1, split="probe"), producer="a", sequence=7)
    replay.sample(3)
    replay.set_params(SamplingParams(version=Version(1, 1)))
    replay.publish_progress(StudentProgress())
    replay.publish_student(b"w", version=Version(1, 1))
    attempt = replay.begin_attempt("distiller")
    replay.reset()
    info = replay.info()
    assert (info.size, info.probe_size, info.inserted, info.sampled) == (0, 0, 0, 0)
    assert info.class_counts == info.level_counts == {}
    assert replay.params() == SamplingParams(uniform_share=0.1)
    assert replay.progress() is None
    assert replay.fetch_student(newer_than=NEVER) is None
    assert replay.begin_attempt("distiller") == attempt + 1
    assert len(replay.probe(1).images) == 0
    with pytest.raises(RateLimited, match="too few samples"):
        replay.sample(1)


def test_old_identities_never_come_back_after_a_reset(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = filled(make_replay, make_samples(4))
    old = replay.sample(16, seed=0).identities
    replay.reset()
    replay.insert(make_samples(4), producer="a", sequence=1)
    new = replay.sample(16, seed=0).identities
    assert np.array_equal(old[["slot", "generation"]], new[["slot", "generation"]])
    assert not np.isin(new["incarnation"], old["incarnation"]).any()
    assert replay.update_priorities(old, np.ones(16), version=Version(1, 1)).stale == 16


def test_other_shapes_may_follow_a_reset(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(2))
    replay.reset()
    other = make_samples(2, image=np.zeros((1, 5, 5), np.uint8))
    assert replay.insert(other, producer="a", sequence=1).inserted == 2
