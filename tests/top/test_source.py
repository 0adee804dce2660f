# SPDX-License-Identifier: Apache-2.0
"""Where the terminal's board comes from: a directory, or an endpoint with whatever authentication it has."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import yaml

from sqlalchemy_pool_exporter.advise.source import Directory
from sqlalchemy_pool_exporter.board.query import Query
from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.top import client
from sqlalchemy_pool_exporter.top.client import Credentials
from sqlalchemy_pool_exporter.top.source import DirectorySource, EndpointSource
from sqlalchemy_pool_exporter.top.where import is_url
from tests.support.sidecar import Sidecar
from tests.support.web_files import PASSWORD, Files, hashed, users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.segments import Process

pytestmark = pytest.mark.newest  # it uses the standard library alone

TOKEN = "t0ken"  # noqa: S105 - of the tests


def names(source: DirectorySource | EndpointSource, **query: Any) -> list[str]:
    return sorted(pool["name"] for pool in source.read(Query(**query))["pools"])


class Fake:
    """An endpoint that gives one answer, and remembers what it was asked."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.requests.append((self.path, dict(self.headers)))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def answering(status: int = 200, body: bytes = b'{"version": 1}', **headers: str) -> Iterator[Fake]:
    fake = Fake(status, body, headers)
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        thread.join()
        fake.server.server_close()


