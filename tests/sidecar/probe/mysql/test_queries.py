# SPDX-License-Identifier: Apache-2.0
"""The probe reports what a real MariaDB counts."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pymysql
import pytest

from sqlalchemy_pool_exporter.sidecar.probe.mysql.queries import Product
from sqlalchemy_pool_exporter.sidecar.probe.server_state import APPLICATION_NAME
from tests.support import mariadb
from tests.support.probed_server import SECRET, eventually_equal
from tests.support.running_probe import exposition, running, scenario, target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.mariadb import MariaDB

pytest.importorskip("asyncmy")
pytestmark = [pytest.mark.newest, pytest.mark.requires(*mariadb.PROGRAMS)]


@pytest.fixture
def sessions(maria: MariaDB) -> Iterator[list[Any]]:
    """Return a list of connections, which are closed at the end."""
    opened: list[Any] = []
    yield opened
    for one in opened:
        with suppress(pymysql.Error):
            one.close()


def run_in_thread(connection: Any, statement: str) -> threading.Thread:
    """Run a statement that lasts until its session is ended."""

    def run() -> None:
        with suppress(pymysql.Error, OSError, AttributeError):
            connection.cursor().execute(statement)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@scenario
async def test_counts_what_the_server_counts(maria: MariaDB, sessions: list[Any]) -> None:
    """Sessions by state, user and program equal those that the test opened, and the server's Threads_connected."""
    sessions += [maria.connect(program_name="web") for _ in range(3)]
    sessions += [maria.connect(program_name="worker"), maria.connect()]
    sessions[3].cursor().execute("SELECT * FROM item WHERE id = 1 FOR UPDATE")  # and no commit
    thread = run_in_thread(sessions[4], "SELECT SLEEP(600)")
    with maria.admin() as admin:

        def count_administrators() -> int:
            admin.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'root'")
            return int(admin.fetchone()[0])

        def count_transactions() -> int:
            admin.execute("SELECT COUNT(*) FROM information_schema.innodb_trx")
            return int(admin.fetchone()[0])

        def running_now() -> int:
            admin.execute(
                "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'"
            )
            return int(admin.fetchone()[0])

        await eventually_equal(running_now, 1)
        await eventually_equal(count_administrators, 1)  # those of before are gone
        # The server makes the list anew only if nobody has asked for it for 0.1 s.
        await eventually_equal(count_transactions, 1, poll_seconds=0.2)
        async with running(target(maria.dsn())) as runner:
            seen = runner.server
            admin.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
            assert int(admin.fetchone()[1]) == sum(seen.connections.values())
            assert {"active": 1, "idle": 5, "idle_in_transaction": 1, "starting": 0} == seen.connections
            programs = {"web": 3, "worker": 1, "unnamed": 2, APPLICATION_NAME: 1, "other": 0}
            assert programs == seen.application_connections
            assert {"app": 5, "root": 1, "watcher": 1, "other": 0} == seen.user_connections
            assert 1 == seen.threads_running
            shown = exposition(runner.probe.status)
            assert (5.0, 1.0) == (shown["user_connections", ("app",)], shown["threads_running", ()])
    maria.end_sessions()
    await asyncio.to_thread(thread.join)


@scenario
async def test_reads_the_limits_and_timeouts(maria: MariaDB) -> None:
    """Limits and timeouts are the server's variables, at each probe; a timeout that is off is absent."""
    maria.set(max_connections=17, wait_timeout=600, interactive_timeout=900)
    async with running(target(maria.dsn())) as runner:
        assert (17, 0) == (runner.server.max_connections, runner.server.reserved_connections)
        assert 600.0 == runner.server.idle_session_timeout_seconds
        assert 900.0 == runner.server.interactive_timeout_seconds
        assert runner.server.idle_in_transaction_session_timeout_seconds is None
        assert 17 == runner.server.limits.connections
        maria.set(wait_timeout=300, idle_transaction_timeout=30)
        await runner.probe_again()
        assert 300.0 == runner.server.idle_session_timeout_seconds
        assert 30.0 == runner.server.idle_in_transaction_session_timeout_seconds


@pytest.mark.parametrize("setting", ["read_only", "tx_read_only"])
@scenario
async def test_a_server_that_refuses_writes(maria: MariaDB, setting: str) -> None:
    """The server is read-only while a setting makes it so, and the setting is named."""
    async with running(target(maria.dsn())) as runner:
        assert not runner.server.facts.is_read_only
        maria.set(**{setting: 1})
        status = await runner.probe_again()
        assert 1.0 == exposition(status)["read_only", ()]
        health = status.server_side(0.0).health
        assert health is not None
        assert (True, False, setting) == (
            health.refuses_writes,
            health.is_in_recovery,
            health.read_only_setting,
        )


@scenario
async def test_measures_the_longest_idle_in_transaction(maria: MariaDB, sessions: list[Any]) -> None:
    """The longest duration is that of the session which sleeps in a transaction; without one it is 0."""
    async with running(target(maria.dsn())) as runner:
        assert 0.0 == runner.server.longest_idle_in_transaction_seconds
        sessions.append(maria.connect())
        began = time.monotonic()
        sessions[0].cursor().execute("UPDATE item SET amount = 3 WHERE id = 1")
        await asyncio.sleep(1.2)
        await runner.probe_again()
        longest = runner.server.longest_idle_in_transaction_seconds
        assert longest is not None
        assert 1.1 <= longest <= time.monotonic() - began + 0.1


