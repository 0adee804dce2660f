# SPDX-License-Identifier: Apache-2.0
"""The probe tells what a real PostgreSQL tells, and no fault of a server, a pooler or a network harms it.

The probe's sleep is replaced by naps that the test ends, so nothing here waits for a clock but to bound a hang.
``TEST_POSTGRES_BIN`` names the ``bin`` directory of another PostgreSQL (13 to 18) to run everything against.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.metrics import DATABASE_METRICS, ProbeFailure, SessionState
from sqlalchemy_pool_exporter.sidecar.probe.probe import (
    APPLICATION_NAME,
    BACKOFF,
    Observation,
    Probe,
    Snapshot,
    Target,
    Tls,
    backoff,
    explain,
    families,
    observe,
)
from tests.support import probe_failures
from tests.support.postgres_keeper import _account, _free_port, _programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator

SECRET = "s3cr3t-Pa55"  # noqa: S105 - of servers that live for seconds
HANG = 60.0  # seconds; how long a test may take before it is called hanging


# Servers.


def _directory() -> Path:
    """Make a directory for whoever servers run as: PostgreSQL and pgbouncer refuse to be root."""
    directory = Path(tempfile.mkdtemp(prefix="pool-exporter-test-"))
    directory.chmod(0o755)
    if account := _account():
        os.chown(directory, account["user"], account["group"])
    return directory


class Server:
    """A PostgreSQL server on a loopback port that can be stopped, started and frozen."""

    def __init__(self) -> None:
        self.directory = _directory()
        given = os.environ.get("TEST_POSTGRES_BIN")
        self.programs = Path(given) if given else _programs(self.directory, _account())
        self.port = _free_port()
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        password = self.directory / "password"
        password.write_text(SECRET)
        data = self.directory / "data"
        options = f"-U postgres -A scram-sha-256 --pwfile {password} -E UTF8 --no-locale --no-sync".split()
        initdb = self._spawn("initdb", "-D", data, *options)
        assert initdb.wait(HANG) == 0, self.log.read_text()
        settings = f"""
            listen_addresses = '127.0.0.1'
            port = {self.port}
            unix_socket_directories = ''
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
        self.process = self._spawn("postgres", "-D", self.directory / "data")
        state = self.directory / "data" / "postmaster.pid"
        _wait_for(lambda: state.exists() and "ready" in state.read_text())

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown: sessions are ended, not waited for
            self.process.wait(HANG)
            self.process = None

    def dsn(self, role: str = "postgres", password: str = SECRET, database: str = "postgres") -> str:
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}"

    async def connect(self, role: str = "postgres", *, application: str = "", **settings: str) -> Any:
        return await connect(self.dsn(role), application_name=application, **settings)


# The mutable state: what the running test has connected; `scenario` closes it.
_connected: list[Any] = []


async def connect(dsn: str, **settings: str) -> Any:
    """Connect as an application would, without the probe."""
    connection = await asyncpg.connect(dsn, server_settings=settings or None, statement_cache_size=0)
    _connected.append(connection)
    return connection


class Bouncer:
    """A pgbouncer before a server."""

    def __init__(self, server: Server, **options: object) -> None:
        self.directory = _directory()
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
    for _ in range(int(HANG / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("the server does not come up")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    """Run a server for this module, since its tests stop, freeze and fill it."""
    server = Server()
    try:
        server.start()
        asyncio.run(_create_roles(server))
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.directory)


async def _create_roles(server: Server) -> None:
    connection = await server.connect()
    for role in ("app", "watcher", "stranger"):
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
    await connection.execute("GRANT pg_monitor TO watcher")
    await connection.close()
    _connected.clear()


@pytest.fixture
def server(cluster: Server) -> Server:
    """Return the server, running, with nobody connected."""
    cluster.start()
    asyncio.run(_alone(cluster))
    return cluster


async def _alone(server: Server) -> None:
    connection = await server.connect()
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()"
    )
    await eventually(lambda: _sessions(connection), 1)
    await connection.close()
    _connected.clear()


async def _sessions(admin: Any, application: str | None = None) -> int:
    """Count client connections, of all applications or of one."""
    count: int = await admin.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') "
        "AND application_name = coalesce($1, application_name)",
        application,
    )
    return count


