from __future__ import annotations

import os

import pytest

from buffer.config import RunTable
from deploy.auth import lock_private_cluster

RUN = RunTable(seconds=1)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        # Set first, so that what the code sets is taken back at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_private_cluster_gets_a_token_of_its_own() -> None:
    lock_private_cluster(RUN)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    first = os.environ.pop("RAY_AUTH_TOKEN")
    del os.environ["RAY_AUTH_MODE"]
    lock_private_cluster(RUN)
    assert len(first) == 64
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_a_chosen_mode_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    lock_private_cluster(RUN)
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_an_existing_cluster_has_its_own_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6380")
    lock_private_cluster(RUN)
    assert "RAY_AUTH_MODE" not in os.environ
