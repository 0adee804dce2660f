# SPDX-License-Identifier: Apache-2.0
"""How a probe reaches a MariaDB: TLS, sockets, secrets, and why it fails if it does."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import pymysql
import pytest

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import Database, DatabaseTLS, load
from sqlalchemy_pool_exporter.sidecar.probe.mysql import dsn as dsn_module
from tests.support import mariadb
from tests.support.probed_server import HANG, SECRET, eventually_equal
from tests.support.running_probe import database_of_file, running, scenario, target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.mariadb import MariaDB

pytest.importorskip("asyncmy")
pytestmark = [pytest.mark.newest, pytest.mark.requires(*mariadb.PROGRAMS)]


async def failure(dsn: str, caplog: pytest.LogCaptureFixture, **options: object) -> tuple[str, str]:
    """Return why a probe fails, and check that the log says it without the password."""
    with caplog.at_level(logging.DEBUG):
        async with running(target(dsn, **options)) as runner:
            found = runner.probe.status.failure
    assert found is not None
    assert SECRET not in caplog.text
    assert found.text in caplog.text
    return found.reason, found.text


@scenario
async def test_a_refused_account(maria: MariaDB, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password and an account of another host are authentication, a database that is not there is not."""
    reason, text = await failure(maria.dsn("watcher", "wrong"), caplog)
    assert ("authentication", "the server refuses user or password (OperationalError 1045)") == (reason, text)
    with maria.admin() as admin:
        admin.execute("CREATE OR REPLACE USER far@10.1.2.3 IDENTIFIED BY 'x'")
    assert "authentication" == (await failure(maria.dsn("far"), caplog))[0]
    assert "authentication" == (await failure(maria.dsn() + "shop", caplog))[0]
    with maria.admin() as admin:
        admin.execute("GRANT SELECT ON *.* TO far@'127.%' IDENTIFIED BY 'x'")
    assert "configuration" == (await failure(maria.dsn("far", "x") + "nowhere", caplog))[0]


@scenario
async def test_a_full_server(maria: MariaDB, caplog: pytest.LogCaptureFixture) -> None:
    """A server at max_connections, and an account at its own limit, are too_many_connections."""
    maria.set(max_connections=10)
    with ExitStack() as stack:
        with suppress(pymysql.OperationalError):
            for _ in range(11):  # one more than max_connections, which is for an administrator
                stack.enter_context(closing(maria.connect()))
        reason, text = await failure(maria.dsn(), caplog)
        assert ("too_many_connections", "the server is at its max_connections (OperationalError 1040)") == (
            reason,
            text,
        )
    await eventually_equal(lambda: maria.count("app"), 0)
    with maria.admin() as admin:
        admin.execute("ALTER USER watcher@'%' WITH MAX_USER_CONNECTIONS 1")
        try:
            async with running(target(maria.dsn())) as runner:
                assert runner.probe.status.is_up, runner.probe.status.failure
                assert "too_many_connections" == (await failure(maria.dsn(), caplog))[0]
        finally:
            admin.execute("ALTER USER watcher@'%' WITH MAX_USER_CONNECTIONS 0")


@scenario
async def test_a_probe_that_was_connected_goes_on_counting_a_full_server(maria: MariaDB) -> None:
    """A server that has become full refuses new connections; the probe's counts them."""
    maria.set(max_connections=10)
    async with running(target(maria.dsn())) as runner:
        with ExitStack() as stack:
            with suppress(pymysql.OperationalError):
                for _ in range(11):
                    stack.enter_context(closing(maria.connect()))
            await runner.probe_again()
            assert sum(runner.server.connections.values()) >= 10
            assert 10 == runner.server.max_connections