@pytest.fixture
def bouncer(server: Server) -> Iterator[Callable[..., Bouncer]]:
    """Return a maker of poolers before the server."""
    made = []

    def make(**options: object) -> Bouncer:
        made.append(Bouncer(server, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# Running a probe.


class Naps:
    """Stands in for asyncio.sleep: a nap lasts until the test ends it, and its length is written down."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self._begun = asyncio.Semaphore(0)
        self._ended = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.lengths.append(seconds)
        self._begun.release()
        await self._ended.acquire()

    async def begun(self) -> None:
        await self._begun.acquire()

    def end(self) -> None:
        self._ended.release()


class Running:
    """A probe that runs, one probe at a time."""

    def __init__(self, target: Target) -> None:
        self.naps = Naps()
        self.probe = Probe(target, sleep=self.naps.sleep, uniform=lambda _low, high: high)

    async def again(self) -> Snapshot:
        """End the nap, and return what the next probe saw."""
        self.naps.end()
        await self.naps.begun()
        return self.probe.snapshot

    @property
    def seen(self) -> Observation:
        assert self.probe.snapshot.observation is not None, self.probe.snapshot
        return self.probe.snapshot.observation


@contextlib.asynccontextmanager
async def running(target: Target) -> AsyncIterator[Running]:
    """Run a probe; it has probed once when the block begins."""
    runner = Running(target)
    task = asyncio.create_task(runner.probe.run())
    try:
        async with asyncio.timeout(HANG):
            await runner.naps.begun()
            yield runner
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def target(dsn: str, **options: Any) -> Target:
    """Return a target with a timeout that only a hang reaches."""
    return Target("orders", dsn, **{"timeout_seconds": 20.0} | options)


async def eventually(value: Callable[[], Awaitable[object]], expected: object) -> None:
    """Wait until a value is as expected: a server notices some things late."""
    for _ in range(int(HANG / 0.01)):
        if (last := await value()) == expected:
            return
        await asyncio.sleep(0.01)
    assert expected == last


def exposition(*snapshots: Snapshot, now: float = 0.0) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the samples by short name and label values (without that of the database)."""
    return {
        (
            sample.name.removeprefix("sqlalchemy_pool_database_"),
            tuple(sample.labels.values())[1:],
        ): sample.value
        for family in families(snapshots, now)
        for sample in family.samples
    }


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, and close what it connected."""

    async def closing(*args: Any, **kwargs: Any) -> None:
        try:
            await test(*args, **kwargs)
        finally:
            for connection in _connected:
                connection.terminate()
            _connected.clear()
            await asyncio.sleep(0)  # the sockets are closed by the loop

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(closing(*args, **kwargs))

    return run


def descriptors() -> int:
    """Count the file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


# What it sees.


@scenario
async def test_counts_what_the_server_counts(server: Server) -> None:
    """Connections by state and by application equal the sessions that were opened, and the server's own count."""
    for _ in range(3):
        await server.connect("app", application="web")
    waiting = await server.connect("app", application="worker")
    await waiting.execute("BEGIN")
    aborted = await server.connect("app", application="worker")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await aborted.execute("BEGIN; SELECT 1/0")
    busy = await server.connect("app")
    query = asyncio.create_task(busy.execute("SELECT pg_sleep(600)"))
    admin = await server.connect(application="admin")
    active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
    await eventually(lambda: admin.fetchval(active), 1)

    async with running(target(server.dsn("watcher"))) as runner:
        seen = runner.seen
        # The one that asks is active while it does, and so is the probe; both are idle otherwise.
        assert await _sessions(admin) == sum(seen.connections.values())

    assert {
        "active": 1,
        "idle": 5,
        "idle_in_transaction": 1,
        "idle_in_transaction_aborted": 1,
        "fastpath": 0,
    } == seen.connections
    assert {
        "web": 3,
        "worker": 2,
        "unnamed": 1,
        "admin": 1,
        APPLICATION_NAME: 1,
        "other": 0,
    } == seen.application_connections
    query.cancel()
    await asyncio.wait([query])


@scenario
async def test_counts_only_what_counts_against_max_connections(server: Server) -> None:
    """WAL senders, parallel workers and the server's own processes are no client connections."""
    await server.connect(replication="database", application="standby")
    admin = await server.connect()
    major = int(await admin.fetchval("SHOW server_version_num")) // 10000
    busy = await server.connect(**{"debug_parallel_query" if major >= 16 else "force_parallel_mode": "on"})
    query = asyncio.create_task(busy.execute("SELECT pg_sleep(600)"))
    kinds = "SELECT count(DISTINCT backend_type) FROM pg_stat_activity WHERE backend_type = ANY($1)"
    others = ["walsender", "parallel worker", "autovacuum launcher"]
    await eventually(lambda: admin.fetchval(kinds, others), 3)

    async with running(target(server.dsn("watcher"))) as runner:
        assert {"unnamed": 2, APPLICATION_NAME: 1, "other": 0} == runner.seen.application_connections
        assert sum(runner.seen.connections.values()) == 3

    query.cancel()
    await asyncio.wait([query])


@scenario
async def test_reads_the_limits_and_timeouts(server: Server) -> None:
    """Limits equal the server's settings; a timeout that is off, or unknown to the version, is absent."""
    admin = await server.connect()

    async def setting(name: str) -> str | None:
        return await admin.fetchval("SELECT current_setting($1, true)", name)  # type: ignore[no-any-return]

    reserved = int(await setting("superuser_reserved_connections") or 0)
    reserved += int(await setting("reserved_connections") or 0)
    async with running(target(server.dsn("watcher"))) as runner:
        assert runner.seen.max_connections == 20
        assert runner.seen.reserved_connections == reserved
        assert runner.seen.idle_session_timeout_seconds is None
        assert runner.seen.idle_in_transaction_session_timeout_seconds is None

    await admin.execute("ALTER ROLE watcher SET idle_in_transaction_session_timeout = '90s'")
    has_idle_session_timeout = await setting("idle_session_timeout") is not None
    if has_idle_session_timeout:
        await admin.execute("ALTER ROLE watcher SET idle_session_timeout = '1h'")
    async with running(target(server.dsn("watcher"))) as runner:
        assert runner.seen.idle_session_timeout_seconds == (3600.0 if has_idle_session_timeout else None)
        assert runner.seen.idle_in_transaction_session_timeout_seconds == 90.0
    await admin.execute("ALTER ROLE watcher RESET ALL")


@scenario
async def test_measures_the_longest_idle_in_transaction(server: Server) -> None:
    """The longest of several lies between what the server says before and after; with none it is 0."""
    admin = await server.connect()
    age = "SELECT extract(epoch FROM clock_timestamp() - min(state_change))::float8 FROM pg_stat_activity "
    age += "WHERE state LIKE 'idle in transaction%'"
    async with running(target(server.dsn("watcher"))) as runner:
        assert runner.seen.longest_idle_in_transaction_seconds == 0.0
        waiting = [await server.connect("app") for _ in range(3)]
        for connection in waiting:
            await connection.execute("BEGIN")
        before = await admin.fetchval(age)
        await runner.again()
        after = await admin.fetchval(age)
        assert runner.seen.longest_idle_in_transaction_seconds is not None
        assert before <= runner.seen.longest_idle_in_transaction_seconds <= after


@scenario
async def test_an_unprivileged_role_says_what_it_cannot_know(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Without pg_monitor, other users' sessions are unknown, no state is said to be 0, and the log tells once."""
    others = [await server.connect("app", application="web") for _ in range(2)]
    await others[0].execute("BEGIN")
    await server.connect(replication="true")
    async with running(target(server.dsn("stranger"))) as runner:
        assert {"idle": 1, "unknown": 2} == runner.seen.connections
        assert {"web": 2, APPLICATION_NAME: 1, "other": 0} == runner.seen.application_connections
        assert runner.seen.longest_idle_in_transaction_seconds is None
        assert runner.seen.max_connections == 20
        shown = exposition(runner.probe.snapshot)
        assert {"idle": 1.0, "unknown": 2.0} == {
            labels[0]: value for (name, labels), value in shown.items() if name == "connections"
        }

        own = await server.connect("stranger")
        await own.execute("BEGIN")
        await runner.again()
        assert {"idle": 1, "idle_in_transaction": 1, "unknown": 2} == runner.seen.connections
        assert runner.seen.longest_idle_in_transaction_seconds is not None
    assert [record.message for record in caplog.records if "pg_monitor" in record.message] == [
        "database 'orders': the state of 2 sessions is hidden from the role: GRANT pg_monitor to it"
    ]


@scenario
async def test_application_names_are_untrusted_and_bounded(server: Server) -> None:
    """Whatever clients call themselves, the labels are printable and short, and the smallest are lumped together."""
    names = ['evil"}\n# HELP', "x" * 500, "other", "other", "many", "many", "many", "   "]
    for name in names:
        await server.connect("app", application=name)
    async with running(target(server.dsn("watcher"), application_names_limit=2)) as runner:
        seen = runner.seen.application_connections
        assert seen == {"many": 3, "other": 2 + 4}
    async with running(target(server.dsn("watcher"), application_names_limit=50)) as runner:
        seen = runner.seen.application_connections
        assert seen is not None
        assert seen["other"] == 2
        assert seen["unnamed"] == 1
        assert all(name.isprintable() and 0 < len(name) <= 64 for name in seen)
        text = _text(runner.probe.snapshot)
        assert len(_parsed(text)) > 5


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("web", "web"),
        (None, "unnamed"),
        ("", "unnamed"),
        (" \t ", "? "[:1]),
        ("a\nb\x00c\x1bd", "a?b?c?d"),
        ("käse", "käse"),
        ("\ud800", "?"),
        ("\u202egnp.exe", "?gnp.exe"),
        ("y" * 65, "y" * 64),
    ],
)
def test_names_become_labels(name: str | None, label: str) -> None:
    """Control characters, surrogates and direction marks are replaced, long names cut, empty ones named."""
    row = {"state": "idle", "application_name": name, "sessions": 1, "idle_in_transaction": None}
    seen = observe(SETTINGS, [row], behind_pooler=False, names=5)
    assert {label: 1, "other": 0} == seen.application_connections


SETTINGS = {"max_connections": 100.0, "superuser_reserved_connections": 3.0}


def test_an_application_called_other_does_not_hide_the_others() -> None:
    """The name "other" is summed with what does not fit, in one series."""
    rows = [
        {"state": "idle", "application_name": name, "sessions": n, "idle_in_transaction": None}
        for name, n in (("other", 5), ("a", 3), ("b", 2), ("c", 1))
    ]
    seen = observe(SETTINGS, rows, behind_pooler=False, names=2)
    assert {"other": 5 + 2 + 1, "a": 3} == seen.application_connections
    assert {"other": 11} == observe(SETTINGS, rows, behind_pooler=False, names=0).application_connections


def test_states_the_probe_does_not_know_are_unknown() -> None:
    """A session that does not track its activity, or has a state of a later version, is not guessed at."""
    rows = [
        {"state": state, "application_name": "", "sessions": 1, "idle_in_transaction": None}
        for state in ("disabled", "meditating", None, "starting", "fastpath function call")
    ]
    seen = observe(SETTINGS, rows, behind_pooler=False, names=2)
    assert {"unknown": 3, "starting": 1, "fastpath": 1} == seen.connections


# How it behaves as a guest.


@scenario
async def test_uses_one_connection_and_only_reads(server: Server) -> None:
    """All probes go over one session, each in a read-only transaction with a timeout, and nothing is set for good."""
    start = server.log.stat().st_size
    async with running(target(server.dsn("watcher"), timeout_seconds=7.5)) as runner:
        admin = await server.connect()
        whose = "SELECT pid, state FROM pg_stat_activity WHERE application_name = $1"
        first = await admin.fetch(whose, APPLICATION_NAME)
        for _ in range(4):
            await runner.again()
        assert await admin.fetch(whose, APPLICATION_NAME) == first
        assert [row["state"] for row in first] == ["idle"]
    await eventually(lambda: _sessions(admin, APPLICATION_NAME), 0)
    said = server.log.read_bytes()[start:].decode().splitlines()
    probe = f"{APPLICATION_NAME}|LOG:  "
    begin = "statement: BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 7500"
    select = "execute <unnamed>: "
    assert [begin, select, select, "statement: COMMIT"] * 5 == [
        line.removeprefix(probe) for line in said if line.startswith(probe)
    ]


@scenario
async def test_a_session_that_idles_out_is_no_failure(server: Server) -> None:
    """A connection that the server closed between two probes is opened again at once; nothing failed."""
    admin = await server.connect()
    async with running(target(server.dsn("watcher"))) as runner:
        before = descriptors()
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
        await admin.fetch(kill, APPLICATION_NAME)
        await eventually(_async(descriptors), before - 1)  # the news has come
        snapshot = await runner.again()
        assert runner.seen.max_connections == 20
        assert not snapshot.failures
        assert [15.0, 15.0] == runner.naps.lengths


# When things fail.


@scenario
async def test_a_wrong_password_is_told_once_and_retried_slowly(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs up 0 and a reason; attempts are spaced out, and the log has one line without the password."""
    async with running(target(server.dsn("watcher", password=SECRET.upper()))) as runner:
        for _ in range(7):
            snapshot = await runner.again()
        assert {"authentication": 8} == snapshot.failures
        assert [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] == runner.naps.lengths
        shown = exposition(snapshot)
        assert shown["up", ()] == 0.0
        assert shown["probe_failures_total", ("authentication",)] == 8.0
        assert ("max_connections", ()) not in shown
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("database 'orders': authentication: the server refuses user or password")
    assert warnings[0].endswith("(InvalidPasswordError, SQLSTATE 28P01); next in 1.0 s")


@scenario
async def test_a_server_that_stops_and_starts_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Up goes to 0 while it is stopped and back to 1 with the first probe after; the backoff starts over."""
    caplog.set_level(logging.INFO)
    async with running(target(server.dsn("watcher"))) as runner:
        for attempts in (3, 2):
            await asyncio.to_thread(server.stop)
            for _ in range(attempts):
                snapshot = await runner.again()
                assert snapshot.observation is None
                assert exposition(snapshot)["up", ()] == 0.0
            await asyncio.to_thread(server.start)
            await runner.again()
            assert runner.seen.max_connections == 20
        assert {"connect": 5} == runner.probe.snapshot.failures
        assert [15.0, 1.0, 2.0, 4.0, 15.0, 1.0, 2.0, 15.0] == runner.naps.lengths
    said = [record.getMessage() for record in caplog.records if record.name.endswith("probe")]
    down = "database 'orders': connect: Connection refused (ConnectionRefusedError); next in 1.0 s"
    assert [down, "database 'orders': answers again"] * 2 == said


@pytest.mark.parametrize("tls", [None, Tls("disable"), Tls("require")], ids=["prefer", "disable", "require"])
@scenario
async def test_a_server_that_accepts_and_never_answers(tls: Tls | None) -> None:
    """The timeout ends the probe, in each phase of the connection, and leaves no descriptor open."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        before = descriptors()
        dsn = f"postgresql://watcher:{SECRET}@127.0.0.1:{mute.getsockname()[1]}/postgres"
        async with running(target(dsn, tls=tls, timeout_seconds=0.05)) as runner:
            for _ in range(3):
                snapshot = await runner.again()
            assert {"timeout": 4} == snapshot.failures
            await eventually(_async(descriptors), before)


def _async(function: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def call() -> object:
        return function()

    return call


@scenario
async def test_a_server_that_stops_answering(server: Server) -> None:
    """A session that hangs in the middle of a probe costs that probe its timeout, and the next has a new one."""
    admin = await server.connect()
    before = descriptors()
    async with running(target(server.dsn("watcher"), timeout_seconds=0.5)) as runner:
        pid = await admin.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1", APPLICATION_NAME
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            snapshot = await runner.again()
            assert {"timeout": 1} == snapshot.failures
            assert snapshot.observation is None
            await runner.again()
            assert runner.seen.max_connections == 20
        finally:
            os.kill(pid, signal.SIGCONT)
    await eventually(_async(descriptors), before)
    await eventually(lambda: _sessions(admin), 1)


@scenario
async def test_a_session_killed_in_the_middle_of_a_probe(server: Server) -> None:
    """pg_terminate_backend during a probe costs that probe, is counted as such, and the next one reconnects."""
    admin = await server.connect()
    async with running(target(server.dsn("watcher"))) as runner:
        pid = await admin.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1", APPLICATION_NAME
        )
        os.kill(pid, signal.SIGSTOP)
        runner.naps.end()
        start = runner.probe.snapshot.probes
        await asyncio.sleep(0)  # the probe has sent its first word to the stopped session
        await admin.execute(f"SELECT pg_terminate_backend({pid})")
        os.kill(pid, signal.SIGCONT)
        await runner.naps.begun()
        assert runner.probe.snapshot.probes == start + 1
        assert {"disconnected": 1} == runner.probe.snapshot.failures
        await runner.again()
        assert runner.seen.max_connections == 20


@scenario
async def test_a_full_server_is_seen_from_inside_and_out(server: Server) -> None:
    """A probe that is connected counts the server full; one that comes too late says why it cannot."""
    async with running(target(server.dsn("watcher"))) as inside:
        clients: list[Any] = []
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                clients.append(await server.connect("app"))

        async def count() -> int:
            await inside.again()
            return int(sum(inside.seen.connections.values()))

        # The one refused still has its slot for a moment.
        await eventually(count, len(clients) + 1)
        seen = inside.seen
        assert seen.max_connections - seen.reserved_connections == len(clients) + 1
        async with running(target(server.dsn("watcher"))) as outside:
            assert {"too_many_connections": 1} == outside.probe.snapshot.failures
            for client in clients:
                await client.close()
            admin = await server.connect()
            await eventually(lambda: _sessions(admin), 2)
            await outside.again()
            assert outside.seen.max_connections == 20


@scenario
async def test_a_missing_database_and_a_rejected_parameter(server: Server) -> None:
    """What only the configuration can mend is called so."""
    for dsn in (
        server.dsn(database="nowhere"),
        f"{server.dsn()}?connect_timeout=3",
        f"{server.dsn()}?sslmode=odd",
    ):
        async with running(target(dsn)) as runner:
            assert {"configuration": 1} == runner.probe.snapshot.failures


class Interrupted:
    """A coroutine whose task is cancelled at one of its suspensions, as it begins or as it ends."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], at: int, *, late: bool) -> None:
        self.coroutine, self.at, self.late, self.count = coroutine, at, late, 0

    def __await__(self) -> Generator[Any, Any, object]:
        action: Callable[[Any], Any] = self.coroutine.send
        argument: object = None
        while True:
            try:
                future = action(argument)
            except StopIteration as stop:
                return stop.value
            self.count += 1
            task = asyncio.current_task()
            assert task is not None
            if self.count == self.at and not self.late:
                task.cancel()
            try:
                argument, action = (yield future), self.coroutine.send
                if self.count == self.at and self.late:
                    argument, action = asyncio.CancelledError(), self.coroutine.throw
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the coroutine's
                argument, action = error, self.coroutine.throw


async def _run(awaitable: Awaitable[object]) -> None:
    await awaitable


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "woken"])
@scenario
async def test_cancelled_at_any_moment_it_leaves_nothing_open(server: Server, late: bool) -> None:
    """Wherever in connecting, asking or closing the cancellation hits, socket and session are gone afterwards."""
    admin = await server.connect()
    before = descriptors()
    for moment in itertools.count(1):
        naps = Naps()
        probe = Probe(target(server.dsn("watcher")), sleep=naps.sleep)
        interrupted = Interrupted(probe.run(), moment, late=late)
        task = asyncio.create_task(_run(interrupted))
        asleep = asyncio.create_task(naps.begun())
        async with asyncio.timeout(HANG):
            await asyncio.wait([task, asleep], return_when=asyncio.FIRST_COMPLETED)
            task.cancel()  # where the moment is beyond the first nap, it is in closing
            asleep.cancel()
            await asyncio.wait([task, asleep])
        assert task.cancelled()
        await eventually(_async(descriptors), before)
        if interrupted.count < moment:
            break
    assert moment > 12  # it was hit in connecting, in each exchange, and in closing
    await eventually(lambda: _sessions(admin, APPLICATION_NAME), 0)


