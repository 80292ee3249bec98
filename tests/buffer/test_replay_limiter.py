"""The rate limiter; each test runs in memory and on Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from buffer.errors import RateLimited
from buffer.interface import Permit, Replay
from buffer.params import SamplingParams
from buffer.sample import Sample
from buffer.version import Version

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]
TABLE = {"capacity": 20, "probe_capacity": 20, "min_size_to_sample": 10}


def warm(make: Make, make_samples: Samples, **table: float) -> Replay:
    replay = make(**{**TABLE, **table})
    replay.insert(make_samples(10), producer="filler", sequence=1)
    return replay


def insert(replay: Replay, samples: list[Sample], *, producer: str, sequence: int) -> bool:
    try:
        replay.insert(samples, producer=producer, sequence=sequence)
    except RateLimited:
        return False
    return True


def draw(replay: Replay, n: int) -> bool:
    try:
        replay.sample(n)
    except RateLimited:
        return False
    return True


def test_inserts_pay_for_draws(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.5, error_buffer=100)
    assert replay.info().balance == 0
    replay.insert(make_samples(4), producer="a", sequence=1)
    assert replay.info().balance == 10
    replay.sample(13)
    assert replay.info().balance == -3


def test_inserts_stop_where_the_error_buffer_ends(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.insert(make_samples(5), producer="a", sequence=1)
    with pytest.raises(RateLimited, match="the limiter lets draws catch up first") as refusal:
        replay.insert(make_samples(1), producer="a", sequence=2)
    assert 0 < refusal.value.retry_after_seconds <= 0.5
    info = replay.info()
    assert (info.balance, info.size, info.insert_waits) == (10, 15, 1)
    replay.sample(2)
    assert replay.insert(make_samples(1), producer="a", sequence=2).inserted == 1


def test_draws_stop_where_the_error_buffer_ends(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.sample(10)
    with pytest.raises(RateLimited, match="the limiter lets inserts catch up first") as refusal:
        replay.sample(1)
    assert 0 < refusal.value.retry_after_seconds <= 0.5
    info = replay.info()
    assert (info.balance, info.sampled, info.sample_waits) == (-10, 10, 1)


def test_without_samples_per_insert_both_sides_run_freely(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, error_buffer=1)
    for sequence in range(1, 20):
        assert insert(replay, make_samples(20), producer="a", sequence=sequence)
        assert draw(replay, 500)
    assert replay.info().balance == 0


def test_operations_larger_than_the_error_buffer_are_admitted_at_balance(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=50.0, error_buffer=1)
    assert draw(replay, 1000)
    assert not draw(replay, 1)
    assert insert(replay, make_samples(20), producer="a", sequence=1)
    assert replay.info().balance == 0


def any_limits(generator: np.random.Generator) -> dict[str, float]:
    """Rates and windows of all sizes, the window often smaller than what is asked for at once."""
    return {
        "samples_per_insert": float(generator.uniform(0.1, 30)),
        "error_buffer": float(generator.uniform(0.5, 50)),
    }


@pytest.mark.parametrize("seed", range(5))
def test_one_of_the_two_sides_is_always_admitted(
    make_replay: Make, make_samples: Samples, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    replay = warm(make_replay, make_samples, **any_limits(generator))
    refused = 0
    for sequence in range(1, 120):
        inserted = insert(
            replay, make_samples(int(generator.integers(1, 20))), producer="a", sequence=sequence
        )
        drawn = draw(replay, int(generator.integers(1, 200)))
        assert inserted or drawn
        refused += (not inserted) + (not drawn)
    assert refused > 0


@pytest.mark.parametrize("seed", range(3))
def test_one_side_is_admitted_whatever_permits_several_producers_hold(
    make_replay: Make, make_samples: Samples, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    replay = warm(make_replay, make_samples, **any_limits(generator))
    held: dict[str, int] = {}
    refused = 0
    for sequence in range(1, 120):
        producer, n = str(generator.choice(["a", "b", "c"])), int(generator.integers(1, 20))
        held.pop(producer, None)
        if replay.request_permit(n, producer=producer).granted:
            held[producer] = n
        drawn = draw(replay, int(generator.integers(1, 200)))
        assert held or drawn
        refused += producer not in held
        if held and (not drawn or generator.random() < 0.2):
            user = str(generator.choice(list(held)))
            samples = make_samples(held.pop(user))
            assert insert(replay, samples, producer=user, sequence=sequence)
    assert refused > 0


def test_probe_samples_are_outside_the_count(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=2)
    replay.insert(make_samples(1), producer="a", sequence=1)
    assert replay.insert(make_samples(9, split="probe"), producer="a", sequence=2).inserted == 9
    assert replay.info().balance == 2


def test_inserts_before_the_first_draw_are_not_counted(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(**TABLE, samples_per_insert=5.0, error_buffer=1)
    for sequence in range(1, 4):
        replay.insert(make_samples(6), producer="a", sequence=sequence)
        assert replay.info().balance == (30 if sequence == 3 else 0)


def test_a_new_samples_per_insert_counts_from_now_on(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.sample(10)
    assert not draw(replay, 1)
    replay.set_params(SamplingParams(version=Version(1, 1), samples_per_insert=4.0))
    assert replay.info().balance == -10
    assert not draw(replay, 1)
    replay.insert(make_samples(5), producer="a", sequence=7)
    assert replay.info().balance == 10
    assert draw(replay, 20)


def test_the_limiter_begins_anew_when_it_is_switched_on_or_off(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.sample(10)
    replay.set_params(SamplingParams(version=Version(1, 1), samples_per_insert=None))
    assert draw(replay, 1000)
    assert replay.info().balance == 0
    replay.set_params(SamplingParams(version=Version(1, 2), samples_per_insert=4.0))
    assert draw(replay, 10)
    assert replay.info().balance == -10
    assert not draw(replay, 1)


def test_changes_to_and_fro_admit_no_more_than_the_rates(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.insert(make_samples(5), producer="a", sequence=7)
    for decision, rate in enumerate((1.0, 2.0, 1.0), start=1):
        replay.set_params(SamplingParams(version=Version(1, decision), samples_per_insert=rate))
        assert not insert(replay, make_samples(1), producer="a", sequence=7 + decision)


def test_a_permit_admits_an_insert_whatever_happened_since(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    assert replay.request_permit(5, producer="a") == Permit(True, 0.0)
    replay.set_params(SamplingParams(version=Version(1, 1), samples_per_insert=100.0))
    assert insert(replay, make_samples(5), producer="a", sequence=1)
    assert not insert(replay, make_samples(5), producer="a", sequence=2)


def test_permits_of_others_count_as_inserted(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    assert replay.request_permit(4, producer="a").granted
    refusal = replay.request_permit(2, producer="b")
    assert not refusal.granted
    assert 0 < refusal.retry_after_seconds <= 0.5
    assert not insert(replay, make_samples(2), producer="b", sequence=1)
    assert replay.info().insert_waits == 2
    assert replay.request_permit(1, producer="b").granted


@pytest.mark.parametrize("n", [0, -1, 21])
def test_a_permit_is_for_as_many_samples_as_an_insert_has(make_replay: Make, n: int) -> None:
    replay = make_replay(**TABLE)
    with pytest.raises(ValueError, match=rf"n \({n}\) is not in \[1, 20\]: no insert has so many"):
        replay.request_permit(n, producer="a")
    assert replay.request_permit(20, producer="a").granted


def test_a_permit_for_fewer_samples_admits_nothing(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.insert(make_samples(1), producer="b", sequence=1)
    assert replay.request_permit(4, producer="a").granted
    assert not insert(replay, make_samples(5), producer="a", sequence=1)
    assert insert(replay, make_samples(4), producer="a", sequence=1)


def test_asking_again_renews_a_permit_and_does_not_add_to_it(make_replay: Make) -> None:
    replay = make_replay(**TABLE, samples_per_insert=2.0, error_buffer=10)
    for _ in range(5):
        assert replay.request_permit(10, producer="a").granted


def test_a_refusal_ends_the_permit_that_was_held(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.insert(make_samples(2), producer="b", sequence=1)
    assert replay.request_permit(3, producer="a").granted
    assert not replay.request_permit(9, producer="a").granted
    assert not insert(replay, make_samples(4), producer="a", sequence=1)
    assert replay.request_permit(3, producer="b").granted


def test_an_insert_uses_the_permit(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.request_permit(5, producer="a")
    replay.insert(make_samples(5), producer="a", sequence=1)
    assert not insert(replay, make_samples(1), producer="a", sequence=2)
    replay.sample(10)
    assert replay.request_permit(5, producer="b").granted


def test_a_released_permit_is_free_for_others(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=2.0, error_buffer=10)
    replay.request_permit(5, producer="a")
    assert not replay.request_permit(5, producer="b").granted
    replay.release_permit(producer="a")
    assert replay.request_permit(5, producer="b").granted


def test_releasing_no_permit_is_fine(make_replay: Make) -> None:
    replay = make_replay(**TABLE)
    replay.release_permit(producer="nobody")
    assert replay.info().size == 0


def test_a_permit_lapses_with_its_lease(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(
        make_replay, make_samples, samples_per_insert=2.0, error_buffer=10, lease_seconds=1
    )
    replay.request_permit(5, producer="a")
    assert not replay.request_permit(5, producer="b").granted
    time.sleep(1.01)
    assert replay.request_permit(5, producer="b").granted
    assert not insert(replay, make_samples(5), producer="a", sequence=1)


def test_a_lapsed_permit_admits_nothing(make_replay: Make, make_samples: Samples) -> None:
    replay = warm(
        make_replay, make_samples, samples_per_insert=2.0, error_buffer=10, lease_seconds=1
    )
    replay.insert(make_samples(1), producer="b", sequence=1)
    assert replay.request_permit(4, producer="a").granted
    time.sleep(1.01)
    assert not insert(replay, make_samples(5), producer="a", sequence=1)
    assert insert(replay, make_samples(4), producer="a", sequence=1)


def test_permits_do_not_overfill_an_empty_buffer(make_replay: Make) -> None:
    replay = make_replay(**TABLE, samples_per_insert=1.0, error_buffer=5)
    assert replay.request_permit(6, producer="a").granted
    assert replay.request_permit(4, producer="b").granted
    assert not replay.request_permit(1, producer="c").granted
    assert replay.request_permit(6, producer="a").granted


def test_an_unset_error_buffer_is_ten_of_the_largest_draws(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = warm(make_replay, make_samples, samples_per_insert=4096.0)
    replay.insert(make_samples(10), producer="a", sequence=1)
    assert not insert(replay, make_samples(1), producer="a", sequence=2)
    assert replay.info().balance == 40960
