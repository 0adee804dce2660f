# SPDX-License-Identifier: Apache-2.0
"""What a MariaDB says of each held connection: of the right session, or nothing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.segment.held import Held
from sqlalchemy_pool_exporter.sidecar.probe.families import pool_families
from sqlalchemy_pool_exporter.sidecar.probe.mysql.sessions import (
    Arrivals,
    Process,
    Transaction,
    sessions_of,
)
from sqlalchemy_pool_exporter.sidecar.probe.sessions import Began
from tests.support import mariadb
from tests.support.probed_application import Application
from tests.support.probed_server import eventually_equal
from tests.support.running_probe import running, scenario, target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from tests.support.mariadb import MariaDB

pytest.importorskip("asyncmy")
pytestmark = [pytest.mark.newest, pytest.mark.requires(*mariadb.PROGRAMS)]


@pytest.fixture
def application(tmp_path: Path, maria: MariaDB) -> Iterator[Application]:
    """An application; at its end the server ends all sessions, so no statement goes on."""
    application = Application(tmp_path)
    yield application
    maria.start()
    maria.end_sessions()
    application.close()


def states(application: Application, runner: object) -> list[str]:
    return [one.server_state for one in application.held(runner.probe.status)]  # type: ignore[attr-defined]


def id_of(connection: Connection) -> int:
    number: int = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
    return number


async def waiting(maria: MariaDB, number: int) -> None:
    """Wait until so many transactions wait for a lock; that the server has its list anew, nobody may ask for 0.1 s."""
    with maria.admin() as admin:

        def count() -> int:
            admin.execute("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'")
            return int(admin.fetchone()[0])

        await eventually_equal(count, number, poll_seconds=0.2)


@scenario
async def test_what_a_held_connection_does(maria: MariaDB, application: Application) -> None:
    """A transaction left open, a slow statement, a wait for a lock and a session that does nothing are told apart."""
    engine = application.pool(maria.url("pymysql"), pool_size=10)
    holding = application.checkout(engine)
    holding_id = id_of(holding)
    holding.exec_driver_sql("UPDATE item SET amount = 5 WHERE id = 1")
    blocked, slow = application.checkout(engine), application.checkout(engine)
    application.checkout(engine)  # and forgets it
    application.execute(slow, "SELECT SLEEP(600)")
    application.execute(blocked, "UPDATE item SET amount = 6 WHERE id = 1")
    await waiting(maria, 1)
    async with running(target(maria.dsn(), statements=True)) as runner:
        records = application.held(runner.probe.status)
        assert ["idle_in_transaction", "waiting_for_lock", "active", "idle"] == [
            one.server_state for one in records
        ]
        first, second, third, last = records
        assert (holding_id, "orders") == (first.server_pid, first.database)
        assert "Lock:row" == second.wait_event
        assert [(holding_id, "idle_in_transaction", "orders")] == [
            (one.server_pid, one.state, one.pool) for one in second.blocked_by
        ]
        assert ("UPDATE item SET amount = ? WHERE id = ?", "SELECT SLEEP(?)") == (
            second.statement,
            third.statement,
        )
        assert third.statement_seconds is not None
        assert last.transaction_seconds is None
        families = pool_families([runner.probe.status.server_side(time.monotonic())], application.fleet)
        shown = {sample.labels["server_state"]: sample.value for one in families for sample in one.samples}
        assert {
            "active": 1,
            "idle_in_transaction": 1,
            "idle": 1,
            "waiting_for_lock": 1,
            "unknown": 0,
        } == shown
        holding.rollback()
        await asyncio.sleep(0.2)  # the server keeps its list of transactions for 0.1 s
        await runner.probe_again()
        assert "idle" == application.held(runner.probe.status)[0].server_state


@scenario
async def test_statements_are_not_read_unless_asked_for(maria: MariaDB, application: Application) -> None:
    """Without the option no text of a statement leaves the server."""
    slow = application.checkout(application.pool(maria.url("pymysql")))
    application.execute(slow, "SELECT SLEEP(600)")
    async with running(target(maria.dsn())) as runner:
        sessions = runner.server.sessions
        assert sessions is not None
        assert [None] == [known.statement for known in sessions.known.values()]


@scenario
async def test_an_account_without_process(maria: MariaDB, application: Application) -> None:
    """A session that is hidden from the probe's account is unknown."""
    application.checkout(application.pool(maria.url("pymysql")))
    async with running(target(maria.dsn("stranger"))) as runner:
        assert ["unknown"] == states(application, runner)


@scenario
async def test_through_a_unix_socket(maria: MariaDB, application: Application) -> None:
    """Neither side has a port where the pool or the probe use the server's socket."""
    url = (
        maria.url("pymysql").replace(f"127.0.0.1:{maria.port}", "localhost") + f"?unix_socket={maria.socket}"
    )
    application.checkout(application.pool(url))
    through_socket = maria.dsn() + f"?unix_socket={maria.socket}"
    for dsn in (maria.dsn(), through_socket):
        async with running(target(dsn)) as runner:
            assert ["idle"] == states(application, runner)