@pytest.mark.soak
@pytest.mark.parametrize("kind", probe_failures.KINDS)
def test_a_thousand_failures_leave_nothing_behind(kind: str) -> None:
    """Neither descriptors nor memory grow with failed probes, and each is followed by a delay."""
    # In a process of its own, as the sidecar is one: what it keeps is to be the probe's and nobody else's.
    program = [sys.executable, "-m", "tests.support.probe_failures", kind]
    root = Path(__file__).parents[3]
    done = subprocess.run(program, cwd=root, capture_output=True, check=True, text=True, timeout=HANG)
    said = json.loads(done.stdout)
    (early, late), (before, after) = said["descriptors"], said["bytes"]
    assert early == late
    assert after - before < 48 * 1024  # bytes after a thousand; caches fill
    assert (said["probes"], said["failures"]) == (probe_failures.LAST, probe_failures.LAST)
    assert said["shortest"] >= BACKOFF[0] / 2


def test_backoff_doubles_within_bounds() -> None:
    """It starts at about a second, never exceeds a minute or the interval, and half of it is chance."""
    ends = [(backoff(n, 15.0, min), backoff(n, 15.0, max)) for n in (1, 2, 3, 7, 8, 10**6)]
    assert [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (30.0, 60.0), (30.0, 60.0), (30.0, 60.0)] == ends
    assert backoff(10**6, 300.0, max) == 300.0


