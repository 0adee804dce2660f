# SPDX-License-Identifier: Apache-2.0
"""The probe tells one server from another, whether a new session could write, and what the role may see."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.logs import messages_of_this_test
from tests.support.probed_server import SECRET, Bouncer, ProbedServer, eventually_equal
from tests.support.running_probe import RunningProbe, exposition, running, scenario, target

if TYPE_CHECKING:
    from collections.abc import Callable


async def identity(dsn: str) -> str:
    """Return the identity of the server that a DSN leads to."""
    async with running(target(dsn)) as runner:
        return runner.server.facts.identity


@scenario
async def test_one_server_has_one_identity(server: ProbedServer) -> None:
    """The identity has the system identifier and is the same for all roles, databases, addresses and sockets."""
    admin = await server.connect()
    await admin.execute("CREATE DATABASE other")
    try:
        socket = f"postgresql://app:{SECRET}@/postgres?host={server.directory}&port={server.port}"
        ways = [
            server.dsn("watcher"),
            server.dsn("stranger", database="other"),
            server.dsn("postgres").replace("127.0.0.1", "localhost"),
            socket,
        ]
        found = {await identity(dsn) for dsn in ways}
        system = await admin.fetchval("SELECT system_identifier FROM pg_control_system()")
        assert len(found) == 1
        assert found.pop().startswith(f"{system}@")
    finally:
        await admin.execute("DROP DATABASE other WITH (FORCE)")


@pytest.mark.requires("pgbouncer")
@scenario
async def test_a_pooler_in_front_does_not_change_the_identity(
    server: ProbedServer, bouncer: Callable[..., Bouncer]
) -> None:
    """Behind pgbouncer the identity is that of the server."""
    assert await identity(server.dsn("watcher")) == await identity(bouncer().dsn())


@scenario
async def test_where_the_identifier_is_hidden_address_and_port_take_its_place(server: ProbedServer) -> None:
    """A role that may not call pg_control_system() is probed as well; two such entries of one server agree."""
    admin = await server.connect()
    await admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    try:
        found = {await identity(server.dsn(role)) for role in ("watcher", "stranger")}
        assert len(found) == 1
        assert found.pop().startswith(f"127.0.0.1:{server.port}@")
    finally:
        await admin.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


@scenario
async def test_a_replica_is_another_server(cluster: ProbedServer) -> None:
    """A replica has its primary's system identifier, and another identity; it is in recovery and read-only."""
    with cluster.replica() as replica:
        async with (
            running(target(cluster.dsn("watcher"))) as primary,
            running(target(replica.dsn("watcher"))) as standby,
        ):
            one, other = primary.server.facts, standby.server.facts
            assert one.identity.split("@")[0] == other.identity.split("@")[0]
            assert one.identity != other.identity
            assert (False, False) == (one.is_in_recovery, one.is_read_only)
            assert (True, True) == (other.is_in_recovery, other.is_read_only)
            shown = exposition(standby.probe.status)
            assert (1.0, 1.0) == (shown["read_only", ()], shown["in_recovery", ()])


@scenario
async def test_the_start_time_is_the_servers(server: ProbedServer) -> None:
    """The start time equals pg_postmaster_start_time(), and a restart changes it and the identity."""
    async with running(target(server.dsn("watcher"))) as runner:
        before = runner.server.facts
        admin = await server.connect()
        query = "SELECT extract(epoch FROM pg_postmaster_start_time())::float8"
        assert abs(await admin.fetchval(query) - before.start_time) < 0.001
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)

        async def is_up() -> bool:
            return (await runner.probe_again()).is_up

        await eventually_equal(is_up, expected=True)
        assert runner.server.facts.start_time > before.start_time
        assert runner.server.facts.identity != before.identity


async def eventually_read_only(runner: RunningProbe, *, expected: bool) -> None:
    """Probe until the metric is as expected: a server reads its files a moment after it is told to."""

    async def read_only() -> float:
        return exposition(await runner.probe_again())["read_only", ()]

    await eventually_equal(read_only, float(expected))


@pytest.mark.parametrize(
    ("whose", "expected"),
    [
        ("ROLE watcher", True),
        ("DATABASE postgres", True),
        ("ROLE watcher IN DATABASE postgres", True),
        ("SYSTEM", True),
        ("ROLE app", False),
    ],
)
@scenario
async def test_read_only_is_what_a_new_session_would_be(
    server: ProbedServer, whose: str, expected: bool
) -> None:
    """A setting that is made while the probe has its session shows at the next probe, and so does its end."""
    admin = await server.connect()
    # The administrator's own transactions must be able to take the setting back.
    await admin.execute("SET default_transaction_read_only = off")
    async with running(target(server.dsn("watcher"))) as runner:
        try:
            assert not runner.server.facts.is_read_only
            await admin.execute(f"ALTER {whose} SET default_transaction_read_only = on")
            await admin.execute("SELECT pg_reload_conf()")
            await eventually_read_only(runner, expected=expected)
            as_new = await server.connect("watcher")
            assert await as_new.fetchval("SHOW transaction_read_only") == ("on" if expected else "off")
        finally:
            await admin.execute(f"ALTER {whose} RESET default_transaction_read_only")
            await admin.execute("SELECT pg_reload_conf()")
        await eventually_read_only(runner, expected=False)
        assert not runner.probe.status.failures


@pytest.mark.parametrize(
    ("grant", "advice"),
    [
        ("", "it is hidden from the role: GRANT pg_monitor to it"),
        ("GRANT pg_monitor TO looker", "track_activities is off"),
        ("GRANT pg_read_all_stats TO looker", "track_activities is off"),
        ("GRANT pg_monitor TO looker; ALTER ROLE looker SUPERUSER", "track_activities is off"),
        ("ALTER ROLE looker NOINHERIT; GRANT pg_monitor TO looker", "does not inherit"),
    ],
)
@scenario
async def test_the_advice_fits_the_role(
    server: ProbedServer, caplog: pytest.LogCaptureFixture, grant: str, advice: str
) -> None:
    """Only a role that lacks pg_monitor is advised to get it; the others are told the other reasons."""
    admin = await server.connect()
    await admin.execute(f"CREATE ROLE looker LOGIN PASSWORD '{SECRET}'; {grant}")
    hidden = await server.connect("postgres", application="hidden", track_activities="off")
    try:
        async with running(target(server.dsn("looker"))) as runner:
            assert runner.server.hidden_sessions >= 1
        (warning,) = messages_of_this_test(caplog.records)
        assert advice in warning
        assert ("GRANT pg_monitor" in warning) == (not grant)
    finally:
        await hidden.close()
        await admin.execute("DROP ROLE looker")
