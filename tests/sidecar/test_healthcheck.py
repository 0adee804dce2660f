# SPDX-License-Identifier: Apache-2.0
"""The health check of a real exporter, with and without TLS, passwords and rate limit."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import yaml

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.errors import EndpointError
from sqlalchemy_pool_exporter.sidecar.healthcheck import Endpoint, check, find_endpoint
from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig
from tests.support.logs import messages_of_this_test
from tests.support.ports import free_port
from tests.support.sidecar import Sidecar, run
from tests.support.wire import HANG, Numbers, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.newest  # a check asks with the standard library alone

HASH = "$2b$04$kCjsxeFfl8nLbVTYpdAVsOe1N7UfwNtDHVMVKRDtlE1gCWu/YPMCi"


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    """Write an untrusted server certificate and a CA for clients; return a `tls_server_config` with the certificate."""
    ca = trustme.CA()
    leaf = ca.issue_cert("elsewhere.example")
    leaf.private_key_pem.write_to_path(tmp_path / "server.key")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    return {"cert_file": "server.crt", "key_file": "server.key"}


@pytest.fixture
def silent() -> Iterator[int]:
    """Return the port of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def answer(path: Path) -> str:
    """Return the result of the check of an exporter that has a web configuration file."""
    async with serving(Numbers(), web_config=WebConfig(path)) as endpoint:
        asked = Endpoint(Address("127.0.0.1", endpoint.port), may_speak_tls=True)
        return await asyncio.to_thread(check, asked)


def guarded(path: Path, content: dict[str, Any]) -> str:
    """Write a web configuration file, and return the result of the check of an exporter that has it."""
    path.write_text(yaml.safe_dump(content))
    return asyncio.run(answer(path))


def test_plain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An exporter with a web configuration file but without TLS is healthy, and logs nothing about the check."""
    assert "200 OK" == guarded(tmp_path / "web.yaml", {})
    assert [] == messages_of_this_test(caplog.records)


@pytest.mark.parametrize("version", ["TLS12", "TLS13"])
def test_tls(tmp_path: Path, tls: dict[str, str], version: str, caplog: pytest.LogCaptureFixture) -> None:
    """An exporter with TLS is healthy even if its certificate is untrusted and for another host."""
    content = {"tls_server_config": {**tls, "min_version": version, "max_version": version}}
    assert "200 OK" == guarded(tmp_path / "web.yaml", content)
    assert [] == messages_of_this_test(caplog.records)


@pytest.mark.parametrize("version", ["TLS12", "TLS13"])
def test_client_certificate(tmp_path: Path, tls: dict[str, str], version: str) -> None:
    """An exporter that refuses the check because it requires a client certificate is healthy."""
    wanted = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.crt"}
    content = {"tls_server_config": {**tls, **wanted, "min_version": version, "max_version": version}}
    assert "closes the connection of a client without certificate" == guarded(tmp_path / "web.yaml", content)


def test_password(tmp_path: Path) -> None:
    """An exporter that answers 401 is healthy, so the check needs no password."""
    assert "401 Unauthorized" == guarded(tmp_path / "web.yaml", {"basic_auth_users": {"scraper": HASH}})


def test_rate_limit(tmp_path: Path) -> None:
    """An exporter that answers 429 is healthy."""
    assert "429 Too Many Requests" == guarded(tmp_path / "web.yaml", {"rate_limit": {"interval": "1h"}})


def test_nobody_listens(silent: int) -> None:
    """A closed port and a silent server are unhealthy, and the error states the reason."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen; no other process gets the port
        port = deaf.getsockname()[1]
        with pytest.raises(EndpointError, match=rf"no answer from '127.0.0.1:{port}': .*refused"):
            check(Endpoint(Address("127.0.0.1", port)))
    with pytest.raises(EndpointError, match="timed out"):
        check(Endpoint(Address("127.0.0.1", silent)), timeout=0.1)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "/-/healthy answers 503 No"),
        (b"SSH-2.0\r\n", "SSH-2.0"),
    ],
)
def test_something_else_answers(said: bytes, fault: str) -> None:
    """Another server on the port, and an exporter that answers with an error, are unhealthy."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(EndpointError, match=fault):
            check(Endpoint(Address("127.0.0.1", listening.getsockname()[1])), timeout=HANG)
        thread.join()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1"])  # noqa: S104 - addresses that a container may have
def test_command(host: str) -> None:
    """The command's exit status is 0 while the exporter runs, and 1 after the exporter has ended."""
    port = free_port()  # which nobody gets by chance once the exporter has ended
    with Sidecar("--listen-address", f"127.0.0.1:{port}") as sidecar:
        address = f"{host}:{port}"
        alive = run("healthcheck", SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS=address)
        assert (0, "200 OK\n", "") == (alive.returncode, alive.stdout, alive.stderr)
        sidecar.end()
    dead = run("healthcheck", "--listen-address", address)
    assert (1, "") == (dead.returncode, dead.stdout)
    assert dead.stderr.startswith(f"sqlalchemy-pool-exporter: no answer from '{address}': ")