def test_directory(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A directory is read without any exporter."""
    process("orders")
    process("billing")
    source = DirectorySource(tmp_path)
    assert ["billing", "orders"] == names(source)
    assert ["orders"] == names(source, names=frozenset(("orders",)))
    assert str(tmp_path) == source.name
    with pytest.raises(BoardError, match=r"'.*nothing' is no directory"):
        DirectorySource(tmp_path / "nothing")


@pytest.mark.parametrize("path", ["", "/", "/metrics", "/api/v1/pools"])
def test_sidecar(tmp_path: Path, process: Callable[..., Process], path: str) -> None:
    """The URL may be that of the page, of the metrics or of the JSON."""
    process("orders")
    process("billing")
    with Sidecar("--directory", tmp_path) as sidecar:
        source = EndpointSource(sidecar.url + path)
        assert ["billing", "orders"] == names(source)
        assert ["billing"] == names(source, text="BILL")
        assert ["orders"] == names(EndpointSource(sidecar.url.removeprefix("http://")), names={"orders"})


def test_password_and_tls(tmp_path: Path, process: Callable[..., Process]) -> None:
    """With a password, and a certificate of an authority that is named, a protected sidecar answers."""
    process("orders")
    ca = trustme.CA()
    files = Files(tmp_path, ca)
    files.issue()
    authority = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(authority)
    web = tmp_path / "web.yaml"
    tls = {"tls_server_config": {"cert_file": "server.crt", "key_file": "server.key"}}
    web.write_text(yaml.safe_dump({**users(ada=hashed()), **tls}), "utf-8")
    with Sidecar("--directory", tmp_path, "--web-config-file", web) as sidecar:
        url = f"https://localhost:{sidecar.url.rpartition(':')[2]}"
        assert ["orders"] == names(EndpointSource(url, Credentials("ada", PASSWORD, ca_file=authority)))
        with pytest.raises(BoardError, match="answers 401 Unauthorized: give a user"):
            EndpointSource(url, Credentials("ada", "wrong", ca_file=authority)).read(Query())
        with pytest.raises(BoardError, match="certificate verify failed"):
            EndpointSource(url, Credentials("ada", PASSWORD)).read(Query())


def test_what_is_asked() -> None:
    """A request has the query, and the token, or the name and password of the URL, which no message shows."""
    with answering() as fake:
        EndpointSource(f"{fake.url}/prefix/", Credentials(user="ada", token=TOKEN)).read(
            Query("a&b", frozenset(("x", "y z")), 1, 2, 3)
        )
        source = EndpointSource(fake.url.replace("//", "//ada:p%40ss@"), Credentials(token=TOKEN))
        source.read(Query())
    (path, headers), (_, others) = fake.requests
    assert "/prefix/api/v1/pools?q=a%26b&pool=x&pool=y+z&pools=1&workers=2&held=3" == path
    assert f"Bearer {TOKEN}" == headers["Authorization"]
    assert "Basic YWRhOnBAc3M=" == others["Authorization"]
    assert fake.url == source.name
    with pytest.raises(BoardError, match="no answer from http://127") as caught:
        source.read(Query())
    assert "p@ss" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"", "answers 404 Not Found: is it an exporter of this version"),
        (503, b"", "answers 503 Service Unavailable"),
        (200, b"<html>", "something else than a board"),
        (200, b"[]", "something else than a board"),
        (200, b'{"version": "1"}', "something else than a board"),
        (200, b"[" * 100_000, "something else than a board"),
        (200, b'{"version": 2}', "version 2 of the board, and this program reads 1"),
    ],
)
def test_no_board(status: int, body: bytes, error: str) -> None:
    """An answer that is no board of this version is an error that says what it is."""
    with answering(status, body) as fake, pytest.raises(BoardError, match=error):
        EndpointSource(fake.url).read(Query())


def test_no_redirect() -> None:
    """A password is not sent to where an endpoint redirects to."""
    with answering() as other, answering(302, Location=other.url) as fake:
        with pytest.raises(BoardError, match="answers 302"):
            EndpointSource(fake.url, Credentials("ada", "secret")).read(Query())
        assert [] == other.requests


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://[::1",
        "file:///etc/passwd",
        f"http://{'a' * 64}.example",
    ],
)
def test_no_url(url: str) -> None:
    """What is no URL of HTTP is refused at once."""
    with pytest.raises(BoardError, match="the URL is none of HTTP"):
        EndpointSource(url)


def test_any_path() -> None:
    """A path may have any characters; those that HTTP does not have are escaped."""
    with answering(404) as fake, pytest.raises(BoardError, match="answers 404"):
        EndpointSource(f"{fake.url}/caf\xe9 1/%41/").read(Query())
    assert fake.requests[0][0].startswith("/caf%C3%A9%201/%41/api/v1/pools?")


@pytest.mark.parametrize("token", ["t0ken\nmore", "t0ken\u20ac"])
def test_a_token_that_is_none(token: str) -> None:
    """A token that no header can have is refused, and no message has it."""
    with pytest.raises(BoardError, match="the token has a line break or another character") as caught:
        EndpointSource("http://localhost", Credentials(token=token))
    assert "t0ken" not in str(caught.value)


def test_an_answer_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of an answer is not taken for all of it."""
    monkeypatch.setattr(client, "_MOST_BYTES", 1000)
    with answering(body=b" " * 1001) as fake, pytest.raises(BoardError, match="has more than 0 MiB"):
        EndpointSource(fake.url).read(Query())


@pytest.mark.parametrize("kind", [DirectorySource, Directory])
def test_a_directory_that_cannot_be_looked_at(kind: Callable[[Path], object], tmp_path: Path) -> None:
    """A name that the system refuses is an error that says why; one that can be no path's is no directory."""
    with pytest.raises(BoardError, match=r"cannot read 'a+': File name too long"):
        kind(Path("a" * 300))
    (tmp_path / "file").touch()
    for name in ("file", "file/below", "nothing", "nul\0"):
        with pytest.raises(BoardError, match=" is no directory"):
            kind(tmp_path / name)


def test_what_is_a_url(tmp_path: Path) -> None:
    """A host and a port are a URL, unless there is a directory of that name, or there may be one."""
    (tmp_path / "localhost:80").mkdir()
    assert not is_url(str(tmp_path / "localhost:80"))
    assert not is_url(str(tmp_path))
    for url in ("localhost:80", "http://localhost", f"localhost:80/{'a' * 5000}", "localhost:80/\0"):
        assert is_url(url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_directory_of_another_user(tmp_path: Path) -> None:
    """What is below a directory of another user is said to be refused."""
    refused = tmp_path / "closed" / "a:b"
    refused.mkdir(parents=True)
    refused.parent.chmod(0)
    try:
        assert not is_url(str(refused))
        with pytest.raises(BoardError, match="Permission denied"):
            DirectorySource(refused)
    finally:
        refused.parent.chmod(0o700)


def test_a_wrong_certificate(tmp_path: Path) -> None:
    """A file of the credentials that cannot be used is named."""
    file = tmp_path / "ca.pem"
    file.write_text(json.dumps("no certificate"))
    with pytest.raises(BoardError, match=r"cannot use .*ca.pem"):
        EndpointSource("https://localhost", Credentials(ca_file=file))
