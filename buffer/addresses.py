"""Where Redis and Ray are: the configuration and the environment together."""

from __future__ import annotations

import os

from buffer.config import BufferTable, RunTable
from buffer.errors import ConfigError


def redis_url(table: BufferTable) -> str | None:
    """The URL to use: ``SSDKD_REDIS_URL`` in the environment wins, so that secrets stay there."""
    return os.environ.get("SSDKD_REDIS_URL") or table.url


def cluster_address(run: RunTable) -> str | None:
    """The existing Ray cluster to use; ``None``: a private one on this machine."""
    return run.ray_address or os.environ.get("RAY_ADDRESS") or None


def needed_redis_url(table: BufferTable, service: str) -> str:
    """The URL of the Redis server that a service on its own joins.

    Raises:
        ConfigError: none is configured.
    """
    url = redis_url(table)
    if url is None:
        raise ConfigError(
            f"buffer.url (None): a {service} on its own needs a Redis server that runs already; "
            "set buffer.url or SSDKD_REDIS_URL, or use `ssdkd run`, which starts one"
        )
    return url


def needed_cluster_address(run: RunTable, service: str) -> str:
    """The address of the Ray cluster that a service on its own joins.

    Why none is looked for: the first one found could be the private cluster of another run.

    Raises:
        ConfigError: none is configured.
    """
    address = cluster_address(run)
    if address is None:
        raise ConfigError(
            f"run.ray_address (None): a {service} on its own needs a Ray cluster that runs "
            "already; set run.ray_address or RAY_ADDRESS, or use `ssdkd run`, which starts one"
        )
    return address
