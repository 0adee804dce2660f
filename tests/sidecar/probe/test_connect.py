# SPDX-License-Identifier: Apache-2.0
"""What asyncpg connects with beside the DSN: ``PG*`` variables, the process's user, TLS files and modes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from asyncpg import ClientConfigurationError

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import DatabaseTLS
from sqlalchemy_pool_exporter.sidecar.probe.dsn import DSN, check_connect
from tests.support import asyncpg_parser
from tests.support.probed_server import SECRET, ProbedServer
from tests.support.running_probe import running, scenario, target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("mode", [None, "require", "disable"])
@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u@h/d",
        "postgresql://u@h,i/d",
        "postgresql://u@h/d?sslmode=disable",
        "postgresql://u@h/d?sslmode=require&sslnegotiation=postgres&target_session_attrs=any&gsslib=gssapi",
        "postgresql:///d?user=u",
        "postgresql:///d?user=u&host=h&port=3",
    ],
)
@pytest.mark.parametrize(
    "variables",
    [
        *(f"PGPORT={port}" for port in ("", "5432", "x", "1,2", ",")),
        *(f"PGHOST={host}" for host in ("", "h", "h,i", "h:1", ",", "/run", "::1", "[::1]:4")),
        *("PGHOST=a,b PGPORT=1,2", "PGHOST=a PGPORT=1,2", "PGHOST=a:1 PGPORT=x"),
        *(f"PGSSLMODE={mode}" for mode in ("", "require", "odd")),
        *(f"PGSSLNEGOTIATION={how}" for how in ("", "postgres", "odd")),
        *("PGTARGETSESSIONATTRS=", "PGTARGETSESSIONATTRS=odd", "PGGSSLIB=", "PGGSSLIB=odd"),
        *("PGSSLMINPROTOCOLVERSION=", "PGSSLMINPROTOCOLVERSION=odd", "PGSSLMAXPROTOCOLVERSION=TLSv1.2"),
    ],
)
def test_variables_are_judged_as_asyncpg_does(
    monkeypatch: pytest.MonkeyPatch, variables: str, text: str, mode: str | None
) -> None:
    """A `PG*` variable with which asyncpg refuses every connect is a fault, and one that it does not read is none."""
    for variable in variables.split():
        name, _, value = variable.partition("=")
        monkeypatch.setenv(name, value)
    context = {None: None, "disable": False, "require": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}[mode]
    is_usable = False
    with contextlib.suppress(ClientConfigurationError, ValueError, IndexError):
        asyncpg_parser.read(text, context)
        is_usable = True
    if is_usable:
        check_connect(DSN(text), mode)
    else:
        with pytest.raises(ValueError, match=r"^environment variable PG|^expected one of"):
            check_connect(DSN(text), mode)


@pytest.mark.usefixtures("no_variables")
def test_a_process_without_a_user_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a user in the DSN asyncpg takes the user of the process, which has no name in many containers."""
    dsn = DSN("postgresql://h/orders")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", dict[int, str]().__getitem__)
    with pytest.raises(ValueError, match="names no user"):
        check_connect(dsn, None)
    check_connect(DSN("postgresql://u@h/orders"), None)
    monkeypatch.setenv("PGUSER", "u")
    check_connect(dsn, None)


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    "versions",
    ["ssl_max_protocol_version=TLSv1", "ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2"],
)
def test_tls_versions_that_exclude_each_other(versions: str) -> None:
    """A greatest TLS version below the least one is a fault, unless there is no TLS."""
    with pytest.raises(ValueError, match="ssl_max_protocol_version is below the least version"):
        check_connect(DSN(f"postgresql://u@h/orders?{versions}"), None)
    check_connect(DSN(f"postgresql://u@h/orders?sslmode=disable&{versions}"), None)


@contextlib.asynccontextmanager
async def tls_proxy(server: ProbedServer, certificates: Path) -> AsyncIterator[int]:
    """Terminate TLS in front of a server with PostgreSQL's negotiation; the wheel's server is built without TLS."""
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
    tls = DatabaseTLS(mode=mode, ca_file=certificates / "ca.crt" if ca else None)
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
    async with running(target(server.dsn("watcher"), tls=DatabaseTLS(mode="require"))) as runner:
        assert {"tls": 1} == runner.probe.status.failures


async def _has_tls(server: ProbedServer) -> bool:
    connection = await server.connect()
    offered = await connection.fetchval("SHOW ssl") == "on"
    await connection.close()
    return bool(offered)


