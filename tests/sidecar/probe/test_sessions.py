# SPDX-License-Identifier: Apache-2.0
"""What the server says of each held connection: of the right session, or nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, get_args

import pytest
from sqlalchemy.exc import DBAPIError

from sqlalchemy_pool_exporter import label
from sqlalchemy_pool_exporter.held_connections import Blocker, HeldConnection, held_connections
from sqlalchemy_pool_exporter.metrics import PROBED_POOL_METRICS, HeldState
from sqlalchemy_pool_exporter.segment.held import Held
from sqlalchemy_pool_exporter.sidecar.probe import sessions
from sqlalchemy_pool_exporter.sidecar.probe.families import pool_families
from sqlalchemy_pool_exporter.sidecar.probe.probe import ProbeStatus
from sqlalchemy_pool_exporter.sidecar.probe.sessions import Sessions
from tests.support.probed_application import Application
from tests.support.probed_server import SECRET, connect, eventually_equal
from tests.support.running_probe import running, scenario, target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from tests.support.probed_server import Bouncer, ProbedServer


@pytest.fixture
def application(tmp_path: Path, server: ProbedServer) -> Iterator[Application]:
    """An application; at its end the server ends all sessions, so no statement goes on."""
    application = Application(tmp_path)
    yield application
    server.start()
    asyncio.run(_end_sessions(server))
    application.close()


async def _end_sessions(server: ProbedServer) -> None:
    admin = await server.connect()
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datid IS NOT NULL"
    )
    await admin.close()


def states(records: list[HeldConnection]) -> list[HeldState]:
    return [one.server_state for one in records]


def pid_of(connection: Connection) -> int:
    """Return the process that serves a connection; this begins a transaction."""
    pid: int = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return pid


async def waiting(server: ProbedServer, event: str, number: int = 1) -> None:
    """Wait until so many sessions wait for an event."""
    admin = await server.connect()
    await eventually_equal(
        lambda: admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = $1 AND state = 'active'", event
        ),
        number,
    )


@scenario
async def test_what_a_held_connection_does(server: ProbedServer, application: Application) -> None:
    """A transaction left open, a slow statement and a session that does nothing are told apart."""
    engine = application.pool(server.dsn("app"))
    with label("GET /pay"):
        in_transaction = application.checkout(engine)
    pid = pid_of(in_transaction)
    failed = application.checkout(engine)
    with pytest.raises(DBAPIError):
        failed.exec_driver_sql("SELECT 1/0")
    slow = application.checkout(engine)
    application.checkout(engine)  # and forgets it
    application.execute(slow, "SELECT pg_sleep(600)")
    await waiting(server, "Timeout")
    async with running(target(server.dsn("watcher"))) as runner:
        status = runner.probe.status
        records = application.held(status)
        assert ["idle_in_transaction", "idle_in_transaction", "active", "idle"] == states(records)
        first, _, third, last = records
        assert (pid, "orders", "GET /pay", "Client:ClientRead") == (
            first.server_pid,
            first.database,
            first.label,
            first.wait_event,
        )
        assert first.site.startswith("tests.support.probed_application:Application.checkout:")
        assert "Timeout:PgSleep" == third.wait_event
        assert None is last.transaction_seconds
        for one in (first, third):
            assert one.transaction_seconds is not None
            assert one.statement_seconds is not None
            assert one.asked_seconds_ago is not None
            assert one.held_seconds > one.transaction_seconds >= one.statement_seconds
        assert {
            ("orders", state): float(states(records).count(state)) for state in get_args(HeldState)
        } == shown(application, status)
        # A transaction goes on; what was said of it does not change before the next probe.
        in_transaction.rollback()
        assert "idle_in_transaction" == application.held(status)[0].server_state
        await runner.probe_again()
        assert "idle" == application.held(runner.probe.status)[0].server_state


def shown(application: Application, *statuses: ProbeStatus) -> dict[tuple[str, ...], float]:
    """Return the metric by its labels, as declared."""
    servers = [status.server_side(time.monotonic()) for status in statuses]
    families = list(pool_families(servers, application.fleet))
    (metric,) = PROBED_POOL_METRICS
    assert {metric.name} >= {family.name for family in families}
    samples = [sample for family in families for sample in family.samples]
    assert all(("pool", *metric.labels) == tuple(sample.labels) for sample in samples)
    return {tuple(sample.labels.values()): sample.value for sample in samples}


@scenario
async def test_who_blocks_whom(server: ProbedServer, application: Application) -> None:
    """A wait for a lock names its blockers: a connection of any of our pools, with its holder, or one of others."""
    orders, billing = application.pool(server.dsn("app")), application.pool(server.dsn("app"), "billing")
    foreign = await server.connect(application="psql")
    await foreign.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
    bill = application.checkout(billing)
    bill_pid = pid_of(bill)
    bill.exec_driver_sql("SELECT pg_advisory_xact_lock(2)")
    with billing.connect() as returned:
        returned_pid = pid_of(returned)
        returned.exec_driver_sql("SELECT pg_advisory_lock(3)")  # the session keeps it in the pool
    for lock in (1, 2, 3):
        application.execute(application.checkout(orders), f"SELECT pg_advisory_xact_lock({lock})")
        await waiting(server, "Lock", lock)
    async with (
        running(target(server.dsn("watcher"))) as runner,
        running(target(server.dsn("watcher"), pools=("billing",))) as other,
    ):
        # Two databases of the configuration are on one server.
        billed, *waits = application.held(runner.probe.status, other.probe.status)
        assert "idle_in_transaction" == billed.server_state
        assert ["waiting_for_lock"] * 3 == states(waits)
        assert {"Lock:advisory"} == {one.wait_event for one in waits}
        ours = {"pool": "billing", "worker": billed.worker, "pid": billed.pid}
        assert [
            (Blocker(foreign.get_server_pid(), "idle_in_transaction", "psql"),),
            (Blocker(bill_pid, "idle_in_transaction", "unnamed", site=billed.site, **ours),),
            (Blocker(returned_pid, "idle", "unnamed", **ours),),
        ] == [one.blocked_by for one in waits]
        assert () == billed.blocked_by
        assert "Application.checkout" in billed.site


@scenario
async def test_a_long_queue_asks_for_few_blockers(
    server: ProbedServer, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those that wait longest ask which sessions block them; the others wait for a lock all the same."""
    monkeypatch.setattr(sessions, "_MOST_WAITING", 2)
    engine = application.pool(server.dsn("app"))
    foreign = await server.connect()
    await foreign.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
    for number in range(1, 4):
        application.execute(application.checkout(engine), "SELECT pg_advisory_xact_lock(1)")
        await waiting(server, "Lock", number)
    async with running(target(server.dsn("watcher"))) as runner:
        records = application.held(runner.probe.status)
        assert ["waiting_for_lock"] * 3 == states(records)
        first, second, third = (tuple(blocker.server_pid for blocker in one.blocked_by) for one in records)
        assert (foreign.get_server_pid(),) == first
        assert first[0] in second
        assert () == third


