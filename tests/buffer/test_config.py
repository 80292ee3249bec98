"""Where a service finds what it joins."""

from __future__ import annotations

import pytest

from buffer.addresses import cluster_address, needed_cluster_address, needed_redis_url
from buffer.config import BufferTable, RunTable
from buffer.errors import ConfigError

RUN = RunTable(seconds=1)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "SSDKD_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def test_the_configured_cluster_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_address(RUN) is None
    with pytest.raises(ConfigError, match=r"run.ray_address \(None\): a distiller on its own"):
        needed_cluster_address(RUN, "distiller")
    monkeypatch.setenv("RAY_ADDRESS", "environment:1")
    assert needed_cluster_address(RUN, "distiller") == cluster_address(RUN) == "environment:1"
    configured = RunTable(seconds=1, ray_address="configured:1")
    assert needed_cluster_address(configured, "distiller") == "configured:1"


def test_an_empty_address_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("SSDKD_REDIS_URL", "")
    assert cluster_address(RUN) is None
    with pytest.raises(ConfigError, match=r"run.ray_address \(None\)"):
        needed_cluster_address(RUN, "distiller")
    with pytest.raises(ConfigError, match=r"buffer.url \(None\)"):
        needed_redis_url(BufferTable(), "distiller")


def test_the_environments_redis_wins_over_the_configured_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"buffer.url \(None\): a synthesizer on its own"):
        needed_redis_url(BufferTable(), "synthesizer")
    configured = BufferTable(url="redis://configured")
    assert needed_redis_url(configured, "synthesizer") == "redis://configured"
    monkeypatch.setenv("SSDKD_REDIS_URL", "redis://environment")
    assert needed_redis_url(configured, "synthesizer") == "redis://environment"
