# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL that a test may stop, freeze and fill, and a pgbouncer in front of it.

``TEST_POSTGRES_BIN`` names the ``bin`` directory of the PostgreSQL (13 to 18) to run.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.support import wait
from tests.support.postgres_keeper import _account, _free_port, _programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "s3cr3t-Pa55"  # noqa: S105 - the password on servers that exist for seconds
HANG = 60.0  # seconds after which a test counts as hanging

# Mutable state: the connections that the running test has opened; `scenario` closes them.
opened_connections: list[Any] = []


def make_directory() -> Path:
    """Make a directory for the account that servers run as: PostgreSQL and pgbouncer refuse to run as root."""
    directory = Path(tempfile.mkdtemp(prefix="pool-exporter-test-"))
    directory.chmod(0o755)
    if account := _account():
        os.chown(directory, account["user"], account["group"])
    return directory


class ProbedServer:
    """A PostgreSQL on a loopback port that a test can stop and start again."""

    def __init__(self) -> None:
        self.directory = make_directory()
        given = os.environ.get("TEST_POSTGRES_BIN")
        self.programs = Path(given) if given else _programs(self.directory, _account())
        self.port = _free_port()
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        password = self.directory / "password"
        password.write_text(SECRET)
        data = self.data = self.directory / "data"
        options = f"-U postgres -A scram-sha-256 --pwfile {password} -E UTF8 --no-locale --no-sync".split()
        initdb = self._spawn("initdb", "-D", data, *options)
        assert initdb.wait(HANG) == 0, self.log.read_text()
        settings = f"""
            listen_addresses = '127.0.0.1'
            port = {self.port}
            unix_socket_directories = '{self.directory}'
            fsync = off
            max_connections = 20
            max_wal_senders = 3
            log_statement = all
            log_line_prefix = '%a|'
        """
        if int((data / "PG_VERSION").read_text()) >= 16:
            settings += "reserved_connections = 2\n"
        with (data / "postgresql.conf").open("a") as file:
            file.write(settings)

    def _spawn(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self.programs / program, *arguments],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **_account(),
            )

    def start(self) -> None:
        if self.process is not None:
            return
        self.process = self._spawn("postgres", "-D", self.data)
        state = self.data / "postmaster.pid"
        _wait_for(lambda: state.exists() and "ready" in state.read_text())

    @contextlib.contextmanager
    def replica(self) -> Iterator[ProbedServer]:
        """Run a copy of this server that stays in recovery; this server is stopped while it is copied."""
        self.stop()
        replica = copy.copy(self)
        replica.data = self.directory / "replica"
        shutil.copytree(self.data, replica.data)
        replica.data.chmod(0o700)
        for path in (replica.data, *replica.data.rglob("*")):
            os.chown(path, self.data.stat().st_uid, self.data.stat().st_gid)
        (replica.data / "standby.signal").touch()
        replica.port = _free_port()
        with (replica.data / "postgresql.conf").open("a") as file:
            file.write(f"port = {replica.port}\n")
        try:
            self.start()
            replica.start()
            yield replica
        finally:
            replica.stop()
            shutil.rmtree(replica.data)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown: ends all sessions
            self.process.wait(HANG)
            self.process = None

    def dsn(self, role: str = "postgres", password: str = SECRET, database: str = "postgres") -> str:
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}"

    async def connect(self, role: str = "postgres", *, application: str = "", **settings: str) -> Any:
        return await connect(self.dsn(role), application_name=application, **settings)


async def connect(dsn: str, **settings: str) -> Any:
    """Connect as an application does."""
    connection = await asyncpg.connect(dsn, server_settings=settings or None, statement_cache_size=0)
    opened_connections.append(connection)
    return connection


async def create_roles(server: ProbedServer) -> None:
    """Create one role that sees all sessions (watcher), and two that see only their own."""
    connection = await server.connect()
    for role in ("app", "watcher", "stranger"):
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
    await connection.execute("GRANT pg_monitor TO watcher")
    await connection.close()
    opened_connections.clear()


async def end_other_sessions(server: ProbedServer) -> None:
    """End all sessions that an earlier test left behind."""
    connection = await server.connect()
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()"
    )
    await eventually_equal(lambda: count_sessions(connection), 1)
    session = Path(f"/proc/{connection.get_server_pid()}")
    await connection.close()
    opened_connections.clear()
    # A session is shown until its process notices that the client is gone: the test would count it.
    await eventually_equal(session.exists, expected=False)


async def count_sessions(admin: Any, application: str | None = None) -> int:
    """Count client connections, of all applications or of one."""
    count: int = await admin.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') "
        "AND application_name = coalesce($1, application_name)",
        application,
    )
    return count


class Bouncer:
    """A pgbouncer in front of a server."""

    def __init__(self, server: ProbedServer, **options: object) -> None:
        self.directory = make_directory()
        self.port = _free_port()
        users = self.directory / "users"
        users.write_text("".join(f'"{role}" "{SECRET}"\n' for role in ("postgres", "app", "watcher")))
        options = {"pool_mode": "transaction", "default_pool_size": 2, "admin_users": "postgres"} | options
        options |= {"listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": ""}
        options |= {"auth_type": "md5", "auth_file": users}
        file = self.directory / "pgbouncer.ini"
        file.write_text(
            f"[databases]\npostgres = host=127.0.0.1 port={server.port}\n[pgbouncer]\n"
            + "".join(f"{key} = {value}\n" for key, value in options.items())
        )
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [shutil.which("pgbouncer") or "pgbouncer", file], stdout=log, stderr=log, **_account()
            )
        _wait_for(self._listens)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(HANG)
        shutil.rmtree(self.directory)

    def dsn(self, role: str = "watcher", password: str = SECRET, database: str = "postgres") -> str:
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}"


def _wait_for(condition: Callable[[], bool]) -> None:
    assert wait.eventually(condition, seconds=HANG), "the server does not come up"


async def eventually_equal(
    value: Callable[[], object], expected: object, *, poll_seconds: float = wait.POLL_SECONDS
) -> None:
    """Wait until a value, of a function or a coroutine function, is as expected: a server notices some things late."""
    last: object = None

    async def agrees() -> bool:
        nonlocal last
        last = value()
        if inspect.isawaitable(last):
            last = await last
        return bool(last == expected)

    is_equal = await wait.eventually_async(agrees, seconds=HANG, poll_seconds=poll_seconds)
    assert is_equal, f"{last!r}, not {expected!r}"
