"""``rediss://``: encrypted, and only with a server whose certificate is signed by the right CA."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buffer.config import BufferTable
from buffer.connect import connect
from buffer.errors import BufferUnavailable
from buffer.sample import Sample
from buffer.server import find_binary
from tests.buffer.servers import TcpServer

TABLE = BufferTable(capacity=8, min_size_to_sample=4)


def openssl(folder: Path, *arguments: str) -> None:
    executable = shutil.which("openssl")
    assert executable is not None, "tests of TLS make their certificates with openssl"
    subprocess.run([executable, *arguments], cwd=folder, check=True, capture_output=True)


def certificates(folder: Path) -> None:
    """A CA, a certificate of 127.0.0.1 signed by it, and another CA that signed nothing."""
    folder.mkdir()
    key = ("-newkey", "rsa:2048", "-nodes")
    for name in ("ca", "other"):
        openssl(
            folder,
            *("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt"),
            *("-days", "2", "-subj", f"/CN={name}"),
        )
    openssl(folder, "req", *key, "-keyout", "redis.key", "-out", "redis.csr", "-subj", "/CN=redis")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    openssl(
        folder,
        *("x509", "-req", "-in", "redis.csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-out", "redis.crt", "-days", "2", "-extfile", "names"),
    )


def encrypting(folder: Path, *options: str) -> TcpServer:
    """A server that wants TLS, with certificates of its own; ``ca.crt`` is what clients need."""
    if b"SSL_CTX_new" not in Path(find_binary()).read_bytes():
        pytest.skip("this server is built without TLS")
    certificates(folder)
    files = {"cert": "redis.crt", "key": "redis.key", "ca-cert": "ca.crt"}
    named = (
        part for name, file in files.items() for part in (f"--tls-{name}-file", str(folder / file))
    )
    return TcpServer(folder, *named, "--tls-auth-clients", "no", *options, tls=True)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TcpServer, Path]]:
    folder = tmp_path_factory.mktemp("tls") / "certificates"
    server = encrypting(folder)
    yield server, folder
    server.stop()


def test_with_the_right_ca_everything_works(
    encrypted: tuple[TcpServer, Path], make_samples: Callable[..., list[Sample]], run: str
) -> None:
    server, folder = encrypted
    replay = connect(TABLE, url=f"{server.url}?ssl_ca_certs={folder / 'ca.crt'}", run=run)
    replay.insert(make_samples(8), producer="a", sequence=1)
    assert len(replay.sample(4).images) == 4
    replay.close()


@pytest.mark.parametrize("ca", ["other.crt", None])
def test_a_server_of_another_ca_is_refused(
    encrypted: tuple[TcpServer, Path], ca: str | None, run: str
) -> None:
    server, folder = encrypted
    options = "" if ca is None else f"?ssl_ca_certs={folder / ca}"
    with pytest.raises(BufferUnavailable, match="certificate verify failed"):
        connect(TABLE, url=server.url + options, run=run)


def test_a_certificate_of_another_host_is_refused(
    encrypted: tuple[TcpServer, Path], run: str
) -> None:
    server, folder = encrypted
    url = f"{server.url.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={folder / 'ca.crt'}"
    with pytest.raises(BufferUnavailable, match="Hostname mismatch"):
        connect(TABLE, url=url, run=run)


def test_a_client_in_clear_is_refused(encrypted: tuple[TcpServer, Path], run: str) -> None:
    server, _ = encrypted
    with pytest.raises(BufferUnavailable):
        connect(TABLE, url=server.url.replace("rediss", "redis"), run=run)
