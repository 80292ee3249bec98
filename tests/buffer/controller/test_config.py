import pytest
import yaml

from buffer.controller.config import (
    ControllerTable,
    FixedSettings,
    LearnedSettings,
    RandomSettings,
    settings,
)
from buffer.errors import ConfigError


@pytest.mark.parametrize(
    ("policy", "kind"),
    [("fixed", FixedSettings), ("random", RandomSettings), ("learned", LearnedSettings)],
)
def test_each_policy_has_its_settings(policy: str, kind: type[FixedSettings]) -> None:
    chosen = settings(ControllerTable(policy=policy, kwargs={"reward": "agreement"}))
    assert type(chosen) is kind
    assert chosen.reward == "agreement"


@pytest.mark.parametrize(
    ("policy", "kwargs", "message"),
    [
        ("fixed", {"arms": {}}, r"policy fixed, which takes reward:\narms"),
        ("random", {"discount": 0.9}, r"policy random, which takes reward, arms:\ndiscount \(0\.9"),
        ("learned", {"discount": 1.0}, r"discount \(1\.0\): .* less than 1"),
        ("learned", {"exploration": -1}, r"exploration \(-1\): .* greater than or equal to 0"),
        ("learned", {"reward": "accuracy"}, r"reward \('accuracy'\): .*'kl' or 'agreement'"),
    ],
)
def test_impossible_settings_are_refused(
    policy: str, kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(ControllerTable(policy=policy, kwargs=kwargs))


@pytest.mark.parametrize("text", ["policy: off", "policy: 'off'"])
def test_off_can_be_written_as_yaml_reads_it(text: str) -> None:
    assert ControllerTable.model_validate(yaml.safe_load(text)).policy == "off"