# What it never says.

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
    """A password with characters that were not percent-encoded never becomes a host name, nor part of an error."""
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
    """Hosts, ports, lists, sockets and encoded passwords are all fine."""
    assert Target("orders", dsn).dsn == dsn


@scenario
async def test_a_password_that_changes_is_read_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A DSN that is a function is asked at each connect; what it cannot give is a fault of the configuration."""
    dsns = iter([server.dsn("watcher", SECRET.upper()), f"postgresql://watcher:x/{SECRET}@y/z", server.dsn()])
    async with running(dataclasses.replace(target(server.dsn()), dsn=lambda: next(dsns))) as runner:
        await runner.again()
        assert {"authentication": 1, "configuration": 1} == runner.probe.snapshot.failures
        await runner.again()
        assert runner.seen.max_connections == 20
    assert "percent-encoded" in caplog.text
    assert SECRET not in caplog.text


@scenario
async def test_credentials_are_nowhere(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Neither logs (at any level), nor reprs, nor snapshots, nor the exposition hold any part of the password."""
    caplog.set_level(logging.DEBUG)
    shown = []
    for dsn in (
        server.dsn("watcher"),
        server.dsn("nobody"),
        server.dsn(SECRET, "wrong"),
        server.dsn(database=SECRET),
        f"postgresql://watcher:x@{SECRET}.invalid/postgres",
        f"{server.dsn()}&?{SECRET}=1",
        f"{server.dsn()}?port={SECRET}",
        f"{server.dsn()}?sslmode={SECRET}",
        f"{server.dsn()}?sslmode=verify-ca&sslrootcert={SECRET}",
        f"{server.dsn()}?{SECRET}=1",
    ):
        one = target(dsn)
        async with running(one) as runner:
            shown += [repr(one), str(one), repr(runner.probe), repr(runner.probe.snapshot)]
            shown.append(_text(runner.probe.snapshot))
    shown += [record.getMessage() + (record.exc_text or "") for record in caplog.records]
    assert len(shown) > 50
    assert [text for text in shown if SECRET.lower() in text.lower()] == []


