# SPDX-License-Identifier: Apache-2.0
"""The probe reports what a real PostgreSQL counts; rows become a `ServerState`."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from sqlalchemy_pool_exporter.sidecar.probe.queries import summarize
from sqlalchemy_pool_exporter.sidecar.probe.server_state import APPLICATION_NAME, ServerFacts
from tests.support.probed_server import ProbedServer, count_sessions, eventually_equal
from tests.support.running_probe import (
    exposition,
    exposition_text,
    parse,
    running,
    scenario,
    target,
)


@scenario
async def test_counts_what_the_server_counts(server: ProbedServer) -> None:
    """Connections by state and by application equal the sessions that the test opened, and the server's count."""
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
    await eventually_equal(lambda: admin.fetchval(active), 1)

    async with running(target(server.dsn("watcher"))) as runner:
        seen = runner.server
        # This query counts its own session, which is active only during the query, and the probe's, which is idle.
        assert await count_sessions(admin) == sum(seen.connections.values())

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
async def test_counts_only_what_counts_against_max_connections(server: ProbedServer) -> None:
    """WAL senders, parallel workers and the server's own processes are not counted."""
    await server.connect(replication="database", application="standby")
    admin = await server.connect()
    major = int(await admin.fetchval("SHOW server_version_num")) // 10000
    busy = await server.connect(**{"debug_parallel_query" if major >= 16 else "force_parallel_mode": "on"})
    query = asyncio.create_task(busy.execute("SELECT pg_sleep(600)"))
    kinds = "SELECT count(DISTINCT backend_type) FROM pg_stat_activity WHERE backend_type = ANY($1)"
    others = ["walsender", "parallel worker", "autovacuum launcher"]
    await eventually_equal(lambda: admin.fetchval(kinds, others), 3)

    async with running(target(server.dsn("watcher"))) as runner:
        assert {"unnamed": 2, APPLICATION_NAME: 1, "other": 0} == runner.server.application_connections
        assert sum(runner.server.connections.values()) == 3

    query.cancel()
    await asyncio.wait([query])


@scenario
async def test_reads_the_limits_and_timeouts(server: ProbedServer) -> None:
    """Limits equal the server's settings; a timeout that is off, or that this version lacks, is absent."""
    admin = await server.connect()

    async def setting(name: str) -> str | None:
        return await admin.fetchval("SELECT current_setting($1, true)", name)  # type: ignore[no-any-return]

    reserved = int(await setting("superuser_reserved_connections") or 0)
    reserved += int(await setting("reserved_connections") or 0)
    async with running(target(server.dsn("watcher"))) as runner:
        assert runner.server.max_connections == 20
        assert runner.server.reserved_connections == reserved
        assert runner.server.idle_session_timeout_seconds is None
        assert runner.server.idle_in_transaction_session_timeout_seconds is None

    await admin.execute("ALTER ROLE watcher SET idle_in_transaction_session_timeout = '90s'")
    has_idle_session_timeout = await setting("idle_session_timeout") is not None
    if has_idle_session_timeout:
        await admin.execute("ALTER ROLE watcher SET idle_session_timeout = '1h'")
    async with running(target(server.dsn("watcher"))) as runner:
        assert runner.server.idle_session_timeout_seconds == (3600.0 if has_idle_session_timeout else None)
        assert runner.server.idle_in_transaction_session_timeout_seconds == 90.0
    await admin.execute("ALTER ROLE watcher RESET ALL")


@scenario
async def test_measures_the_longest_idle_in_transaction(server: ProbedServer) -> None:
    """The longest duration lies between the server's values before and after the probe; without sessions it is 0."""
    admin = await server.connect()
    age = "SELECT extract(epoch FROM clock_timestamp() - min(state_change))::float8 FROM pg_stat_activity "
    age += "WHERE state LIKE 'idle in transaction%'"
    async with running(target(server.dsn("watcher"))) as runner:
        assert runner.server.longest_idle_in_transaction_seconds == 0.0
        waiting = [await server.connect("app") for _ in range(3)]
        for connection in waiting:
            await connection.execute("BEGIN")
        before = await admin.fetchval(age)
        await runner.probe_again()
        after = await admin.fetchval(age)
        assert runner.server.longest_idle_in_transaction_seconds is not None
        assert before <= runner.server.longest_idle_in_transaction_seconds <= after


