"""What the pages of deployment and security say is there, is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.manifests import OVERLAYS, ROOT

SECURITY = (ROOT / "docs" / "security.md").read_text()
CLUSTER = (ROOT / "docs" / "cluster.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", SECURITY)))
PATH = r"`((?:deploy|buffer|distiller|synthesizer|docs|tests)/[\w./-]+)`"


@pytest.mark.parametrize("test", TESTS)
def test_every_promise_names_a_test_that_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("page", [SECURITY, CLUSTER], ids=["security", "cluster"])
def test_every_file_that_is_named_exists(page: str) -> None:
    named = set(re.findall(PATH, page))
    named |= set(re.findall(r"(?<= )(deploy/[\w./-]+)", page)) - {"deploy/kubernetes/base/secrets"}
    named -= {"deploy/docker/secrets"}
    assert named
    for name in named:
        assert (ROOT / name.rstrip(".")).exists(), name


def test_every_overlay_and_link_is_told_of_and_leads_somewhere() -> None:
    assert all(f"`{overlay}`" in CLUSTER for overlay in OVERLAYS)
    for page in (SECURITY, CLUSTER):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page):
            assert (Path(ROOT / "docs") / target).exists()