@scenario
async def test_of_many_sessions_those_that_do_something_are_read(
    server: ProbedServer, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server with too many sessions those that have been idle for the shortest time are left out."""
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 2)
    engine = application.pool(server.dsn("app"))
    first, second, third = (application.checkout(engine) for _ in range(3))
    pid_of(third)
    first.exec_driver_sql("SELECT 1")
    first.rollback()
    second.exec_driver_sql("SELECT 1")
    second.rollback()
    async with running(target(server.dsn("watcher"))) as runner:
        assert ["idle", "unknown", "idle_in_transaction"] == states(application.held(runner.probe.status))


@scenario
async def test_what_a_role_may_not_see_is_unknown(server: ProbedServer, application: Application) -> None:
    """A role without pg_monitor knows the sessions of its own user alone."""
    ours, others = application.pool(server.dsn("app")), application.pool(server.dsn("stranger"), "strange")
    pid_of(application.checkout(ours))
    pid_of(application.checkout(others))
    database = target(server.dsn("app"), pools=("orders", "strange"))
    async with running(database) as runner:
        assert ["idle_in_transaction", "unknown"] == states(application.held(runner.probe.status))
        found = shown(application, runner.probe.status)
        assert (1.0, 0.0) == (found["orders", "idle_in_transaction"], found["orders", "unknown"])
        assert (0.0, 1.0) == (found["strange", "idle_in_transaction"], found["strange", "unknown"])


@pytest.mark.requires("pgbouncer")
@pytest.mark.parametrize("probe_too", [True, False])
@scenario
async def test_behind_a_pooler_it_is_unknown(
    server: ProbedServer, application: Application, bouncer: Callable[..., Bouncer], probe_too: bool
) -> None:
    """A pool behind pgbouncer has process ids that pgbouncer makes up: nothing is known, whatever the probe sees."""
    pooler = bouncer()
    direct = application.pool(server.dsn("app"), "direct")
    pid_of(application.checkout(direct))
    pooled = application.pool(pooler.dsn("app"))
    pid_of(application.checkout(pooled))
    dsn = pooler.dsn() if probe_too else server.dsn("watcher")
    async with running(target(dsn, pools=("orders", "direct"))) as runner:
        assert runner.server.behind_pooler == probe_too
        expected = "unknown" if probe_too else "idle_in_transaction"
        assert [expected, "unknown"] == states(application.held(runner.probe.status))


@scenario
async def test_what_is_too_old_is_unknown(server: ProbedServer, application: Application) -> None:
    """A checkout after the probe is unknown until the next one, and all are once the next one is overdue."""
    engine = application.pool(server.dsn("app"))
    pid_of(application.checkout(engine))
    with engine.connect() as before:
        pid_of(before)
    async with running(target(server.dsn("watcher"), interval_seconds=20.0)) as runner:
        status = runner.probe.status
        assert status.completed_at is not None
        pid_of(application.checkout(engine))  # of a connection that the probe saw idle
        assert ["idle_in_transaction", "unknown"] == states(application.held(status))
        found = shown(application, status)
        assert (1.0, 1.0) == (found["orders", "idle_in_transaction"], found["orders", "unknown"])
        expires = status.completed_at + 20.0 + 15.0
        assert "idle_in_transaction" == application.held(status, now=expires)[0].server_state
        late = application.held(status, now=expires + 0.1)
        assert ["unknown", "unknown"] == states(late)
        assert (None, "orders") == (late[0].asked_seconds_ago, late[0].database)
        await runner.probe_again()
        assert ["idle_in_transaction"] * 2 == states(application.held(runner.probe.status))
        # A probe that fails takes nothing away before that.
        server.stop()
        failed = await runner.probe_again()
        assert not failed.is_up
        assert ["idle_in_transaction"] * 2 == states(application.held(failed))
        assert failed.next_due_at < time.monotonic() + 35.0


@scenario
async def test_after_a_restart_the_old_connections_are_unknown(
    server: ProbedServer, application: Application
) -> None:
    """A connection whose session is gone is unknown, although the application still holds it."""
    engine = application.pool(server.dsn("app"))
    pid_of(application.checkout(engine))
    async with running(target(server.dsn("watcher"))) as runner:
        assert ["idle_in_transaction"] == states(application.held(runner.probe.status))
        server.stop()
        await runner.probe_again()
        server.start()
        await runner.probe_again()
        assert runner.probe.status.is_up
        assert ["unknown"] == states(application.held(runner.probe.status))


@scenario
async def test_pools_of_no_probed_database_are_absent(server: ProbedServer, application: Application) -> None:
    """The metric has the pools of probed databases, at zero if they hold nothing and unknown if the probe fails."""
    application.pool(server.dsn("app"))
    application.checkout(application.pool(server.dsn("app"), "another"))
    async with running(target(server.dsn("watcher"))) as runner:
        none = {("orders", state): 0.0 for state in get_args(HeldState)}
        assert none == shown(application, runner.probe.status)
    down = ProbeStatus("down", ("another", "gone"))
    expected = {("another", state): float(state == "unknown") for state in get_args(HeldState)}
    assert expected == shown(application, down)
    assert {} == shown(application)


@scenario
async def test_through_a_unix_socket(server: ProbedServer, application: Application) -> None:
    """Connections without a port are known by process and age."""
    dsn = f"postgresql://app:{SECRET}@/postgres?host={server.directory}&port={server.port}"
    pid_of(application.checkout(application.pool(dsn)))
    pid_of(application.checkout(application.pool(server.dsn("app"), "tcp")))
    for probed in (server.dsn("watcher"), dsn.replace("//app", "//watcher")):
        async with running(target(probed, pools=("orders", "tcp"))) as runner:
            assert ["idle_in_transaction"] * 2 == states(application.held(runner.probe.status))


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[int]:
    """Forward connections, so that a server sees other ports; yield the port of the proxy."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    served: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        for each in (writer, far_writer):
            with suppress(ConnectionError):
                await each.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]
        await asyncio.wait(filter(None, served))


