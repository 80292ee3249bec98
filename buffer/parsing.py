"""How a YAML file and overrides become configuration tables. Strings and numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from buffer.errors import ConfigError

SERVICE_TABLES = ("synthesizer", "distiller", "controller", "monitoring")

OFF_IS_A_WORD = BeforeValidator(lambda value: "off" if value is False else value)
"""For fields that can be ``off``: YAML reads a bare one as false."""


def at_least(bound: float, consequence: str) -> AfterValidator:
    """A least value, for fields where what a smaller one would lead to is not obvious."""

    def check(value: float) -> float:
        if value < bound:
            raise ValueError(f"is below {bound:g}: {consequence}")
        return value

    return AfterValidator(check)


UNWRITABLE = "the run's result could not be written"


def _plain(value: Any, where: str = "") -> Any:
    """Refuses what YAML has and JSON has not: infinities, dates, sets."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _plain(key, where)
            _plain(item, f"{where}{key}: ")
    elif isinstance(value, list | tuple):
        for item in value:
            _plain(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}{value} is no finite number, {UNWRITABLE}")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{where}{value} is no string, number, list or table, {UNWRITABLE}")
    return value


Kwargs = Annotated[dict[str, Any], AfterValidator(_plain)]
"""Keyword arguments of something that a user may bring along: plain values, whatever they mean."""


class Table(BaseModel):
    """Base of every table: frozen, no unknown keys, finite numbers, documented fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


Tables = TypeVar("Tables", bound=Table)


def read_raw(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping of tables.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML or not a mapping of known tables.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file ({path}): {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file ({path}) is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config file ({path}) holds {type(raw).__name__}, not tables")
    return raw


def override(raw: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Applies ``table.key=value`` assignments; values are read as YAML.

    Raises:
        ConfigError: an assignment has no ``=`` or walks through something that is not a table.
    """
    result: dict[str, Any] = _copy_tables(raw)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f"override ({assignment}): expected table.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override ({assignment}): the value is not YAML: {error}") from error
        table = result
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"override ({assignment}): {key} is a value, not a table")
        table[keys[-1]] = value
    return result


def parse(model: type[Tables], raw: Mapping[str, Any]) -> Tables:
    """Validates the tables that ``model`` knows, leaving the other services' tables alone.

    Raises:
        ConfigError: one line per impossible field, with its value and the consequence.
    """
    foreign = [name for name in SERVICE_TABLES if name not in model.model_fields]
    known = {name: table for name, table in raw.items() if name not in foreign}
    try:
        return model.model_validate(known)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """One line per problem: dotted field, offending value, what is wrong."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        shown = problem["input"]
        if isinstance(shown, Mapping | BaseModel):
            lines.append(f"{where}: {message}" if where else message)
        else:
            lines.append(f"{where} ({shown!r}): {message}")
    return "\n".join(lines)


def _copy_tables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_tables(item) for key, item in value.items()}
    return value
