# SPDX-License-Identifier: Apache-2.0
"""The loop uses one read-only connection, logs changes only, retries after failures, and leaves nothing open.

Each sleep of the probe lasts until the test finishes it, so these tests use a clock only to bound a hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from sqlalchemy_pool_exporter.sidecar.config import DatabaseTLS
from sqlalchemy_pool_exporter.sidecar.probe.probe import (
    BACKOFF,
    Probe,
    backoff,
)
from sqlalchemy_pool_exporter.sidecar.probe.server_state import APPLICATION_NAME
from tests.support import probe_failures
from tests.support.descriptors import count_before, count_descriptors
from tests.support.logs import of_this_test
from tests.support.paths import ROOT
from tests.support.probed_server import HANG, SECRET, ProbedServer, count_sessions, eventually_equal
from tests.support.running_probe import (
    ManualSleep,
    exposition,
    running,
    scenario,
    target,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator


@scenario
async def test_uses_one_connection_and_only_reads(server: ProbedServer) -> None:
    """All probes share one session; each is a read-only transaction with a timeout, and sets nothing on the session."""
    start = server.log.stat().st_size
    async with running(target(server.dsn("watcher"), timeout_seconds=7.5)) as runner:
        admin = await server.connect()
        whose = "SELECT pid, state FROM pg_stat_activity WHERE application_name = $1"
        first = await admin.fetch(whose, APPLICATION_NAME)
        for _ in range(4):
            await runner.probe_again()
        assert await admin.fetch(whose, APPLICATION_NAME) == first
        assert [row["state"] for row in first] == ["idle"]
    await eventually_equal(lambda: count_sessions(admin, APPLICATION_NAME), 0)
    said = server.log.read_bytes()[start:].decode().splitlines()
    probe = f"{APPLICATION_NAME}|LOG:  "
    begin = "statement: BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 7500"
    select = "execute <unnamed>: "
    assert [begin, *[select] * 5, "statement: COMMIT"] * 5 == [
        re.sub(f"({select}).*", r"\1", line.removeprefix(probe)) for line in said if line.startswith(probe)
    ]


@scenario
async def test_a_session_closed_while_idle_is_no_failure(server: ProbedServer) -> None:
    """If the server closes the connection between two probes, the next probe reconnects and succeeds."""
    admin = await server.connect()
    async with running(target(server.dsn("watcher"))) as runner:
        before = count_before()
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
        await admin.fetch(kill, APPLICATION_NAME)
        await eventually_equal(count_descriptors, before - 1)  # asyncpg has closed its socket
        status = await runner.probe_again()
        assert runner.server.max_connections == 20
        assert not status.failures
        assert [15.0, 15.0] == runner.sleep.delays


@scenario
async def test_a_wrong_password_is_logged_once_and_retried_slowly(
    server: ProbedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Up is 0 and the failure has a reason; the delays grow, and the log has one line without the password."""
    async with running(target(server.dsn("watcher", password=SECRET.upper()))) as runner:
        for _ in range(7):
            status = await runner.probe_again()
        assert {"authentication": 8} == status.failures
        assert [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] == runner.sleep.delays
        shown = exposition(status)
        assert shown["up", ()] == 0.0
        assert shown["probe_failures_total", ("authentication",)] == 8.0
        assert ("max_connections", ()) not in shown
    records = of_this_test(caplog.records)
    warnings = [record.getMessage() for record in records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("database 'orders': authentication: the server refuses user or password")
    assert warnings[0].endswith("(InvalidPasswordError, SQLSTATE 28P01); next in 1.0 s")


@scenario
async def test_a_server_that_stops_and_starts_again(
    server: ProbedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Up is 0 while the server is stopped and 1 after the next probe; the next outage starts with the first delay."""
    caplog.set_level(logging.INFO)
    async with running(target(server.dsn("watcher"))) as runner:
        for attempts in (3, 2):
            await asyncio.to_thread(server.stop)
            for _ in range(attempts):
                status = await runner.probe_again()
                assert not status.is_up
                assert exposition(status)["up", ()] == 0.0
            await asyncio.to_thread(server.start)
            await runner.probe_again()
            assert runner.server.max_connections == 20
        # The first attempt of an outage may still use the session that the server ends just then.
        failures = Counter(runner.probe.status.failures)
        assert 5 == failures.total() == failures["connect"] + failures["disconnected"]
        assert [15.0, 1.0, 2.0, 4.0, 15.0, 1.0, 2.0, 15.0] == runner.sleep.delays
    said = [record.getMessage() for record in caplog.records if record.name.endswith("probe")]
    broke = r"(database 'orders': disconnected: the connection broke.*\n)?"
    refused = (
        r"database 'orders': connect: Connection refused \(ConnectionRefusedError\); next in [12]\.0 s\n"
    )
    again = r"database 'orders': answers again\n"
    assert re.fullmatch(f"({broke}{refused}{again}){{2}}", "".join(f"{line}\n" for line in said)), said


@scenario
async def test_after_a_failure_the_last_values_hold_for_one_interval(server: ProbedServer) -> None:
    """Retries do not prolong that time; up is 0 meanwhile, and a success begins anew."""
    now = 100.0
    async with running(target(server.dsn("watcher")), clock=lambda: now) as runner:

        def shown() -> tuple[float, float | None]:
            samples = exposition(runner.probe.status, now=now)
            return samples["up", ()], samples.get(("max_connections", ()))

        for _ in range(2):
            await asyncio.to_thread(server.stop)
            for now, expected in (  # noqa: B007 - the probe reads it as its clock
                (115.0, 20.0),
                (116.0, 20.0),
                (129.9, 20.0),
                (130.0, None),
                (200.0, None),
            ):
                assert not (await runner.probe_again()).is_up
                assert shown() == (0.0, expected)
            now = 100.0
            await asyncio.to_thread(server.start)
            await runner.probe_again()
            assert shown() == (1.0, 20.0)


@pytest.mark.parametrize(
    "tls", [{}, {"mode": "disable"}, {"mode": "require"}], ids=["prefer", "disable", "require"]
)
@scenario
async def test_a_server_that_accepts_and_never_answers(tls: dict[str, Any]) -> None:
    """The timeout ends a probe that waits in the TLS negotiation or the start-up, and no descriptor stays open."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        before = count_before()
        dsn = f"postgresql://watcher:{SECRET}@127.0.0.1:{mute.getsockname()[1]}/postgres"
        async with running(target(dsn, tls=DatabaseTLS(**tls), timeout_seconds=0.1)) as runner:
            for _ in range(3):
                status = await runner.probe_again()
            assert {"timeout": 4} == status.failures
            await eventually_equal(count_descriptors, before)


@scenario
async def test_a_server_that_stops_answering(server: ProbedServer) -> None:
    """A probe whose session hangs fails by its timeout, and the next probe uses a new session."""
    admin = await server.connect()
    before = count_before()
    async with running(target(server.dsn("watcher"), timeout_seconds=5.0)) as runner:
        pid = await admin.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1", APPLICATION_NAME
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            status = await runner.probe_again()
            assert {"timeout": 1} == status.failures
            assert not status.is_up
            await runner.probe_again()
            assert runner.server.max_connections == 20
        finally:
            os.kill(pid, signal.SIGCONT)
    await eventually_equal(count_descriptors, before)
    await eventually_equal(lambda: count_sessions(admin), 1)


@scenario
async def test_a_session_killed_in_the_middle_of_a_probe(server: ProbedServer) -> None:
    """pg_terminate_backend during a probe fails it with reason disconnected, and the next probe reconnects."""
    admin = await server.connect()
    async with running(target(server.dsn("watcher"))) as runner:
        pid = await admin.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1", APPLICATION_NAME
        )
        os.kill(pid, signal.SIGSTOP)
        runner.sleep.finish()
        start = runner.probe.status.probes
        await asyncio.sleep(0)  # the probe sends its first statement to the stopped session
        await admin.execute(f"SELECT pg_terminate_backend({pid})")
        os.kill(pid, signal.SIGCONT)
        await runner.sleep.started()
        assert runner.probe.status.probes == start + 1
        assert {"disconnected": 1} == runner.probe.status.failures
        await runner.probe_again()
        assert runner.server.max_connections == 20


@scenario
async def test_a_full_server_is_seen_from_inside_and_out(server: ProbedServer) -> None:
    """A connected probe sees that the server is full; a probe that cannot connect reports too_many_connections."""
    async with running(target(server.dsn("watcher"))) as inside:
        clients: list[Any] = []
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                clients.append(await server.connect("app"))

        async def count() -> int:
            await inside.probe_again()
            return int(sum(inside.server.connections.values()))

        # The refused connection still counts for a moment.
        await eventually_equal(count, len(clients) + 1)
        seen = inside.server
        assert seen.max_connections - seen.reserved_connections == len(clients) + 1
        async with running(target(server.dsn("watcher"))) as outside:
            assert {"too_many_connections": 1} == outside.probe.status.failures
            for client in clients:
                await client.close()
            admin = await server.connect()
            await eventually_equal(lambda: count_sessions(admin), 2)
            await outside.probe_again()
            assert outside.server.max_connections == 20


class Interrupted:
    """A coroutine that is cancelled at its n-th suspension: when that begins, or (late) when it ends."""

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
            except BaseException as error:  # noqa: BLE001 - thrown into the coroutine
                argument, action = error, self.coroutine.throw


async def _run(awaitable: Awaitable[object]) -> None:
    await awaitable


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "woken"])
@scenario
async def test_cancelled_at_any_moment_it_leaves_nothing_open(server: ProbedServer, late: bool) -> None:
    """A cancellation at any suspension of connecting, querying or closing leaves no socket and no session open."""
    admin = await server.connect()
    before = count_before()
    for moment in itertools.count(1):
        sleep = ManualSleep()
        probe = Probe(target(server.dsn("watcher")), sleep=sleep.sleep)
        interrupted = Interrupted(probe.run(), moment, late=late)
        task = asyncio.create_task(_run(interrupted))
        asleep = asyncio.create_task(sleep.started())
        async with asyncio.timeout(HANG):
            await asyncio.wait([task, asleep], return_when=asyncio.FIRST_COMPLETED)
            task.cancel()  # the first sleep has begun, so any later suspension is in the closing of the connection
            asleep.cancel()
            await asyncio.wait([task, asleep])
        assert task.cancelled()
        await eventually_equal(count_descriptors, before)
        if interrupted.count < moment:
            break
    assert moment > 12  # suspensions of connecting, of each statement, and of closing
    await eventually_equal(lambda: count_sessions(admin, APPLICATION_NAME), 0)