# TLS.


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """Make an authority, and a certificate of it for localhost."""
    directory = _directory()
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -nodes -addext"
    ca = f"{new} basicConstraints=critical,CA:TRUE -subj /CN=authority -keyout ca.key -out ca.crt"
    leaf = f"{new} subjectAltName=DNS:localhost -subj /CN=localhost -CA ca.crt -CAkey ca.key -keyout key -out crt"
    for command in (ca, leaf, f"rsa -aes128 -passout pass:{SECRET} -in rsa.key -out locked.key"):
        if command.startswith("rsa"):
            _openssl(directory, "genrsa -out rsa.key 2048")
        _openssl(directory, command)
    yield directory
    shutil.rmtree(directory)


def _openssl(directory: Path, command: str) -> None:
    subprocess.run(
        [shutil.which("openssl") or "openssl", *command.split()],
        check=True,
        cwd=directory,
        capture_output=True,
    )


@contextlib.asynccontextmanager
async def tls_proxy(server: Server, certificates: Path) -> AsyncIterator[int]:
    """Terminate TLS before a server, as PostgreSQL itself negotiates it; the wheel's server has none."""
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
    server: Server,
    certificates: Path,
    caplog: pytest.LogCaptureFixture,
    mode: Any,
    ca: bool,
    host: str,
    expected: str | None,
) -> None:
    """Each mode connects where it should and refuses where it should, and says why."""
    tls = Tls(mode, ca_file=str(certificates / "ca.crt") if ca else None)
    async with tls_proxy(server, certificates) as port:
        dsn = f"postgresql://watcher:{SECRET}@{host}:{port}/postgres"
        async with running(target(dsn, tls=tls)) as runner:
            if expected is None:
                assert runner.seen.max_connections == 20
            elif expected:
                assert {"tls": 1} == runner.probe.snapshot.failures
                assert expected in caplog.text
            else:
                assert {"disconnected": 1} == runner.probe.snapshot.failures


