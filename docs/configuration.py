"""Prints ``configuration.md``, made from the tables and the docstrings of their fields."""

from __future__ import annotations

import json
from typing import Any

from buffer.config import BufferTable, EvaluationTable, ModelSpec, RunTable
from buffer.controller.config import ControllerTable, LearnedSettings
from buffer.parsing import Table
from deploy.config import MonitoringTable
from distiller.config import DistillerTable
from synthesizer.config import SynthesizerTable
from synthesizer.methods.fast_meta import FastMetaTable
from synthesizer.methods.noisy_layer import NoisyLayerTable

INTRODUCTION = """# Configuration

Every setting, by table. `make docs` writes this page from the code: edit the docstrings there.
`--set table.key=value` overrides one setting. What is impossible is refused before anything starts.
"""
STUDENT = """
The student's `task`, `classes`, `image_shape`, `mean` and `std` default to the teacher's.
"""
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            INTRODUCTION,
            section("`run`", RunTable),
            section("`teacher` and `student`", ModelSpec) + STUDENT,
            section("`evaluation`", EvaluationTable),
            section("`buffer`", BufferTable),
            section("`synthesizer`", SynthesizerTable),
            section("`synthesizer.kwargs`", FastMetaTable),
            section("`synthesizer.kwargs` of the method `noisy_layer`", NoisyLayerTable),
            section("`distiller`", DistillerTable),
            section("`controller`", ControllerTable),
            section("`controller.kwargs`", LearnedSettings),
            section("`monitoring`", MonitoringTable),
        ]
    )


def section(title: str, model: type[Table]) -> str:
    """What a table is, and a row for each of its fields."""
    schema = model.model_json_schema()
    lines = [f"## {title}", prose(schema["description"]), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        required = key in schema.get("required", ())
        default = "required" if required else f"`{json.dumps(field.get('default', {}))}`"
        meaning = prose(field["description"]).replace("|", r"\|")
        lines.append(f"| `{key}` | {values(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def values(schema: dict[str, Any]) -> str:
    """What a field takes: its type and bounds, or the words it knows."""
    if "anyOf" in schema:
        return " or ".join(values(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum") or [schema["const"]])
    if schema["type"] == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        return f"list of {len(items) if len(items) > 1 else 'any length'}: {values(items[0])}"
    bounds = [f"{sign} {schema[name]:.10g}" for name, sign in BOUNDS.items() if name in schema]
    return " ".join([schema["type"].replace("object", "mapping"), ", ".join(bounds)]).strip()


def prose(docstring: str) -> str:
    """A docstring as one line of Markdown."""
    return " ".join(docstring.replace("``None``", "`null`").replace("``", "`").split())


if __name__ == "__main__":
    print(page(), end="")
