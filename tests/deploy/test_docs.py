"""What the pages of deployment and security say is there, is there."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from deploy.jobs import RUN
from deploy.outlook import State
from tests.deploy.manifests import OVERLAYS, ROOT

SECURITY = (ROOT / "docs" / "security.md").read_text()
CLUSTER = (ROOT / "docs" / "cluster.md").read_text()
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", SECURITY)))
PATH = r"`((?:deploy|buffer|distiller|synthesizer|docs|tests)/[\w./-]+)`"


@pytest.mark.parametrize("test", TESTS)
def test_every_promise_names_a_test_that_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


@pytest.mark.parametrize(
    "page", [SECURITY, CLUSTER, MONITORING], ids=["security", "cluster", "monitoring"]
)
def test_every_file_that_is_named_exists(page: str) -> None:
    named = set(re.findall(PATH, page))
    named |= set(re.findall(r"(?<= )(deploy/[\w./-]+)", page)) - {"deploy/kubernetes/base/secrets"}
    named -= {"deploy/docker/secrets"}
    assert named
    for name in named:
        assert (ROOT / name.rstrip(".")).exists(), name


def test_every_overlay_and_link_is_told_of_and_leads_somewhere() -> None:
    assert all(f"`{overlay}`" in CLUSTER for overlay in OVERLAYS)
    for page in (SECURITY, CLUSTER, MONITORING):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page):
            assert (Path(ROOT / "docs") / target).exists()


def test_every_job_that_is_submitted_by_ray_is_found_by_its_run_s_name() -> None:
    commands = CLUSTER.replace("\\\n", " ")
    submitted = re.findall(r"ray job submit --address (.*)", commands)
    assert len(submitted) > 1
    for options in submitted:
        (metadata,) = re.findall(r"--metadata-json '(.*?)'", options)
        (name,) = re.findall(r"--set run\.name=(\S+)", options)
        assert json.loads(metadata) == {RUN: name}


def said(node: ast.AST) -> str:
    """What a string of the code says, with ``...`` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(said(value) for value in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "..."


def test_every_error_that_is_explained_is_one_that_can_come() -> None:
    table = CLUSTER.partition("## When it does not work")[2]
    rows = re.findall(r"^\| (`.*?) \| ", table, re.M)
    explained = [message for row in rows for message in re.findall("`(.*?)`", row)]
    # Of Ray and of Redis.
    foreign = ("Unauthorized: ", "Forbidden: ", "invalid username", "worker_ports is trying")
    ours = [message for message in explained if not message.startswith(foreign)]
    assert len(ours) > 10
    code = [
        path.read_text() for name in ("buffer", "deploy") for path in (ROOT / name).glob("*.py")
    ]
    strings = "\n".join(said(node) for text in code for node in ast.walk(ast.parse(text)))
    for message in ours:
        pattern = ".*".join(re.escape(part) for part in message.split("..."))
        assert re.search(pattern, strings), message


def test_every_field_of_a_line_of_json_is_explained() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    table = page.partition("The fields of `progress`")[2].partition("\n```")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    explained = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert explained == [field.name for field in fields(State)]
