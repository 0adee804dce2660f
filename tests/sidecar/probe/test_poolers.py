# SPDX-License-Identifier: Apache-2.0
"""Behind pgbouncer the probe leaves out the values that pgbouncer hides, and changes no server connection."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.probed_server import Bouncer, ProbedServer, connect, count_sessions, eventually_equal
from tests.support.running_probe import (
    exposition,
    running,
    scenario,
    target,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.requires("pgbouncer")
@scenario
async def test_behind_pgbouncer_what_it_hides_is_absent(
    server: ProbedServer, bouncer: Callable[..., Bouncer], caplog: pytest.LogCaptureFixture
) -> None:
    """Through a pooler the probe reads the server's values; those that the pooler hides are absent and logged once."""
    pooler = bouncer()
    admin = await server.connect(application="admin")
    await admin.execute("ALTER ROLE watcher SET idle_in_transaction_session_timeout = '90s'")
    app = await connect(pooler.dsn("app"))
    await app.execute("BEGIN")
    async with running(target(pooler.dsn())) as runner:
        for _ in range(3):
            await runner.probe_again()
        seen = runner.server
        assert seen.behind_pooler
        assert seen.application_connections is None
        assert seen.idle_session_timeout_seconds is None
        assert seen.idle_in_transaction_session_timeout_seconds == 90.0
        assert seen.max_connections == 20
        assert seen.connections["idle_in_transaction"] == 1
        assert await count_sessions(admin) == sum(seen.connections.values())
        assert exposition(runner.probe.status)["behind_pooler", ()] == 1.0
    assert len([record for record in caplog.records if "behind a connection pooler" in record.message]) == 1
    async with running(target(server.dsn("watcher"))) as runner:
        assert not runner.server.behind_pooler
    await admin.execute("ALTER ROLE watcher RESET ALL")


@pytest.mark.requires("pgbouncer")
@scenario
async def test_nothing_is_left_on_the_poolers_server_connection(
    server: ProbedServer, bouncer: Callable[..., Bouncer]
) -> None:
    """An application that gets the server connection after a probe finds its settings unchanged."""
    pooler = bouncer(default_pool_size=1)
    settings = "SELECT pg_backend_pid(), current_setting('default_transaction_read_only'), "
    settings += "current_setting('transaction_read_only'), current_setting('statement_timeout')"
    app = await connect(pooler.dsn())
    before = await app.fetchrow(settings)
    async with running(target(pooler.dsn())) as runner:
        for _ in range(2):
            await runner.probe_again()
            assert await app.fetchrow(settings) == before
        assert runner.probe.status.probes == 3
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
    """Each refusal has its own reason, although most have the same SQLSTATE; the admin console is refused."""
    async with running(target(bouncer(**options).dsn(**dsn))) as runner:
        assert not runner.probe.status.is_up
    if "statement mode" in expected and version("asyncpg") < "0.32":
        expected = "disconnected: "  # older versions lose the error that comes before the close
    assert f"database 'orders': {expected}" in caplog.text


@pytest.mark.requires("pgbouncer")
@scenario
async def test_pgbouncer_without_a_server_or_a_free_connection(
    server: ProbedServer, bouncer: Callable[..., Bouncer]
) -> None:
    """A probe fails if the pooler has no free connection or no server, and succeeds again after either."""
    pooler = bouncer(default_pool_size=1, server_login_retry=1, server_connect_timeout=1)
    app = await connect(pooler.dsn())
    async with running(target(pooler.dsn(), timeout_seconds=5.0)) as runner:
        await app.execute("BEGIN")
        status = await runner.probe_again()
        assert {"timeout": 1} == status.failures
        await app.execute("COMMIT")
        await runner.probe_again()
        assert runner.server.max_connections == 20
        await asyncio.to_thread(server.stop)
        status = await runner.probe_again()
        assert not status.is_up
    server.start()
    async with running(target(pooler.dsn(), timeout_seconds=5.0)) as runner:

        async def is_up() -> bool:
            return (await runner.probe_again()).is_up

        # pgbouncer waits before it connects to the server again.
        await eventually_equal(is_up, expected=True, poll_seconds=0.1)
        assert runner.server.max_connections == 20