@pytest.mark.parametrize(("probe_too", "expected"), [(True, "idle_in_transaction"), (False, "unknown")])
@scenario
async def test_through_a_proxy(
    server: ProbedServer, application: Application, probe_too: bool, expected: HeldState
) -> None:
    """A session with another port than ours is not ours, unless the server sees other ports of the probe, too."""
    async with proxy(server.port) as port:
        through = server.dsn("app").replace(f":{server.port}/", f":{port}/")
        engine = application.pool(through)
        connection = await asyncio.to_thread(application.checkout, engine)
        await asyncio.to_thread(pid_of, connection)
        dsn = through.replace("//app", "//watcher") if probe_too else server.dsn("watcher")
        async with running(target(dsn)) as runner:
            found = states(application.held(runner.probe.status))
        await asyncio.to_thread(connection.invalidate)
    assert [expected] == found


ROW = dict.fromkeys(
    ("state_seconds", "transaction_seconds", "statement_seconds", "wait_event", "statement", "blocked_by")
) | {"pid": 41, "state": "idle", "wait_event_type": None, "application": "", "age": 60.0, "client_port": 4000}
ASKED: dict[str, Any] = {"asked_at": 1000.0, "answered_at": 1000.5, "keeps_ports": True}


def served(held: Held, *, age: float = 60.0, port: int | None = 4000, keeps_ports: bool = True) -> bool:
    """Return whether a connection is taken for the one of a session of process 41, asked for from 1000 to 1000.5."""
    row: dict[str, Any] = {**ROW, "age": age, "client_port": port}
    found = Sessions.of([row], **{**ASKED, "keeps_ports": keeps_ports})
    return found.serving(held) is not None


