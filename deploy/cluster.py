"""The Ray cluster of a run: joined, or started on this machine."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from buffer.addresses import cluster_address, redis_url
from buffer.config import RunTable, named_files
from buffer.connection import Connection
from buffer.errors import BufferUnavailable, ConfigError, Interrupted, SsdkdError
from deploy.config import PipelineConfig
from deploy.control import namespace
from deploy.fitting import Amounts, Several, hosts, room
from deploy.folder import MARK
from deploy.logs import forwarded, ray_level
from deploy.validate import machine_cpus

CHECK_SECONDS = 30.0
"""A node may take so long to start a process that says whether it can work."""
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 0.5
_PLACE = re.compile(r"(?:ray://)?\[?([\w.:-]+?)\]?:(\d+)")


@contextmanager
def cluster(config: PipelineConfig, environment: Mapping[str, str]) -> Iterator[None]:
    """A Ray cluster: the one that is named, the job's own, or a private one on this machine.

    Args:
        config: the run.
        environment: variables of the run's processes there.

    Raises:
        ConfigError: services on other nodes could not reach a buffer that is private to this one,
            or no node has what a service needs.
    """
    with forwarded():
        _connect(cluster_address(config.run), _options(config.run, environment))
        try:
            _check_reachable(config)
            yield
        finally:
            ray.shutdown()


def cluster_cpus() -> list[float]:
    """CPUs of each node."""
    return [node["Resources"].get("CPU", 0.0) for node in _nodes()]


def node_addresses() -> dict[str, str]:
    """The address of each node that is alive, by Ray's name for it."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in _nodes()}


def check_nodes(config: PipelineConfig, url: str, out: Path) -> None:
    """Whether every node can work for a run; asks all of them at once.

    It has our packages, reaches the buffer, and has the files of the run: the folder of its
    outputs, weights and test data.

    Raises:
        ConfigError: naming a node that does not, and why.
    """
    asked = {
        _obstacle.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(url, str(out), named_files(config)): address
        for node, address in node_addresses().items()
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
    for answer in answered:
        try:
            problem = ray.get(answer)
        except ray.exceptions.RayError as error:
            problem = f"a process cannot work there: {_last_line(error)}"
        if problem is not None:
            raise ConfigError(f"node {asked[answer]}: {problem}; nothing was started")
    if silent:
        raise ConfigError(
            f"node {asked[silent[0]]}: no process there could say within {CHECK_SECONDS:g} s "
            "whether it reaches Redis; nothing was started; look at the node, or take it away"
        )


def unreachable(url: str) -> str | None:
    """Why the buffer cannot be used from here, and what to do; ``None`` if it can be."""
    problems = []
    for part in url.split(","):
        try:
            Connection(part).close()
        except BufferUnavailable as error:
            problems.append(
                f"buffer.url: {str(error).rstrip('.')}; every node has to reach it: start Redis "
                "there, or correct buffer.url or SSDKD_REDIS_URL"
            )
        except SsdkdError as error:
            problems.append(str(error))
        else:
            return None
    return problems[0]


def await_nodes(
    config: PipelineConfig, actor: Amounts, worker: Amounts, *, interrupted: Callable[[], bool]
) -> None:
    """Waits for room for the training and one synthesizer, and asks an autoscaler for it.

    Further synthesizers may wait for theirs while the run goes on. What other runs take is not
    looked at: they end.

    Args:
        config: says how many workers there are at least, and how long to wait.
        actor: what one synthesizer needs.
        worker: what one worker needs.
        interrupted: whether nobody wants the run any more.

    Raises:
        ConfigError: there is no such room after ``run.nodes_seconds``.
        Interrupted: nobody wants the run any more.
    """
    workers = Several(worker, config.distiller.workers)
    deadline = time.monotonic() + config.run.nodes_seconds
    request_resources(bundles=[dict(actor), *[dict(worker)] * workers.count])
    try:
        while missing := _missing(actor, workers):
            if interrupted():
                raise Interrupted("the run was interrupted before nodes came; nothing was started")
            if time.monotonic() > deadline:
                raise ConfigError(_nobody_has(*missing, config.run))
            time.sleep(LOOK_SECONDS)
    finally:
        # What waits for its place is what an autoscaler goes by from here on, or nothing is.
        request_resources(bundles=[])


@ray.remote(num_cpus=0, max_retries=0)
def _obstacle(url: str, out: str, files: Mapping[str, str]) -> str | None:
    """Why this node is of no use to a run; ``None`` if it is of use."""
    if not (Path(out, MARK).is_file() and os.access(out, os.W_OK)):
        return f"run.out ({out}) is not there, or read-only; name a folder that all nodes share"
    for setting, file in files.items():
        if not os.access(file, os.R_OK):
            return f"{setting} ({file}) cannot be read; put it into a folder that all nodes share"
    return unreachable(url)


def _missing(actor: Amounts, workers: Several) -> tuple[str, str, str] | None:
    """Who has no room, by which settings, for what; ``None`` if all have that are needed."""
    nodes = {node["NodeID"]: node["Resources"] for node in _nodes()}
    for service, need in {"synthesizer": actor, "distiller": workers.need}.items():
        if not any(room(there, need) for there in nodes.values()):
            return service, f"{service}.cpus, {service}.gpus", _amounts(need)
    if hosts(actor, nodes, taken=(), beside=workers):
        return None
    return (
        "run",
        f"distiller.workers ({workers.count})",
        f"room for the last of a synthesizer ({_amounts(actor)}) and {workers.count} x distiller "
        f"({_amounts(workers.need)})",
    )


def _nobody_has(who: str, settings: str, what: str, run: RunTable) -> str:
    return (
        f"{settings}: no node has {what}, none came within run.nodes_seconds "
        f"({run.nodes_seconds:g}), the {who} would wait forever; add such a node, or ask for less; "
        f"the nodes have {_described()}"
    )


def _amounts(need: Amounts) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in need.items())


def _described() -> str:
    found = [
        {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")} for node in _nodes()
    ]
    return ", ".join(f"{each['CPU']:g} CPU and {each['GPU']:g} GPU" for each in found)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[-1]


def _options(run: RunTable, environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        "runtime_env": {"env_vars": dict(environment)},
        "namespace": namespace(run.name),
        "log_to_driver": True,
        "logging_level": ray_level(run.log_level),
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
        if place := _PLACE.fullmatch(address):
            socket.create_connection((place[1], int(place[2])), ANSWER_SECONDS).close()
        # One attempt, which takes up to 40 s: by itself Ray makes 20.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
        ray.init(address=address, **common)
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"run.ray_address ({address}): no Ray cluster of this version answers there, or not to "
            f"our token: {reason}; nothing was started; it is HEAD:6379, and the token is in "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
        ) from error


def _check_reachable(config: PipelineConfig) -> None:
    nodes = len(_nodes())
    if redis_url(config.buffer) is None and nodes > 1:
        raise ConfigError(
            f"buffer.url (None): the cluster has {nodes} nodes, and a Redis server private to this "
            "one could not be reached from the others; set buffer.url or SSDKD_REDIS_URL"
        )


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
