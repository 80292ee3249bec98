import pytest
import yaml

from buffer.errors import ConfigError
from buffer.parsing import override, parse
from synthesizer.config import SynthesizerTable


@pytest.mark.parametrize("text", ["diversity: off", "diversity: 'off'"])
def test_off_can_be_written_as_yaml_reads_it(text: str) -> None:
    assert SynthesizerTable.model_validate(yaml.safe_load(text)).diversity == "off"


def test_only_no_is_taken_for_off() -> None:
    with pytest.raises(ConfigError, match=r"diversity \(True\): Input should be 'share'"):
        parse(SynthesizerTable, override({}, ["diversity=on"]))