OURS = Held(990.0, "other", 0.0, 0.0, 0.0, connected_at=940.0, server_pid=41, client_port=4000)


@pytest.mark.parametrize(
    ("connected_at", "age", "expected"),
    [
        (940.0, 60.0, True),
        (940.0, 61.9, True),  # authenticating took 1.9 s
        (940.0, 89.0, True),
        (940.0, 92.0, False),  # began long before: another server
        (940.0, 58.1, True),  # SQLAlchemy's time, from before the connect
        (940.0, 57.0, False),  # a later session got the number
        (940.0, 10.0, False),
        (940.0, -5.0, False),  # the server's clock was set back
        (-99_000.0, 100_005.0, True),  # two clocks drift apart
        (-99_000.0, 99_995.0, True),
        (-99_000.0, 99_900.0, False),
        (-1.0, 1001.0, True),
    ],
)
def test_a_number_that_is_used_again(connected_at: float, age: float, expected: bool) -> None:
    """A session is that of a connection only if it began when the connection was opened."""
    assert expected == served(OURS._replace(connected_at=connected_at), age=age)


@pytest.mark.parametrize(
    ("ours", "port", "keeps_ports", "expected"),
    [
        (4000, 4000, True, True),
        (4000, 4001, True, False),
        (4000, 4001, False, True),
        (0, 4001, True, True),  # a driver that does not tell it
        (4000, -1, True, False),  # that one came through a Unix socket
        (0, -1, True, True),
        (0, None, False, False),  # serves no client
    ],
)
def test_ports(ours: int, port: int | None, keeps_ports: bool, expected: bool) -> None:
    """A session with another port is not ours, where ports reach the server as they are."""
    assert expected == served(OURS._replace(client_port=ours), port=port, keeps_ports=keeps_ports)


