"""The documented users of a server: each can do its work, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from buffer.config import BufferTable
from buffer.connect import connect
from buffer.errors import BufferUnavailable
from buffer.interface import Replay
from buffer.lease import RunLease
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.sample import Sample
from buffer.version import NEVER, Version
from tests.buffer.cluster import Cluster
from tests.buffer.servers import TcpServer

ACL = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
TABLE = BufferTable(capacity=8, probe_capacity=4, min_size_to_sample=4)
Samples = Callable[..., list[Sample]]


@pytest.fixture(scope="module", params=["server", "cluster"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TcpServer | Cluster]:
    folder = tmp_path_factory.mktemp("guarded")
    users = [line for line in ACL.read_text().splitlines() if line.startswith("user")]
    server: TcpServer | Cluster
    if request.param == "server":
        (folder / "users.acl").write_text("\n".join(users) + "\n")
        server = TcpServer(folder, "--aclfile", str(folder / "users.acl"))
    else:
        server = Cluster(folder)
        for client in server.clients:
            for user in users:
                client.execute_command("ACL SETUSER", *user.split()[1:])
    yield server
    server.stop()


@pytest.fixture
def as_user(guarded: TcpServer | Cluster, run: str) -> Iterator[Callable[..., Replay]]:
    made = []

    def open_(user: str, *, fresh: bool = False) -> Replay:
        replay = connect(TABLE, url=url_of(guarded, user), run=run, seed=0, fresh=fresh)
        made.append(replay)
        return replay

    yield open_
    for replay in made:
        replay.close()


def url_of(server: TcpServer | Cluster, user: str) -> str:
    return server.url.replace("://", f"://{user}:CHANGE-{user}@")


def test_together_they_do_all_the_work_of_a_run(
    as_user: Callable[..., Replay],
    guarded: TcpServer | Cluster,
    make_samples: Samples,
    run: str,
    tmp_path: Path,
) -> None:
    with RunLease(url_of(guarded, "pipeline"), run):
        pipeline = as_user("pipeline", fresh=True)
        maker, trainer = as_user("synthesizer"), as_user("distiller")
        controller, exporter = as_user("controller"), as_user("exporter")
        assert maker.begin_attempt("synthesizer-0") == 1
        assert maker.request_permit(8, producer="a").granted
        maker.release_permit(producer="a")
        for sequence in range(2):
            made = make_samples(8) + make_samples(2, split="probe")
            maker.insert(made, producer="a", sequence=sequence)
        assert trainer.begin_attempt("distiller") == 1
        names = trainer.sample(8).identities
        trainer.update_priorities(names, np.arange(8.0), version=Version(1, 1))
        assert len(trainer.probe(2).images) == 2
        trainer.publish_student(b"weights", version=Version(1, 1))
        trainer.publish_progress(StudentProgress(version=Version(1, 1)))
        assert maker.fetch_student(newer_than=NEVER) == (Version(1, 1), b"weights")
        assert controller.begin_attempt("controller") == 1
        assert controller.progress() is not None
        assert controller.set_params(SamplingParams(version=Version(1, 1), uniform_share=0.5))
        for reader in (maker, trainer, controller, exporter):
            assert reader.info().size == 8
            assert reader.params().uniform_share == 0.5
            assert reader.servers()[0].memory_used_bytes > 0
        assert pipeline.snapshot(tmp_path / "buffer.zip") == 12
        assert pipeline.restore(tmp_path / "buffer.zip") == 12


REFUSED = [
    ("synthesizer", ["MGET", "{key}"]),
    ("distiller", ["MSET", "{key}", "value"]),
    ("controller", ["MSET", "{key}", "value"]),
    ("controller", ["DEL", "{key}"]),
    ("exporter", ["HSET", "{key}", "a", "b"]),
    *(
        (user, command)
        for user in ("synthesizer", "distiller", "controller", "exporter", "pipeline")
        for command in (
            ["GET", "somebody else's"],
            ["FLUSHALL"],
            ["CONFIG", "GET", "*"],
            ["KEYS", "*"],
            ["EVAL", "return 1", "0"],
            ["SHUTDOWN"],
            ["ACL", "LIST"],
        )
    ),
]


@pytest.mark.parametrize(("user", "command"), REFUSED)
def test_everything_else_is_refused(
    guarded: TcpServer | Cluster, run: str, user: str, command: list[str]
) -> None:
    key = f"{{ssdkd:{run}:0}}:x:0"
    with (
        redis.Redis.from_url(url_of(guarded, user)) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*[part.replace("{key}", key) for part in command])


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("nobody:wrong@", "invalid username-password pair"),
        ("synthesizer:wrong@", "invalid username-password pair"),
        ("", "client already authenticated"),
    ],
)
def test_a_wrong_password_is_said_without_showing_it(
    guarded: TcpServer | Cluster, user: str, message: str
) -> None:
    url = guarded.url.replace("://", f"://{user}")
    with pytest.raises(BufferUnavailable, match=message) as caught:
        connect(TABLE, url=url, run="x")
    assert "wrong" not in str(caught.value)
    assert re.search(r"redis://127\.0\.0\.1:\d+", str(caught.value))