@scenario
async def test_after_a_restart_the_numbers_come_back(maria: MariaDB, application: Application) -> None:
    """A session of a restarted server, or of another one, is not taken for a connection that has its number."""
    connection = application.checkout(application.pool(maria.url("pymysql")))
    number, connected_at = id_of(connection), time.monotonic()
    async with running(target(maria.dsn())) as runner:
        assert ["idle"] == states(application, runner)
    await asyncio.to_thread(maria.stop)
    await asyncio.sleep(6.0)  # more than the tolerance for the clocks of both sides
    await asyncio.to_thread(maria.start)
    session = maria.connect()
    while session.thread_id() < number:
        session.close()
        session = maria.connect()
    assert number == session.thread_id()
    async with running(target(maria.dsn())) as runner:
        assert ["unknown"] == states(application, runner)
        sessions = runner.server.sessions
        assert sessions is not None
        assert sessions.get(number) is not None
        # Also if the driver does not tell the connection's port.
        assert sessions.serving(held(number, connected_at)) is None
        assert sessions.serving(held(number, time.monotonic())) is not None
    session.close()


def held(number: int, connected_at: float, client_port: int = 0) -> Held:
    """Return a connection of a pool."""
    return Held(0.0, "other", 0.0, 0.0, 0.0, connected_at, number, client_port)


def process(number: int, host: str = "10.0.0.7:4000", command: str = "Sleep", state: str = "") -> Process:
    return Process(number, "app", host, command, 2.0, state, None)


def test_when_sessions_began() -> None:
    """A session that was not there at the last probe began since; one that was keeps its time; a restart forgets."""
    arrivals = Arrivals()

    def note(asked_at: float, *ids: int, start_time: float = 1.0, uptime: float = 50.0) -> dict[int, Began]:
        return dict(
            arrivals.note(
                ids, uptime=uptime, start_time=start_time, asked_at=asked_at, answered_at=asked_at + 0.5
            )
        )

    first = Began(49.0, 100.5)
    assert {7: first} == note(100.0, 7)
    assert {7: first, 9: Began(100.0, 115.5)} == note(115.0, 7, 9)
    assert {9: Began(100.0, 115.5)} == note(130.0, 9)
    assert {7: Began(130.0, 145.5)} == note(145.0, 7)
    assert {7: Began(154.0, 160.5)} == note(160.0, 7, start_time=150.0, uptime=5.0)


@pytest.mark.parametrize(
    ("host", "client_port", "keeps_ports", "connected_at", "expected"),
    [
        ("10.0.0.7:4000", 4000, True, 105.0, True),
        ("10.0.0.7:4001", 4000, True, 105.0, False),
        ("10.0.0.7:4001", 4000, False, 105.0, True),  # ports are translated on the way
        ("10.0.0.7:4000", 4000, True, 90.0, False),  # before the session can have begun
        ("10.0.0.7:4000", 4000, True, 150.0, False),
        ("::1:4000", 4000, True, 105.0, True),
        ("localhost", 0, True, 105.0, True),
        ("localhost", 4000, True, 105.0, False),
    ],
)
def test_which_session_is_a_connections(
    host: str, client_port: int, keeps_ports: bool, connected_at: float, expected: bool
) -> None:
    """Both sides must agree on when it began and, if both know it, on the client's port."""
    found = sessions_of(
        [process(7, host)],
        {},
        {},
        {},
        {7: Began(100.0, 115.5)},
        asked_at=115.0,
        answered_at=115.5,
        keeps_ports=keeps_ports,
    )
    assert expected == (found.serving(held(7, connected_at, client_port)) is not None)


@pytest.mark.parametrize(
    ("command", "state", "transaction", "expected"),
    [
        ("Sleep", "", None, ("idle", "")),
        ("Sleep", "", Transaction(1.0, waits=False), ("idle_in_transaction", "")),
        ("Query", "Sending data", Transaction(1.0, waits=False), ("active", "")),
        ("Query", "Updating", Transaction(1.0, waits=True), ("waiting_for_lock", "Lock:row")),
        ("Query", "Waiting for table metadata lock", None, ("waiting_for_lock", "Lock:metadata")),
        ("Query", "User lock", None, ("waiting_for_lock", "Lock:other")),
        ("Binlog Dump", "", None, ("active", "")),
    ],
)
def test_states(command: str, state: str, transaction: Transaction | None, expected: tuple[str, str]) -> None:
    """The state is made of the command, what the server's thread does, and InnoDB's transaction."""
    found = sessions_of(
        [process(7, command=command, state=state)],
        {7: transaction} if transaction else {},
        {},
        {},
        {7: Began(0.0, 1.0)},
        asked_at=1.0,
        answered_at=1.0,
        keeps_ports=True,
    )
    session = found.get(7)
    assert session is not None
    assert expected == (session.state, session.wait_event)