@scenario
async def test_an_unprivileged_role_shows_hidden_sessions_as_unknown(
    server: ProbedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without pg_monitor, other users' sessions are unknown, no state is 0, and the log has one warning."""
    others = [await server.connect("app", application="web") for _ in range(2)]
    await others[0].execute("BEGIN")
    await server.connect(replication="true")
    async with running(target(server.dsn("stranger"))) as runner:
        assert {"idle": 1, "unknown": 2} == runner.server.connections
        assert {"web": 2, APPLICATION_NAME: 1, "other": 0} == runner.server.application_connections
        assert runner.server.longest_idle_in_transaction_seconds is None
        assert runner.server.max_connections == 20
        shown = exposition(runner.probe.status)
        assert {"idle": 1.0, "unknown": 2.0} == {
            labels[0]: value for (name, labels), value in shown.items() if name == "connections"
        }

        own = await server.connect("stranger")
        await own.execute("BEGIN")
        await runner.probe_again()
        assert {"idle": 1, "idle_in_transaction": 1, "unknown": 2} == runner.server.connections
        assert runner.server.longest_idle_in_transaction_seconds is not None
    assert [record.message for record in caplog.records if "pg_monitor" in record.message] == [
        "database 'orders': the state of 2 sessions is unknown: it is hidden from the role: GRANT pg_monitor to it"
    ]


@scenario
async def test_application_names_are_untrusted_and_bounded(server: ProbedServer) -> None:
    """For any application name the label is printable and short; the smallest applications are summed as other."""
    names = ['evil"}\n# HELP', "x" * 500, "other", "other", "many", "many", "many", "   "]
    for name in names:
        await server.connect("app", application=name)
    async with running(target(server.dsn("watcher"), application_names_limit=2)) as runner:
        seen = runner.server.application_connections
        assert seen == {"many": 3, "other": 2 + 4}
    async with running(target(server.dsn("watcher"), application_names_limit=50)) as runner:
        seen = runner.server.application_connections
        assert seen is not None
        assert seen["other"] == 2
        assert seen["unnamed"] == 1
        assert all(name.isprintable() and 0 < len(name) <= 64 for name in seen)
        text = exposition_text(runner.probe.status)
        assert len(parse(text)) > 5


FACTS = ServerFacts(
    identity="7391234567890123456@1700000000.123456",
    start_time=1700000000.123456,
    is_in_recovery=False,
    is_read_only=False,
    sees_all_sessions=True,
    is_monitor=True,
    session_settings="",
)
SETTINGS = {"max_connections": 100.0, "superuser_reserved_connections": 3.0}


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
    """Unprintable characters are replaced, long names are cut, and an empty name becomes unnamed."""
    row = {"state": "idle", "application_name": name, "sessions": 1, "idle_in_transaction": None}
    seen = summarize(SETTINGS, [row], FACTS, behind_pooler=False, application_names_limit=5)
    assert {label: 1, "other": 0} == seen.application_connections


def test_an_application_called_other_does_not_hide_the_others() -> None:
    """An application called "other" and the applications beyond the limit are summed in one series."""
    rows = [
        {"state": "idle", "application_name": name, "sessions": n, "idle_in_transaction": None}
        for name, n in (("other", 5), ("a", 3), ("b", 2), ("c", 1))
    ]
    seen = summarize(SETTINGS, rows, FACTS, behind_pooler=False, application_names_limit=2)
    assert {"other": 5 + 2 + 1, "a": 3} == seen.application_connections
    assert {"other": 11} == summarize(
        SETTINGS, rows, FACTS, behind_pooler=False, application_names_limit=0
    ).application_connections


def test_states_the_probe_does_not_know_are_unknown() -> None:
    """A state that is hidden, disabled or of a later version counts as unknown."""
    rows = [
        {"state": state, "application_name": "", "sessions": 1, "idle_in_transaction": None}
        for state in ("disabled", "meditating", None, "starting", "fastpath function call")
    ]
    seen = summarize(SETTINGS, rows, FACTS, behind_pooler=False, application_names_limit=2)
    assert {"unknown": 3, "starting": 1, "fastpath": 1} == seen.connections
