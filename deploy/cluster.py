"""The Ray cluster of a run: joined, or started on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import torch

from buffer.addresses import cluster_address, redis_url
from buffer.config import RunTable
from buffer.errors import ConfigError
from deploy.config import PipelineConfig
from deploy.validate import machine_cpus


def namespace(run: str) -> str:
    """The Ray namespace of a run: where its named actors are."""
    return f"ssdkd-{run}"


@contextmanager
def cluster(config: PipelineConfig) -> Iterator[None]:
    """A Ray cluster: the one that is named, the job's own, or a private one on this machine.

    Raises:
        ConfigError: services on other nodes could not reach a buffer that is private to this one,
            or no node has what a service needs.
    """
    _connect(cluster_address(config.run), _options(config.run))
    try:
        _check_reachable(config)
        yield
    finally:
        ray.shutdown()


def cluster_cpus() -> tuple[float, float]:
    """CPUs of the cluster, and of its largest node."""
    cpus = [resources.get("CPU", 0.0) for resources in _nodes()]
    return sum(cpus), max(cpus, default=0.0)


def _options(run: RunTable) -> dict[str, Any]:
    return {
        "namespace": namespace(run.name),
        "log_to_driver": run.log_level in ("debug", "info"),
        "logging_level": getattr(logging, run.log_level.upper()),
    }


def _connect(address: str | None, common: Mapping[str, Any]) -> None:
    """Joins the cluster at an address, or starts a private one."""
    if address is None:
        ray.init(
            address="local",
            num_cpus=machine_cpus(),
            num_gpus=torch.cuda.device_count(),
            include_dashboard=False,
            **common,
        )
        return
    try:
        ray.init(address=address, **common)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"run.ray_address ({address}): no Ray cluster of this version answers there, nothing "
            f"was started: {error}"
        ) from error


def _check_reachable(config: PipelineConfig) -> None:
    nodes = len(_nodes())
    if redis_url(config.buffer) is None and nodes > 1:
        raise ConfigError(
            f"buffer.url (None): the cluster has {nodes} nodes, and a Redis server private to this "
            "one could not be reached from the others; set buffer.url or SSDKD_REDIS_URL"
        )


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