@scenario
async def test_tls_is_not_given_up_when_the_server_has_none(server: Server) -> None:
    """A mode that requires TLS never falls back to plain text."""
    if await _has_tls(server):
        pytest.skip("this server offers TLS")
    async with running(target(server.dsn("watcher"), tls=Tls("require"))) as runner:
        assert {"tls": 1} == runner.probe.snapshot.failures


async def _has_tls(server: Server) -> bool:
    connection = await server.connect()
    offered = await connection.fetchval("SHOW ssl") == "on"
    await connection.close()
    return bool(offered)


@pytest.mark.requires("openssl")
def test_tls_files_are_checked(certificates: Path, tmp_path: Path) -> None:
    """A file that is missing, no certificate, or locked is named in the error; so is a contradiction."""
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
async def test_tls_files_are_read_at_each_connect(server: Server, certificates: Path, tmp_path: Path) -> None:
    """A CA that is renewed on disk is used at the next connect, without a new probe."""
    ca = tmp_path / "ca.crt"
    async with tls_proxy(server, certificates) as port:
        dsn = f"postgresql://watcher:{SECRET}@localhost:{port}/postgres"
        async with running(target(dsn, tls=Tls("verify-full", ca_file=str(ca)))) as runner:
            assert {"configuration": 1} == runner.probe.snapshot.failures
            shutil.copy(certificates / "ca.crt", ca)
            await runner.again()
            assert runner.seen.max_connections == 20


# Behind a pooler.