@pytest.mark.requires("openssl")
def test_tls_files_are_checked(certificates: Path, tmp_path: Path) -> None:
    """The error names the option and the file that is missing, is no certificate or is encrypted."""
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("not a certificate")
    crt, key, locked = (certificates / name for name in ("crt", "key", "locked.key"))
    nowhere = Path("/nowhere")
    for tls, message in (
        (
            DatabaseTLS(mode="verify-full", ca_file=nowhere),
            "tls.ca_file: cannot read '/nowhere'.*No such file",
        ),
        (DatabaseTLS(mode="require", ca_file=nonsense), "tls.ca_file: .*nonsense.*not usable"),
        (
            DatabaseTLS(mode="require", cert_file=crt, key_file=locked),
            "tls.cert_file: .*crt.*not usable: .*a key with another password",
        ),
        (
            DatabaseTLS(mode="require", cert_file=nowhere, key_file=key),
            "tls.cert_file: cannot read '/nowhere'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            tls.context()
    for options, message in (
        ({"mode": "require", "key_file": locked}, "cert_file and key_file belong together"),
        ({"mode": "verify-ca"}, "verify-ca needs a ca_file"),
    ):
        with pytest.raises(ValueError, match=message):
            DatabaseTLS.model_validate(options)
    assert DatabaseTLS(mode="disable").context() is False
    assert DatabaseTLS().context() is None
    context = DatabaseTLS(mode="require").context()
    assert context
    assert context.verify_mode == ssl.CERT_NONE
    context = DatabaseTLS(mode="require", ca_file=certificates / "ca.crt").context()
    assert context
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.usefixtures("no_variables")
@pytest.mark.requires("openssl")
@pytest.mark.parametrize("mode", ["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"sslrootcert": "ca.crt"},
        {"sslrootcert": "key"},
        {"sslrootcert": "nowhere"},
        {"sslcrl": "nowhere"},
        {"sslcert": "crt", "sslkey": "key"},
        {"sslcert": "crt", "sslkey": "locked.key", "sslpassword": "wrong"},
        {"sslcert": "crt"},
        {"sslcert": "nowhere"},
        {"sslkey": "nowhere"},
        {"sslrootcert": "ca.crt", "ssl_min_protocol_version": "TLSv1.3"},
        {"home": "ca.crt:root.crt"},
        {"home": "key:root.crt"},
        {"home": "key:root.crl"},
        {"home": "crt:postgresql.crt key:postgresql.key"},
        {"home": "crt:postgresql.crt"},
        {"environment": "PGSSLROOTCERT", "file": "ca.crt"},
        {"environment": "PGSSLROOTCERT", "file": "nowhere"},
        {"environment": "PGSSLCERT", "file": "nowhere"},
        {"host": "/run/postgresql", "sslcert": "nowhere"},
    ],
    ids=str,
)
def test_tls_of_a_dsn_is_judged_as_asyncpg_does(
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    parameters: dict[str, str],
) -> None:
    """The TLS files of a DSN are accepted exactly if asyncpg can use them, and the error shows no path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGUSER", "watcher")
    (tmp_path / ".postgresql").mkdir()
    given = dict(parameters)
    for copy in given.pop("home", "").split():
        source, _, copied = copy.partition(":")
        shutil.copy(certificates / source, tmp_path / ".postgresql" / copied)
    if variable := given.pop("environment", None):
        monkeypatch.setenv(variable, str(certificates / given.pop("file")))
    query = {
        name: str(certificates / value) if (certificates / value).exists() or value == "nowhere" else value
        for name, value in {"host": "db.example", **given, **({"sslmode": mode} if mode else {})}.items()
    }
    dsn = DSN(f"postgresql:///orders?{urlencode(query)}")
    is_usable = False
    with contextlib.suppress(OSError, ClientConfigurationError):
        asyncpg_parser.read(dsn.reveal())
        is_usable = True
    if is_usable:
        check_connect(dsn, None)
    else:
        with pytest.raises(ValueError, match=r"^ssl\w+(: |=)") as caught:
            check_connect(dsn, None)
        assert str(certificates) not in str(caught.value)
        assert caught.value.__context__ is None
    check_connect(dsn, "require")


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(("mode", "parameter"), [("verify-ca", "sslrootcert"), ("prefer", "sslcert")])
def test_home_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch, mode: str, parameter: str) -> None:
    """Where the system refuses to say whether a file of the home directory exists, it is refused, as asyncpg does."""
    monkeypatch.setenv("HOME", f"/{'a' * 300}")
    dsn = DSN(f"postgresql://watcher@db.example/orders?sslmode={mode}")
    with pytest.raises(OSError, match="File name too long"):
        asyncpg_parser.read(dsn.reveal())
    with pytest.raises(ValueError, match=f"^{parameter}: cannot read the file .*: File name too long$"):
        check_connect(dsn, None)


@pytest.mark.requires("openssl")
@scenario
async def test_tls_files_are_read_at_each_connect(
    server: ProbedServer, certificates: Path, tmp_path: Path
) -> None:
    """The next connect of the same probe uses a CA file that was replaced."""
    ca = tmp_path / "ca.crt"
    async with tls_proxy(server, certificates) as port:
        dsn = f"postgresql://watcher:{SECRET}@localhost:{port}/postgres"
        async with running(target(dsn, tls=DatabaseTLS(mode="verify-full", ca_file=ca))) as runner:
            assert {"configuration": 1} == runner.probe.status.failures
            shutil.copy(certificates / "ca.crt", ca)
            await runner.probe_again()
            assert runner.server.max_connections == 20