@pytest.mark.soak
@pytest.mark.parametrize("kind", probe_failures.KINDS)
def test_a_thousand_failures_leave_nothing_behind(kind: str) -> None:
    """Descriptors and memory do not grow with failed probes, and a delay follows each."""
    # In a separate process, whose memory and descriptors only the probe changes.
    program = [sys.executable, "-m", "tests.support.probe_failures", kind]
    root = ROOT
    done = subprocess.run(program, cwd=root, capture_output=True, check=True, text=True, timeout=5 * HANG)
    said = json.loads(done.stdout)
    assert len(set(said["descriptors"])) == 1
    growth = [after - before for before, after in itertools.pairwise(said["bytes"])]
    assert min(growth) < 24 * 1024  # bytes for 500 failures, which fill caches
    assert (said["probes"], said["failures"]) == (1100, 1100)
    assert said["shortest"] >= BACKOFF[0] / 2


def test_backoff_doubles_within_bounds() -> None:
    """The delay starts at a second, doubles up to a minute or the interval, and half of it is random."""
    ends = [(backoff(n, 15.0, min), backoff(n, 15.0, max)) for n in (1, 2, 3, 7, 8, 10**6)]
    assert [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (30.0, 60.0), (30.0, 60.0), (30.0, 60.0)] == ends
    assert backoff(10**6, 300.0, max) == 300.0
