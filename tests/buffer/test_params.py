from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from buffer.config import BufferTable
from buffer.errors import ConfigError
from buffer.params import SamplingParams, start_params
from buffer.parsing import override, parse
from buffer.version import NEVER, Version


def test_parameters_whose_recursion_would_oscillate_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"\(1\) is not below 1: the priorities w \* KL"):
        SamplingParams(priority_exponent=2.0, importance_exponent=0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority_exponent", 2.1),
        ("importance_exponent", -0.1),
        ("uniform_share", 1.1),
        ("age_discount", 1.0),
        ("samples_per_insert", 0.0),
        ("adversarial_weight", -1.0),
        ("adversarial_weight", math.inf),
        ("samples_per_insert", math.inf),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    "setting", ["samples_per_insert", "error_buffer", "lease_seconds", "adversarial_weight"]
)
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_settings_are_finite(setting: str, value: str) -> None:
    raw = override({}, [f"{setting}={value}"])
    with pytest.raises(ConfigError, match=rf"{setting} \((inf|nan)\): Input should be a finite"):
        parse(BufferTable, raw)


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        SamplingParams(temperature=1.0)


def test_start_parameters_are_those_of_the_table() -> None:
    table = BufferTable(priority_exponent=0.3, label_balance=0.2, samples_per_insert=7.0)
    params = start_params(table)
    assert params == SamplingParams(
        priority_exponent=0.3, label_balance=0.2, samples_per_insert=7.0, version=NEVER
    )


def test_the_uniform_selector_is_a_uniform_share_of_one() -> None:
    assert start_params(BufferTable(selector="uniform", uniform_share=0.1)).uniform_share == 1.0


def test_parameters_survive_json() -> None:
    params = SamplingParams(version=Version(2, 9), uniform_share=0.1, samples_per_insert=3.7)
    assert SamplingParams.model_validate_json(params.model_dump_json()) == params