@pytest.mark.parametrize(
    ("state", "wait_event_type", "expected"),
    [
        ("active", None, "active"),
        ("active", "IO", "active"),
        ("active", "Lock", "waiting_for_lock"),
        ("fastpath function call", "Lock", "waiting_for_lock"),
        ("idle in transaction (aborted)", "Client", "idle_in_transaction"),
        ("disabled", None, "unknown"),  # track_activities is off
        ("of a later version", "Client", "unknown"),
        (None, None, "unknown"),
    ],
)
def test_states(state: str | None, wait_event_type: str | None, expected: HeldState) -> None:
    """Each of the server's states is one of ours; one that is not known is unknown."""
    found = Sessions.of([{**ROW, "state": state, "wait_event_type": wait_event_type}], **ASKED)
    session = found.get(41)
    assert session is not None
    assert expected == session.state


def test_other_processes() -> None:
    """A connection of another process, or of one that is not known, has no session."""
    assert not served(OURS._replace(server_pid=42))
    assert not served(OURS._replace(server_pid=0))


@scenario
async def test_a_number_that_another_session_has(server: ProbedServer, application: Application) -> None:
    """A row with the number of another live session, as after a restart of the server, is unknown."""
    engine = application.pool(server.dsn("app"))
    pid_of(application.checkout(engine))
    other = await connect(server.dsn("app"))
    async with running(target(server.dsn("watcher"))) as runner:
        (record,) = application.held(runner.probe.status)
        assert "idle_in_transaction" == record.server_state
        side = runner.probe.status.server_side(time.monotonic())
        assert side.sessions is not None
        ours = dataclasses.replace(
            side.sessions, known={record.server_pid: side.sessions.known[other.get_server_pid()]}
        )
        side = dataclasses.replace(side, sessions=ours)
        (record,) = held_connections(application.fleet, now=time.monotonic(), servers=[side])
        assert "unknown" == record.server_state


@scenario
async def test_statements_stay_on_the_server(server: ProbedServer, application: Application) -> None:
    """The text of statements is read only if the configuration says so, and shown without literals."""
    engine = application.pool(server.dsn("app"))
    connection = application.checkout(engine)
    connection.exec_driver_sql("SELECT 'topsecret' AS word, 42")
    began = server.log.stat().st_size
    async with running(target(server.dsn("watcher"))) as runner:
        assert [""] == [one.statement for one in application.held(runner.probe.status)]
        assert "topsecret" not in repr(runner.probe.status)
        asked = server.log.read_text()[began:]
        assert "pg_blocking_pids" in asked
        assert "left(query" not in asked
    async with running(target(server.dsn("watcher"), statements=True)) as runner:
        assert ["SELECT ? AS word, ?"] == [one.statement for one in application.held(runner.probe.status)]
        assert "topsecret" not in repr(application.held(runner.probe.status))