@pytest.mark.requires("pgbouncer")
@scenario
async def test_behind_pgbouncer_it_says_what_it_cannot_know(
    server: Server, bouncer: Callable[..., Bouncer], caplog: pytest.LogCaptureFixture
) -> None:
    """The server's side is read through the pooler; what the pooler hides is absent and told once in the log."""
    pooler = bouncer()
    admin = await server.connect(application="admin")
    await admin.execute("ALTER ROLE watcher SET idle_in_transaction_session_timeout = '90s'")
    app = await connect(pooler.dsn("app"))
    await app.execute("BEGIN")
    async with running(target(pooler.dsn())) as runner:
        for _ in range(3):
            await runner.again()
        seen = runner.seen
        assert seen.behind_pooler
        assert seen.application_connections is None
        assert seen.idle_session_timeout_seconds is None
        assert seen.idle_in_transaction_session_timeout_seconds == 90.0
        assert seen.max_connections == 20
        assert seen.connections["idle_in_transaction"] == 1
        assert await _sessions(admin) == sum(seen.connections.values())
        assert exposition(runner.probe.snapshot)["behind_pooler", ()] == 1.0
    assert len([record for record in caplog.records if "behind a connection pooler" in record.message]) == 1
    async with running(target(server.dsn("watcher"))) as runner:
        assert not runner.seen.behind_pooler
    await admin.execute("ALTER ROLE watcher RESET ALL")


@pytest.mark.requires("pgbouncer")
@scenario
async def test_nothing_is_left_on_a_connection_the_pooler_lent(
    server: Server, bouncer: Callable[..., Bouncer]
) -> None:
    """The application that gets the probe's server connection next is not read-only and has no timeout of ours."""
    pooler = bouncer(default_pool_size=1)
    settings = "SELECT pg_backend_pid(), current_setting('default_transaction_read_only'), "
    settings += "current_setting('transaction_read_only'), current_setting('statement_timeout')"
    app = await connect(pooler.dsn())
    before = await app.fetchrow(settings)
    async with running(target(pooler.dsn())) as runner:
        for _ in range(2):
            await runner.again()
            assert await app.fetchrow(settings) == before
        assert runner.probe.snapshot.probes == 3
    assert list(before)[1:] == ["off", "off", "0"]
    assert await app.fetchrow(settings) == before


@pytest.mark.requires("pgbouncer")
@pytest.mark.parametrize(
    ("options", "dsn", "expected"),
    [
        (
            {},
            {"role": "postgres", "database": "pgbouncer"},
            "configuration: this is pgbouncer's admin console",
        ),
        ({}, {"database": "nowhere"}, "configuration: "),
        ({}, {"password": "wrong"}, "authentication: "),
        ({"pool_mode": "statement"}, {}, "configuration: a pooler in statement mode"),
        ({"max_client_conn": 0}, {}, "too_many_connections: "),
    ],
    ids=["admin console", "no database", "wrong password", "statement mode", "full"],
)
@scenario
async def test_what_pgbouncer_refuses_has_a_reason(
    bouncer: Callable[..., Bouncer],
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    dsn: dict[str, str],
    expected: str,
) -> None:
    """Its refusals are told apart, though most have one SQLSTATE; the admin console is no database."""
    async with running(target(bouncer(**options).dsn(**dsn))) as runner:
        assert runner.probe.snapshot.observation is None
    if "statement mode" in expected and version("asyncpg") < "0.32":
        expected = "disconnected: "  # it loses what is said before the connection is closed
    assert f"database 'orders': {expected}" in caplog.text


@pytest.mark.requires("pgbouncer")
@scenario
async def test_pgbouncer_without_a_server_or_a_free_connection(
    server: Server, bouncer: Callable[..., Bouncer]
) -> None:
    """A pooler whose pool is taken costs the timeout, one whose server is gone is unavailable; both recover."""
    pooler = bouncer(default_pool_size=1, server_login_retry=1, server_connect_timeout=1)
    app = await connect(pooler.dsn())
    async with running(target(pooler.dsn(), timeout_seconds=0.5)) as runner:
        await app.execute("BEGIN")
        snapshot = await runner.again()
        assert {"timeout": 1} == snapshot.failures
        await app.execute("COMMIT")
        await runner.again()
        assert runner.seen.max_connections == 20
        await asyncio.to_thread(server.stop)
        snapshot = await runner.again()
        assert snapshot.observation is None
    server.start()
    async with running(target(pooler.dsn(), timeout_seconds=0.5)) as runner:
        for _ in range(40):
            if runner.probe.snapshot.observation is not None:
                break
            await asyncio.sleep(0.1)  # pgbouncer tries the server again at its own pace
            await runner.again()
        assert runner.seen.max_connections == 20


# What a scrape shows.


def _text(*snapshots: Snapshot, now: float = 0.0) -> str:
    registry = CollectorRegistry()
    registry.register(_Fixed(snapshots, now))
    return str(openmetrics(registry).decode())


def _parsed(text: str) -> list[Any]:
    return list(text_string_to_metric_families(text))


@dataclasses.dataclass(eq=False)
class _Fixed(Collector):
    snapshots: tuple[Snapshot, ...]
    now: float

    def collect(self) -> Iterator[Any]:
        return families(self.snapshots, self.now)


FULL = Snapshot(
    database="orders",
    pools=("orders", "reports"),
    probes=12,
    failures={"timeout": 2},
    completed_at=100.0,
    duration_seconds=0.25,
    succeeded_at=1.7e9,
    observation=Observation(
        max_connections=100,
        reserved_connections=3,
        connections={"active": 4, "idle": 0},
        application_connections={"web": 3, "other": 1},
        longest_idle_in_transaction_seconds=0.0,
        idle_session_timeout_seconds=600.0,
        idle_in_transaction_session_timeout_seconds=None,
        behind_pooler=False,
    ),
)