@scenario
async def test_nobody_listens(maria: MariaDB, caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection, and a socket that is not there, say what the system says."""
    await asyncio.to_thread(maria.stop)
    assert ("connect", "Connection refused (ConnectionRefusedError)") == await failure(maria.dsn(), caplog)
    missing = f"mysql://watcher:{SECRET}@localhost/?unix_socket={maria.directory}/nowhere"
    assert ("connect", "No such file or directory (FileNotFoundError)") == await failure(missing, caplog)


@scenario
async def test_a_server_that_says_nothing_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """The probe ends at its timeout where the server does not answer, and leaves no connection."""
    silent: list[asyncio.StreamWriter] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)
        await reader.read()
        ended.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    found = await failure(f"mysql://u:{SECRET}@127.0.0.1:{port}", caplog, timeout_seconds=0.3)
    assert ("timeout", "no answer in time (TimeoutError)") == found
    async with asyncio.timeout(HANG):
        await ended.wait()
    for one in silent:
        one.close()
    listener.close()


@scenario
async def test_a_query_that_hangs_is_cut_off(maria: MariaDB) -> None:
    """A server that stops in the middle of a probe is a timeout, and the next probe has a new connection."""
    assert maria.process is not None
    async with running(target(maria.dsn(), timeout_seconds=1.0)) as runner:
        maria.process.send_signal(19)  # SIGSTOP
        try:
            await runner.probe_again()
            found = runner.probe.status.failure
            assert found is not None
            assert "timeout" == found.reason
        finally:
            maria.process.send_signal(18)  # SIGCONT

        async def is_up() -> bool:
            return (await runner.probe_again()).is_up

        await eventually_equal(is_up, expected=True)


@scenario
async def test_a_connection_that_the_server_ended_is_no_failure(maria: MariaDB) -> None:
    """After wait_timeout, or a KILL, the next probe connects anew."""
    async with running(target(maria.dsn())) as runner:
        for _ in range(2):
            with maria.admin() as admin:
                admin.execute("KILL USER watcher")
            await eventually_equal(lambda: maria.count("watcher"), 0)
            connection = runner.probe._connection
            assert connection is not None
            await eventually_equal(connection.is_closed, expected=True)  # the end has arrived
            await runner.probe_again()
            assert runner.probe.status.is_up
        assert not runner.probe.status.failures
    await eventually_equal(lambda: maria.count("watcher"), 0)


@pytest.fixture(scope="module")
def secure(certificates: Path) -> Iterator[MariaDB]:
    """Run a MariaDB with TLS."""
    server = mariadb.MariaDB()
    for name in ("crt", "key"):
        path = server.directory / name
        path.write_bytes((certificates / name).read_bytes())
        path.chmod(0o644)
    try:
        server.start(ssl_cert=server.directory / "crt", ssl_key=server.directory / "key")
        server.create_accounts()
        yield server
    finally:
        server.close()


async def cipher(server: MariaDB, dsn: str, **options: object) -> str:
    """Return the cipher of the probe's session, empty without TLS."""
    async with running(target(dsn, **options)) as runner:
        assert runner.probe.status.is_up, runner.probe.status.failure
        with server.admin() as admin:
            admin.execute(
                "SELECT variable_value FROM performance_schema.status_by_thread JOIN performance_schema.threads "
                "USING (thread_id) WHERE processlist_user = 'watcher' AND variable_name = 'Ssl_cipher'"
            )
            rows = admin.fetchall()
    return str(rows[0][0]) if rows else ""


@pytest.mark.requires("openssl")
@scenario
async def test_tls(secure: MariaDB, certificates: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TLS by the DSN or the section; by default if the server has it; a certificate of another authority is refused."""
    local = secure.dsn().replace("127.0.0.1", "localhost")
    ca = certificates / "ca.crt"
    for dsn in (
        local,
        f"{local}?ssl_mode=REQUIRED",
        f"{local}?ssl-mode=verify_identity&ssl-ca={ca}",
        f"{local}?ssl_ca={ca}",
        f"{secure.dsn()}?ssl_mode=VERIFY_CA&ssl_ca={ca}",
    ):
        assert await cipher(secure, dsn), dsn
    assert await cipher(secure, local, tls=DatabaseTLS(mode="verify-full", ca_file=ca))
    assert "" == await cipher(secure, f"{local}?ssl_mode=DISABLED")
    assert "" == await cipher(secure, local, tls=DatabaseTLS(mode="disable"))
    reason, text = await failure(f"{local}?ssl_mode=VERIFY_IDENTITY", caplog)
    assert ("tls", True) == (reason, text.startswith("the server's certificate: "))
    reason, text = await failure(f"{secure.dsn()}?ssl_ca={ca}", caplog)  # the certificate is for localhost
    assert ("tls", True) == (reason, text.startswith("the server's certificate: "))


@scenario
async def test_a_server_without_tls(maria: MariaDB, caplog: pytest.LogCaptureFixture) -> None:
    """Where TLS is asked for, no password is sent without it; by default the probe goes on in plain text."""
    for dsn, options in (
        (f"{maria.dsn()}?ssl_mode=REQUIRED", {}),
        (maria.dsn(), {"tls": DatabaseTLS(mode="require")}),
    ):
        reason, _text = await failure(dsn, caplog, **options)
        assert "tls" == reason
    async with running(target(maria.dsn())) as runner:
        assert runner.probe.status.is_up


@scenario
async def test_a_new_password_is_read_at_the_next_connect(maria: MariaDB, tmp_path: Path) -> None:
    """The file of the DSN is read at each connect, also if it then names another kind of server."""
    file = tmp_path / "dsn"
    async with running(database_of_file(file, maria.dsn("watcher", "wrong"))) as runner:
        assert {"authentication": 1} == runner.probe.status.failures
        file.write_text(maria.dsn())
        assert (await runner.probe_again()).is_up


@scenario
@pytest.mark.parametrize("password", ["p@ss/w:rd?#&=%", "p\u00e4sswort", "100 \u20ac"])
async def test_characters_of_a_password(maria: MariaDB, password: str) -> None:
    """A password may have any character, as a client that sends UTF-8 has set it."""
    with maria.admin() as admin:
        admin.execute("CREATE OR REPLACE USER written@'%%' IDENTIFIED BY %s", [password])
    try:
        async with running(target(maria.dsn("written", quote(password, safe="")))) as runner:
            assert runner.probe.status.is_up
    finally:
        with maria.admin() as admin:
            admin.execute("DROP USER written@'%'")


def test_a_driver_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the driver the configuration is refused, and a probe fails, with the name of the extra."""
    config = tmp_path / "exporter.yaml"
    config.write_text(f"databases:\n  - name: orders\n    dsn: mysql://u:{SECRET}@h/db\n")
    load(config)
    monkeypatch.setattr(dsn_module, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sqlalchemy-pool-exporter\[mysql\]'") as caught:
        load(config)
    assert SECRET not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "asyncmy", None)

    async def probe() -> tuple[str, str]:
        return await failure(f"mysql://u:{SECRET}@127.0.0.1:1", caplog)

    reason, text = asyncio.run(probe())
    assert ("configuration", True) == (reason, "sqlalchemy-pool-exporter[mysql]" in text)


def test_a_file_of_tls_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that the DSN names is a fault of the configuration if it cannot be used; its path is not shown."""
    missing = tmp_path / "ca.pem"
    database = Database(name="a", dsn_file=tmp_path / "dsn")
    (tmp_path / "dsn").write_text(f"mysql://u:{SECRET}@h/?ssl_ca={missing}")
    with pytest.raises(ConfigError, match="ssl_ca: cannot read or use") as caught:
        database.connect_arguments()
    assert str(missing) not in str(caught.value)
    assert SECRET not in str(caught.value)