@scenario
async def test_an_account_without_process_shows_what_is_hidden_as_unknown(
    maria: MariaDB, sessions: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Without the privilege PROCESS all others are unknown, no state is 0, and the log says once what to grant."""
    sessions += [maria.connect() for _ in range(2)]
    async with running(target(maria.dsn("stranger"))) as runner:
        assert {"idle": 1, "unknown": 2} == runner.server.connections
        assert {"stranger": 1, "unknown": 2, "other": 0} == runner.server.user_connections
        assert {"unknown": 3, "other": 0} == runner.server.application_connections
        assert runner.server.longest_idle_in_transaction_seconds is None
        assert 20 == runner.server.max_connections
        await runner.probe_again()
    hints = [one.getMessage() for one in caplog.records if "GRANT" in one.getMessage()]
    expected = (
        "the state of 2 sessions is unknown: they are hidden from the account: GRANT PROCESS ON *.* to it"
    )
    assert [f"database 'orders': {expected}"] == hints


@scenario
async def test_without_performance_schema_the_programs_are_unknown(one_maria: MariaDB) -> None:
    """A server that keeps no attributes of its clients is probed as well; each program is unknown."""
    one_maria.stop()
    one_maria.start(performance_schema="OFF")
    try:
        with closing(one_maria.connect(program_name="web")):
            async with running(target(one_maria.dsn())) as runner:
                assert {"unknown": 2, "other": 0} == runner.server.application_connections
                assert {"app": 1, "watcher": 1, "other": 0} == runner.server.user_connections
    finally:
        one_maria.stop()


@scenario
async def test_one_server_has_one_identity(maria: MariaDB) -> None:
    """The identity is the same for all accounts, probes and ways to the server; a restart changes it."""
    ways = [
        maria.dsn(),
        maria.dsn("stranger"),
        maria.dsn(scheme="mariadb"),
        maria.dsn(scheme="mysql+asyncmy"),
        f"mysql://watcher:{SECRET}@localhost/?unix_socket={maria.socket}",
    ]
    found = set()
    for dsn in ways:
        async with running(target(dsn)) as runner:
            for _ in range(2):
                await asyncio.sleep(0.4)
                found.add((await runner.probe_again()).server_side(0.0).identity)
    assert len(found) == 1
    async with running(target(maria.dsn())) as runner:
        before = runner.server.facts
        with maria.admin() as admin:
            admin.execute("SELECT UNIX_TIMESTAMP() - variable_value FROM information_schema.global_status "
                          "WHERE variable_name = 'UPTIME'")  # fmt: skip
            assert before.start_time == admin.fetchone()[0]
        await asyncio.to_thread(maria.stop)
        await asyncio.sleep(1.1)  # the server tells its start in seconds
        await asyncio.to_thread(maria.start)

        async def is_up() -> bool:
            return (await runner.probe_again()).is_up

        await eventually_equal(is_up, expected=True)
        assert runner.server.facts.start_time > before.start_time
        assert runner.server.facts.identity != before.identity


@scenario
async def test_the_servers_zone_does_not_change_ages(one_maria: MariaDB) -> None:
    """Ages are right where sessions have another time zone than the system."""
    one_maria.stop()
    one_maria.start(default_time_zone="+07:00")
    try:
        with closing(one_maria.connect()) as connection:
            connection.cursor().execute("UPDATE item SET amount = 3 WHERE id = 1")
            number = connection.thread_id()
            async with running(target(one_maria.dsn())) as runner:
                sessions = runner.server.sessions
                session = None if sessions is None else sessions.get(number)
                assert session is not None
                assert "idle_in_transaction" == session.state
                assert session.transaction_seconds is not None
                assert 0.0 <= session.transaction_seconds < 60.0
    finally:
        one_maria.stop()


@pytest.mark.parametrize(
    ("version", "is_mariadb", "numbers"),
    [
        ("10.11.6-MariaDB-0+deb12u1", True, (10, 11, 6)),
        ("5.5.5-10.4.34-MariaDB-log", True, (10, 4, 34)),
        ("8.4.3", False, (8, 4, 3)),
        ("8.0.36-0ubuntu0.22.04.1", False, (8, 0, 36)),
        ("5.7.44-log", False, (5, 7, 44)),
        ("of the future", False, (0,)),
    ],
)
def test_products(version: str, is_mariadb: bool, numbers: tuple[int, ...]) -> None:
    """The product and its version are read from the version that the server reports."""
    assert Product(is_mariadb, numbers) == Product.of(version)


def test_each_product_has_its_own_queries() -> None:
    """MySQL's newer list of processes needs performance_schema; time limits and lock waits are written differently."""
    new, old = Product(is_mariadb=False, version=(8, 4, 3)), Product(is_mariadb=False, version=(5, 7, 44))
    maria = Product(is_mariadb=True, version=(10, 11, 6))
    on, off = {"performance_schema": "ON"}, {"performance_schema": "OFF"}
    assert "performance_schema.processlist" in new.processes(on, statements=False)
    for product, variables in ((new, off), (old, on), (maria, on)):
        assert "information_schema.processlist" in product.processes(variables, statements=False)
    assert "performance_schema.data_lock_waits" in new.blockers
    assert "information_schema.innodb_lock_waits" in old.blockers
    assert "information_schema.innodb_lock_waits" in maria.blockers
    assert "SELECT /*+ MAX_EXECUTION_TIME(1500) */ 1" == new.limited("\nSELECT 1\n", 1.5)
    assert "SET STATEMENT max_statement_time=1.500000 FOR SELECT 1" == maria.limited("\nSELECT 1\n", 1.5)