def test_shows_the_last_result_and_its_age() -> None:
    """A scrape gets what the last probe saw, how old that is, and every counter from the start."""
    shown = exposition(FULL, now=107.5)
    failures = {("probe_failures_total", (reason,)): 0.0 for reason in get_args(ProbeFailure)}
    assert (
        failures
        | {
            ("probe_failures_total", ("timeout",)): 2.0,
            ("pool_info", ("orders",)): 1.0,
            ("pool_info", ("reports",)): 1.0,
            ("up", ()): 1.0,
            ("probes_total", ()): 12.0,
            ("probe_age_seconds", ()): 7.5,
            ("probe_duration_seconds", ()): 0.25,
            ("last_success_timestamp_seconds", ()): 1.7e9,
            ("max_connections", ()): 100.0,
            ("reserved_connections", ()): 3.0,
            ("behind_pooler", ()): 0.0,
            ("connections", ("unknown",)): 0.0,
            ("connections", ("active",)): 4.0,
            ("connections", ("idle",)): 0.0,
            ("application_connections", ("web",)): 3.0,
            ("application_connections", ("other",)): 1.0,
            ("longest_idle_in_transaction_seconds", ()): 0.0,
            ("idle_session_timeout_seconds", ()): 600.0,
        }
        == shown
    )


def test_before_the_first_probe_only_the_counters_are_there() -> None:
    """Nobody knows yet whether the database is up, so nothing says so; the pools it has are configured."""
    shown = exposition(Probe(target("postgresql://127.0.0.1/x")).snapshot)
    assert {"pool_info", "probes_total", "probe_failures_total"} == {name for name, _ in shown}


@pytest.mark.parametrize(("pools", "expected"), [((), {"orders"}), (("a", "b"), {"a", "b"})])
def test_pools_are_those_configured_or_the_one_called_like_the_database(
    pools: tuple[str, ...], expected: set[str]
) -> None:
    """Each pool has a sample of its own, whether the database was reached or not."""
    shown = exposition(Probe(target("postgresql://127.0.0.1/x", pools=pools)).snapshot)
    assert {("pool_info", (pool,)) for pool in expected} == {key for key in shown if key[0] == "pool_info"}


def test_a_database_that_is_down_hides_no_other() -> None:
    """Two databases share the families; one that is down has up 0, its counters and its last success."""
    down = dataclasses.replace(FULL, database="ledger", observation=None)
    text = _text(FULL, down, now=100.0)
    parsed = {family.name: family for family in _parsed(text)}
    up = {sample.labels["database"]: sample.value for sample in parsed["sqlalchemy_pool_database_up"].samples}
    assert {"orders": 1.0, "ledger": 0.0} == up
    shown = {name for name, _ in exposition(down)}
    counted = {"pool_info", "probes_total", "probe_failures_total"}
    assert (
        counted
        | {
            "up",
            "probe_age_seconds",
            "probe_duration_seconds",
            "last_success_timestamp_seconds",
        }
        == shown
    )


def test_everything_shown_is_declared() -> None:
    """Every family has a declaration with its type, its labels and their values, and every declaration is shown."""
    full = dataclasses.replace(
        FULL,
        observation=dataclasses.replace(
            FULL.observation or pytest.fail("no observation"),
            connections=dict.fromkeys(get_args(SessionState), 1),
            idle_in_transaction_session_timeout_seconds=90.0,
        ),
    )
    declared = {metric.name: metric for metric in DATABASE_METRICS}
    shown = set()
    for family in families([full], 100.0):
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        shown.add(name)
        metric = declared[name]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        for sample in family.samples:
            assert ("database", *metric.labels) == tuple(sample.labels)
        if metric.values:
            assert set(metric.values) == {sample.labels[metric.labels[0]] for sample in family.samples}
    assert set(declared) == shown


def test_a_snapshot_cannot_be_changed() -> None:
    """What a scrape reads in another thread stays as it was."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.probes = 13  # type: ignore[misc]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "timeout"),
        (socket.gaierror(-2, SECRET), "connect"),
        (OSError(f"Multiple exceptions: {SECRET}"), "connect"),
        (ConnectionResetError(104, SECRET), "connect"),
        (ConnectionError(SECRET), "tls"),
        (ssl.SSLError(1, SECRET), "tls"),
        (ValueError(SECRET), "configuration"),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), "other"),
        (asyncpg.ClientConfigurationError(SECRET), "configuration"),
        (asyncpg.InterfaceError(SECRET), "disconnected"),
        (asyncpg.CannotConnectNowError(SECRET), "unavailable"),
        (asyncpg.AdminShutdownError(SECRET), "disconnected"),
        (asyncpg.QueryCanceledError(SECRET), "timeout"),
        (asyncpg.TooManyConnectionsError(SECRET), "too_many_connections"),
        (asyncpg.InvalidAuthorizationSpecificationError(SECRET), "authentication"),
        (asyncpg.InsufficientPrivilegeError(SECRET), "configuration"),
        (asyncpg.ProtocolViolationError(SECRET), "other"),
        (asyncpg.ProtocolViolationError(f"server login has been failing {SECRET}"), "unavailable"),
        (asyncpg.DiskFullError(SECRET), "other"),
        (KeyError(SECRET), "other"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_are_explained_in_our_own_words(error: Exception, expected: ProbeFailure) -> None:
    """Each error has a reason of the closed set, and nothing of its own text gets through."""
    reason, text = explain(error)
    assert reason == expected
    assert SECRET not in text
    assert type(error).__name__ in text
