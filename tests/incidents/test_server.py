# SPDX-License-Identifier: Apache-2.0
"""Incidents whose culprit is the server, or what the pool is told about it: pool, process and cause are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.engineer import RATE, SECONDS, WAIT, Engineer, site

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.incidents import Stage

    Staged = Callable[..., Stage]

pytestmark = [pytest.mark.newest, pytest.mark.soak]


def test_server_restarted(stage: Staged) -> None:
    """While the server is away that is said, and when it is back, that it was restarted."""
    staged = stage("shop", pool={"pool_size": 3, "max_overflow": 0, "pool_pre_ping": True})
    engineer = Engineer(staged)
    (worker,) = staged.workers
    worker.load(callers=3, act="order", pause=0.1)
    engineer.metric("hold_seconds_count", above=20.0)
    staged.database.stop()
    engineer.line("database_down", rf"no answer: database 'orders' has not answered for {SECONDS}: .+")
    engineer.line("connect_errors", rf"no connection: {RATE} attempts to connect fail; database 'orders': .+")
    staged.database.start()
    engineer.line(
        "database_restarted", rf"restarted: the server of database 'orders' started {SECONDS} ago.*"
    )
    engineer.metric("errors_total", layer="connect", disposition="retryable")
    engineer.metric("connect_errors_total")
    staged.sidecar.wait_for(r"database 'orders': answers again")
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}\): an attempt to connect at {site('shop:order')} \(caller-\d\) "
        rf"failed: "
        r"(?:connect_failed|unavailable|admin_shutdown|connection_lost)",
    )


def test_failover_to_a_read_only_server(stage: Staged) -> None:
    """A replica in the place of the server is named as one that takes no writes, with the statement that fails."""
    staged = stage("shop", pool={"pool_size": 3, "max_overflow": 0, "pool_pre_ping": True})
    engineer = Engineer(staged)
    (worker,) = staged.workers
    worker.load(callers=3, act="pay", pause=0.1)
    engineer.metric("hold_seconds_count", above=20.0)
    staged.database.fail_over()
    engineer.line(
        "read_only",
        r"read-only: the server of database 'orders' takes no writes: it is in recovery, as a replica is; "
        r"it started "
        rf"{SECONDS} ago; {RATE} statements fail",
    )
    engineer.metric("database_read_only")
    engineer.metric("database_in_recovery")
    engineer.metric("errors_total", layer="statement", disposition="retryable")
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}\): a statement at {site('shop:pay')} \(caller-\d, POST /pay\) "
        rf"failed: "
        r"read_only \(SQLSTATE 25006\): the server takes no writes, as after a failover",
    )


def test_idle_cut(stage: Staged) -> None:
    """A server that ends idle sessions of a pool that does not expect it: its limit is named, and the pool's lack."""
    staged = stage("shop", pool={"pool_size": 3}, settings={"idle_session_timeout": "1s"})
    engineer = Engineer(staged)
    (worker,) = staged.workers
    worker.load(callers=3, act="order", pause=2.0)
    engineer.line(
        "dead_connections",
        rf"dead connections: found {RATE} by a statement, which fails; likely cause: the server of database "
        rf"'orders' ends "
        r"sessions that are idle for 1\.0 s \(idle_session_timeout\), and the pool never recycles them and "
        r"does not "
        r"test them",
    )
    engineer.metric("closes_total", reason="error")
    engineer.metric("errors_total", layer="statement", disposition="retryable")
    engineer.metric("database_idle_session_timeout_seconds")
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}\): a statement at {site('shop:order')} \(caller-\d\) failed: "
        r"(?:idle_timeout \(SQLSTATE 57P05\)|connection_lost)",
    )


def test_recycle_herd(stage: Staged) -> None:
    """Connections that were opened together are recycled together: callers wait, and pool_recycle is named."""
    staged = stage(
        "shop",
        pool={
            "pool_size": 4,
            "max_overflow": 0,
            "pool_timeout": 1.0,
            "pool_recycle": 3,
            "connect_args": {"options": "-c post_auth_delay=2"},
        },
    )
    engineer = Engineer(staged)
    (worker,) = staged.workers
    # As many as there are connections, so that nobody times out while these are opened first.
    worker.load(callers=4, act="order", pause=0.1)
    engineer.metric("hold_seconds_count", above=8.0)
    worker.load(callers=8, act="order", pause=0.1)
    engineer.line(
        "slow_connect",
        rf"slow to connect: {WAIT} in {engineer.where(worker)}, although the pool is not full: opening or "
        rf"testing a "
        r"connection takes that long; likely cause: \d connections are opened anew at once: they were "
        r"opened together, and "
        r"pool_recycle=3 s ended them together",
    )
    engineer.metric("closes_total", above=3.0, reason="recycle")
    engineer.log(
        worker,
        rf"^pool 'orders' \(pid {worker.pid}, .* Likely cause: connecting: \d of 4 places are taken by connections "
        r"that are being opened, \d of them in place of closed ones, if older than pool_recycle=3 s",
    )