# -- the endpoint to check


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Endpoint()),
        ("web: {listen_address: '127.0.0.1:1'}", Endpoint(Address("127.0.0.1", 1))),
        (
            "web: {listen_address: ':2', config_file: web.yaml}",
            Endpoint(Address("", 2), may_speak_tls=True),
        ),
        ("web: {listen_address: ':2', colour: red}\nlog: loud", Endpoint(Address("", 2))),
        ("web: {listen_address: ':port'}", Endpoint()),
        ("web: {listen_address: 10079}", Endpoint()),
        ("web: []", Endpoint()),
        ("- web", Endpoint()),
        ("web:\n  listen_address: ':3'\nlog: {level: [", Endpoint(Address("", 3))),
        (
            "log: *level\nweb:\n  listen_address: '127.0.0.1:4' # own\n  config_file: web.yaml\n",
            Endpoint(Address("127.0.0.1", 4), may_speak_tls=True),
        ),
        ("web: [", Endpoint()),
        (None, Endpoint()),
    ],
)
def test_endpoint_of_a_file(tmp_path: Path, text: str | None, expected: Endpoint) -> None:
    """The check uses the readable options of a file, even if the file is invalid, and defaults for the rest."""
    path = tmp_path / "exporter.yaml"
    if text is not None:
        path.write_text(text)
    assert expected == find_endpoint(path, {})


def test_endpoint_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line overrides the environment, which overrides the file; the environment can name the file."""
    path = tmp_path / "exporter.yaml"
    path.write_text("web: {listen_address: ':1', config_file: web.yaml}")
    assert Endpoint() == find_endpoint(None, {})
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_CONFIG", str(path))
    assert Endpoint(Address("", 1), may_speak_tls=True) == find_endpoint(None, {})
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS", ":2")
    assert Endpoint(Address("", 2), may_speak_tls=True) == find_endpoint(None, {})
    assert Endpoint(Address("", 3), may_speak_tls=True) == find_endpoint(path, {"web.listen_address": ":3"})


@pytest.mark.parametrize("text", ["web: {colour: red}", "web: [", "databases: [{name: a, dsn_env: NOWHERE}]"])
def test_an_edit_that_is_wrong_is_no_illness(tmp_path: Path, text: str) -> None:
    """An exporter stays healthy when its file becomes invalid after the start."""
    path = tmp_path / "exporter.yaml"
    path.write_text("")
    with Sidecar("--config", path) as sidecar:
        path.write_text(text)
        address = sidecar.url.rpartition("//")[2]
        alive = run("healthcheck", "--config", path, SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS=address)
        assert (0, "200 OK\n", "") == (alive.returncode, alive.stdout, alive.stderr)
