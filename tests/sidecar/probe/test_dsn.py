# SPDX-License-Identifier: Apache-2.0
"""A malformed DSN is refused before its password can be taken for a host; TLS modes have libpq's meanings."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.probe.dsn import Target, Tls
from tests.support.probed_server import SECRET, ProbedServer
from tests.support.running_probe import (
    running,
    scenario,
    target,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UGLY = (
    "postgresql://watcher:pa/{}@127.0.0.1:1/postgres",
    "postgresql://watcher:p@{}:word@127.0.0.1:1/postgres",
    "postgresql://watcher:12#{}@127.0.0.1:1/postgres",
    "postgresql://watcher:12/{}@127.0.0.1:1/postgres",
    "postgresql://watcher:a:{}@127.0.0.1:{}/postgres",
    "postgresql://[{}",
    "postgresql://watcher:\u2100{}@127.0.0.1/postgres",
    "mysql://watcher:{}@127.0.0.1/orders",
    "{}",
    "host=127.0.0.1 password={}",
    "",
)


@pytest.mark.parametrize("template", UGLY)
def test_an_unusable_dsn_is_refused_without_showing_it(template: str) -> None:
    """A DSN whose password is not percent-encoded is refused, and no part of it is in the error."""
    with pytest.raises(ConfigError, match="database 'orders': dsn: ") as caught:
        Target("orders", template.replace("{}", SECRET))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://127.0.0.1/orders",
        "postgres://watcher:a%40b%2F@db.example:5432/orders?sslmode=verify-full",
        "postgresql://watcher@[::1]:5432,db.example/orders",
        "postgresql:///orders?host=/run/postgresql",
        "postgresql://watcher@%2Frun%2Fpostgresql/orders",
    ],
)
def test_a_usable_dsn_is_taken(dsn: str) -> None:
    """Hosts, ports, lists of hosts, sockets and percent-encoded passwords are accepted."""
    assert Target("orders", dsn).dsn == dsn


@scenario
async def test_a_password_that_changes_is_read_again(
    server: ProbedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Each connect calls a DSN that is a function; a malformed result is a failure with reason configuration."""
    dsns = iter([server.dsn("watcher", SECRET.upper()), f"postgresql://watcher:x/{SECRET}@y/z", server.dsn()])
    async with running(dataclasses.replace(target(server.dsn()), dsn=lambda: next(dsns))) as runner:
        await runner.probe_again()
        assert {"authentication": 1, "configuration": 1} == runner.probe.status.failures
        await runner.probe_again()
        assert runner.server.max_connections == 20
    assert "percent-encoded" in caplog.text
    assert SECRET not in caplog.text


@contextlib.asynccontextmanager
async def tls_proxy(server: ProbedServer, certificates: Path) -> AsyncIterator[int]:
    """Terminate TLS in front of a server, negotiated as by PostgreSQL; the wheel's server is built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "crt", certificates / "key")
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            assert struct.unpack("!ll", await reader.readexactly(8)) == (8, 80877103)
            writer.write(b"S")
            await writer.start_tls(context)
            upstream, downstream = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.gather(pipe(reader, downstream), pipe(upstream, writer))
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        if tasks:
            await asyncio.wait(tasks)


@pytest.mark.requires("openssl")
@pytest.mark.parametrize(
    ("mode", "ca", "host", "expected"),
    [
        ("require", False, "127.0.0.1", None),
        ("require", True, "127.0.0.1", None),
        ("verify-ca", True, "127.0.0.1", None),
        ("verify-full", True, "localhost", None),
        ("verify-full", True, "127.0.0.1", "IP address mismatch"),
        ("verify-full", False, "localhost", "unable to get local issuer certificate"),
        ("disable", False, "127.0.0.1", ""),
    ],
)
@scenario
async def test_tls_modes_mean_what_libpq_means(  # noqa: PLR0917
    server: ProbedServer,
    certificates: Path,
    caplog: pytest.LogCaptureFixture,
    mode: Any,
    ca: bool,
    host: str,
    expected: str | None,
) -> None:
    """Each mode accepts and refuses the same servers as in libpq, and a refusal names the cause."""
    tls = Tls(mode, ca_file=str(certificates / "ca.crt") if ca else None)
    async with tls_proxy(server, certificates) as port:
        dsn = f"postgresql://watcher:{SECRET}@{host}:{port}/postgres"
        async with running(target(dsn, tls=tls)) as runner:
            if expected is None:
                assert runner.server.max_connections == 20
            elif expected:
                assert {"tls": 1} == runner.probe.status.failures
                assert expected in caplog.text
            else:
                assert {"disconnected": 1} == runner.probe.status.failures


@scenario
async def test_tls_is_not_given_up_when_the_server_has_none(server: ProbedServer) -> None:
    """A mode that requires TLS never falls back to plain text."""
    if await _has_tls(server):
        pytest.skip("this server offers TLS")
    async with running(target(server.dsn("watcher"), tls=Tls("require"))) as runner:
        assert {"tls": 1} == runner.probe.status.failures


async def _has_tls(server: ProbedServer) -> bool:
    connection = await server.connect()
    offered = await connection.fetchval("SHOW ssl") == "on"
    await connection.close()
    return bool(offered)


@pytest.mark.requires("openssl")
def test_tls_files_are_checked(certificates: Path, tmp_path: Path) -> None:
    """The error names a file that is missing, is no certificate or is encrypted; contradictions are errors too."""
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("not a certificate")
    crt, locked = str(certificates / "crt"), str(certificates / "locked.key")
    for tls, message in (
        (Tls("verify-full", ca_file="/nowhere"), r"cannot read '/nowhere' .*No such file"),
        (Tls("require", ca_file=str(nonsense)), "nonsense.*not usable"),
        (Tls("require", cert_file=crt, key_file=locked), "crt.*not usable"),
        (Tls("require", cert_file="/nowhere"), "cannot read '/nowhere'"),
        (Tls("require", key_file=locked), "a key file without a certificate file"),
        (Tls("verify-ca"), "'verify-ca' needs a CA file"),
    ):
        with pytest.raises(ConfigError, match=message):
            tls.context()
    assert Tls("disable").context() is False
    context = Tls("require").context()
    assert context
    assert context.verify_mode == ssl.CERT_NONE


@pytest.mark.requires("openssl")
@scenario
async def test_tls_files_are_read_at_each_connect(
    server: ProbedServer, certificates: Path, tmp_path: Path
) -> None:
    """The next connect of the same probe uses a CA file that was replaced."""
    ca = tmp_path / "ca.crt"
    async with tls_proxy(server, certificates) as port:
        dsn = f"postgresql://watcher:{SECRET}@localhost:{port}/postgres"
        async with running(target(dsn, tls=Tls("verify-full", ca_file=str(ca)))) as runner:
            assert {"configuration": 1} == runner.probe.status.failures
            shutil.copy(certificates / "ca.crt", ca)
            await runner.probe_again()
            assert runner.server.max_connections == 20
