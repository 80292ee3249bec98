from __future__ import annotations

import pytest
import torch

from synthesizer.modulation import difficulty, diversity, modulation, normalize

COUNTS = torch.tensor([0.0, 10.0, 30.0, 60.0])
EVERY_CLASS = torch.arange(4)
KINDS = ("share", "stretched", "off")


def test_share_is_one_minus_the_share_of_the_class_in_the_buffer() -> None:
    expected = torch.tensor([1.0, 0.9, 0.7, 0.4])
    torch.testing.assert_close(diversity(COUNTS, EVERY_CLASS, kind="share"), expected)


def test_stretched_reaches_zero_for_the_commonest_class() -> None:
    expected = torch.tensor([1.0, 5 / 6, 0.5, 0.0])
    torch.testing.assert_close(diversity(COUNTS, EVERY_CLASS, kind="stretched"), expected)


def test_diversity_off_ignores_the_counts() -> None:
    assert diversity(COUNTS, EVERY_CLASS, kind="off").tolist() == [1.0] * 4


@pytest.mark.parametrize("kind", ["share", "stretched"])
def test_more_buffered_samples_of_a_class_make_it_count_less(kind: str) -> None:
    factors = [
        diversity(torch.tensor([20.0, n, 90.0]), torch.tensor([1]), kind=kind).item()
        for n in (0.0, 1.0, 20.0, 80.0)
    ]
    assert factors == sorted(factors, reverse=True)
    assert len(set(factors)) == len(factors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [None, torch.zeros(4)])
def test_the_first_factor_of_an_empty_buffer_is_one(kind: str, counts: torch.Tensor | None) -> None:
    assert diversity(counts, EVERY_CLASS, kind=kind).tolist() == [1.0] * 4


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_more_confidence_makes_a_sample_count_less(exponent: float) -> None:
    factors = difficulty(torch.tensor([0.25, 0.5, 0.9, 1.0]), exponent=exponent)
    assert (factors.diff() < 0).all()
    torch.testing.assert_close(factors[1].item(), 0.5**exponent)
    assert factors[-1] == 0.0


def test_exponent_zero_ignores_confidence_even_at_certainty() -> None:
    assert difficulty(torch.tensor([0.25, 1.0]), exponent=0.0).tolist() == [1.0, 1.0]


def test_a_confidence_rounded_above_one_does_not_turn_the_weight_around() -> None:
    factors = difficulty(torch.tensor([1.0 + 2.0**-23]), exponent=0.5)
    assert factors.tolist() == [0.0]


def test_normalised_weights_have_mean_one_and_keep_their_ratios() -> None:
    weights = normalize(torch.tensor([0.001, 0.002, 0.005]))
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights[2] / weights[0]).item() == pytest.approx(5.0)


def test_normalising_nothing_but_zeros_prefers_no_sample() -> None:
    assert normalize(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def test_modulation_is_the_product_of_both_factors_without_gradient() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], requires_grad=True)
    weights = modulation(logits, COUNTS, kind="share", exponent=2.0)
    confidence = logits.softmax(dim=1).amax(dim=1).detach()
    expected = torch.tensor([1.0, 0.4]) * (1.0 - confidence) ** 2
    torch.testing.assert_close(weights, expected)
    assert not weights.requires_grad


def test_modulation_without_difficulty_is_diversity_alone() -> None:
    logits = torch.eye(4)
    weights = modulation(logits, COUNTS, kind="share", exponent=None)
    torch.testing.assert_close(weights, diversity(COUNTS, EVERY_CLASS, kind="share"))
