"""What cannot work on a cluster is refused: in one line that names the fix, and nothing is left."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.buffer.servers import TcpServer, free_port
from tests.integration.ray_nodes import RAY, RayNodes
from tests.integration.test_cluster import settings

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(180)]

SECONDS = 60.0
# Runs a command that finds a folder empty, without asking who runs the tests.
ELSEWHERE = ("unshare", "--map-root-user", "--mount", "sh", "-c")
HIDE = 'mount -t tmpfs none "$0" && exec "$@"'


class Place(NamedTuple):
    """A cluster of a head and a worker, and what is beside it."""

    nodes: RayNodes
    redis: TcpServer
    """Reached from both nodes."""
    teacher: Path
    """There on both."""
    hidden: Path
    """A folder that the worker finds empty: the teacher once more, and a socket of the server."""
    apart: bool
    """Whether the worker does so: not every machine lets us."""


@pytest.fixture(scope="module")
def place(digits_teacher: Path) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        folder = Path(name)
        hidden = folder / "hidden"
        hidden.mkdir()
        inside = (*ELSEWHERE, HIDE, str(hidden))
        apart = subprocess.run([*inside, "true"], capture_output=True).returncode == 0
        shutil.copy(digits_teacher, hidden)
        redis = TcpServer(folder / "redis", "--unixsocket", str(hidden / "redis.sock"))
        try:
            with RayNodes(folder, head_cpus=1) as nodes:
                nodes.add(cpus=1, inside=inside if apart else ())
                yield Place(nodes, redis, digits_teacher, hidden, apart)
        finally:
            redis.stop()


def run(
    place: Place, *words: str, code: int = 2, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """A command of a user with the cluster's token; it fails in time, and leaves nothing behind."""
    kept = place.nodes.environment | {"NO_COLOR": "1", **variables}
    environment = {k: v for k, v in kept.items() if v is not None}
    began = time.monotonic()
    done = subprocess.run(
        [RAY.with_name(words[0]), *words[1:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert time.monotonic() - began < SECONDS
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not left(place.nodes)
    return done


def submit(
    place: Place, name: str, *, address: str | None = None, out: Path | None = None, **more: Any
) -> list[str]:
    """The command that submits a run and follows it."""
    values = {"teacher.weights": str(place.teacher), "buffer.url": place.redis.url} | more
    return [
        *("ssdkd", "submit", "digits", "--follow", "--address", address or place.nodes.address),
        *("--out", str(out or place.hidden.parent / name), *settings(name, **values)),
    ]


def error(printed: str) -> str:
    """The one line that says what is wrong."""
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    return line


def left(nodes: RayNodes) -> list[Mapping[str, Any]]:
    """Actors and reserved places in the cluster."""
    found = []
    for kind, gone in (("actors", "DEAD"), ("placement_groups", "REMOVED")):
        request = urllib.request.Request(
            f"{nodes.address}/api/v0/{kind}", headers={"Authorization": f"Bearer {nodes.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            listed = json.loads(answer.read())["data"]["result"]["result"]
        found += [each for each in listed if each["state"] != gone]
    return found


def test_an_address_where_nobody_listens_is_refused(place: Place) -> None:
    done = run(place, *submit(place, "nobody", address=f"http://127.0.0.1:{free_port()}"))
    assert re.fullmatch(
        r"error: --address \(http.*\): no Ray job server answers there \(.*Connection refused.*\); "
        r"it is the dashboard's address, usually http://HEAD:8265",
        error(done.stderr),
    )


def test_an_address_of_something_else_is_refused(place: Place) -> None:
    done = run(place, *submit(place, "other", address=f"http://127.0.0.1:{place.redis.port}"))
    assert "no Ray job server answers there" in error(done.stderr)


@pytest.mark.parametrize(
    ("token", "message"), [(None, "none is given"), ("0" * 32, "the one given is not valid there")]
)
def test_without_the_clusters_token_nothing_is_submitted(
    place: Place, token: str | None, message: str
) -> None:
    done = run(place, *submit(place, "token"), RAY_AUTH_TOKEN=token)
    assert f"asks for a token, and {message}; set RAY_AUTH_TOKEN" in error(done.stderr)


def test_a_redis_that_nobody_reaches_is_named(place: Place) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    done = run(place, *submit(place, "closed", **{"buffer.url": url}))
    assert re.fullmatch(
        rf"error: buffer.url: Redis at {url}: .*Connection refused; every node has to reach it: "
        r"start Redis there, or correct buffer.url or SSDKD_REDIS_URL; nothing was started",
        error(done.stdout),
    )
    assert error(done.stderr) == (
        "error: the job ended as FAILED: Job entrypoint command failed with exit code 2"
    )


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        (
            "buffer.url",
            "redis.sock",
            r"buffer\.url: Redis at unix://.*/hidden/redis\.sock: .*; every node has to reach it: "
            r"start Redis there, or correct buffer\.url or SSDKD_REDIS_URL",
        ),
        (
            "teacher.weights",
            "teacher.safetensors",
            r"teacher\.weights \(.*/hidden/teacher\.safetensors\) cannot be read; put it into a "
            r"folder that all nodes share",
        ),
        (
            "out",
            "out",
            r"run\.out \(.*/hidden/out\) is not there, or read-only; name a folder that all nodes "
            r"share",
        ),
    ],
    ids=["redis", "teacher", "out"],
)
def test_what_one_node_has_and_another_does_not_is_named(
    place: Place, setting: str, name: str, message: str
) -> None:
    if not place.apart:
        pytest.skip("no mounts of one's own here")
    path = place.hidden / name
    value = path if setting == "out" else f"unix://{path}" if setting == "buffer.url" else str(path)
    done = run(place, *submit(place, "one-node", **{setting: value}))
    assert re.fullmatch(
        rf"error: node [\d.]+: {message}; nothing was started", error(done.stdout)
    ), done.stdout


@pytest.mark.parametrize("service", ["synthesizer", "distiller"])
def test_a_gpu_that_no_node_has_is_not_waited_for(place: Place, service: str) -> None:
    done = run(place, *submit(place, "gpu", **{f"{service}.gpus": 1, "run.nodes_seconds": 1}))
    assert re.fullmatch(
        rf"error: {service}\.cpus, {service}\.gpus: no node has [\d.]+ CPU and 1 GPU, none came "
        rf"within run\.nodes_seconds \(1\), the {service} would wait forever; add such a node, or "
        r"ask for less; the nodes have 1 CPU and 0 GPU, 1 CPU and 0 GPU",
        error(done.stdout),
    )


def test_a_teacher_that_the_head_does_not_have_is_named(place: Place) -> None:
    done = run(place, *submit(place, "here", **{"teacher.weights": "/nowhere/teacher.pt"}))
    assert error(done.stdout) == (
        "error: teacher: weights (/nowhere/teacher.pt): there is no such file; on a cluster every "
        "node needs it"
    )


def test_a_configuration_that_is_not_on_the_cluster_is_named(place: Place, tmp_path: Path) -> None:
    job = ("python", "-m", "deploy.pipeline", "--config", "nowhere.yaml")
    words = ("ray", "job", "submit", "--address", place.nodes.address)
    done = run(place, *words, "--working-dir", str(tmp_path), "--", *job, code=1)
    assert re.search(
        r"^error: config \(nowhere\.yaml\): no such file in .*/working_dir_files/.*, and no "
        r"shipped configuration of that name \(there are .*digits\); a job finds what is sent "
        r"along: --working-dir$",
        done.stdout,
        re.M,
    ), done.stdout


def join(place: Place, address: str) -> list[str]:
    """The command that runs a pipeline here, on an existing cluster."""
    sets = {"run.ray_address": address, "buffer.url": place.redis.url}
    values = settings("joins", **sets, **{"teacher.weights": str(place.teacher)})
    return ["ssdkd", "run", "digits", "--out", str(place.hidden.parent / "joins"), *values]


def test_a_cluster_that_is_not_there_is_not_waited_for(place: Place) -> None:
    done = run(place, *join(place, f"127.0.0.1:{free_port()}"))
    assert re.fullmatch(
        r"error: run\.ray_address \(.*\): no Ray cluster of this version answers there, or not to "
        r"our token: .*Connection refused; nothing was started; it is HEAD:6379, and the token is "
        r"in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token",
        error(done.stderr),
    )


@pytest.mark.parametrize("token", [None, "0" * 32])
def test_a_cluster_is_not_joined_without_its_token(place: Place, token: str | None) -> None:
    done = run(place, *join(place, place.nodes.gcs), RAY_AUTH_TOKEN=token)
    assert "or not to our token" in error(done.stderr)


def test_a_cluster_is_not_what_answers_otherwise(place: Place) -> None:
    done = run(place, *join(place, f"127.0.0.1:{place.redis.port}"))
    assert "no Ray cluster of this version answers there" in error(done.stderr)
