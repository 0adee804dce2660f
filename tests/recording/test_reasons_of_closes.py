# SPDX-License-Identifier: Apache-2.0
"""Each close is counted once, with its reason: failed ping, error, age, invalidation or dispose."""

from __future__ import annotations

import gc
import time
import warnings
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import exc, text

from tests.support.pool_case import age

if TYPE_CHECKING:
    from tests.support.pool_case import Case


def test_killed_connection_found_by_ping(server_case: Case) -> None:
    """A killed connection fails its ping, is closed for that reason, and is replaced in the same checkout."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_pre_ping=True)
        engine.connect().close()
        case.kill()
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        case.assert_true(
            checkouts=2,
            checkins=2,
            connects=2,
            ping_failures=1,
            invalidations__hard=1,
            closes__ping_failed=1,
            ping_seconds_count=1,
            checkout_wait_seconds_count=2,
        )

    server_case.run(scenario)


def test_ping_failure_invalidates_the_whole_pool(server_case: Case) -> None:
    """After one failed ping the other connections are closed with reason "pool_invalidated"."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_pre_ping=True, pool_size=2)
        first, second = engine.connect(), engine.connect()
        first.close()
        second.close()
        case.kill()
        time.sleep(0.02)
        first, second = engine.connect(), engine.connect()
        case.assert_true(
            checkouts=4,
            checkins=2,
            connects=4,
            ping_failures=1,
            invalidations__hard=1,
            closes__ping_failed=1,
            closes__pool_invalidated=1,
        )
        first.close()
        second.close()

    server_case.run(scenario)


def test_killed_connection_found_by_a_statement(server_case: Case) -> None:
    """A connection that fails a statement is closed with reason "error"; its slot is empty until the next checkout."""

    def scenario(case: Case) -> None:
        engine = case.start()
        connection = engine.connect()
        connection.execute(text("select 1"))
        case.kill()
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("select 1"))
        connection.close()
        assert case.now().value("empty_slots", case.name) == 1
        case.assert_true(checkouts=1, checkins=1, connects=1, invalidations__hard=1, closes__error=1)
        engine.connect().close()
        assert case.now().value("empty_slots", case.name) == 0
        case.assert_true(checkouts=2, checkins=2, connects=2, invalidations__hard=1, closes__error=1)

    server_case.run(scenario)


def test_recycle_by_age(case: Case) -> None:
    """A connection older than pool_recycle is closed with reason "recycle" and replaced."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_recycle=3600)
        with engine.connect() as connection:
            age(connection, 7200)
        with engine.connect():
            assert case.now().value("oldest_connection_seconds", case.name) < 3600
        case.assert_true(checkouts=2, checkins=2, connects=2, closes__recycle=1)

    case.run(scenario)


def test_pool_wide_invalidation(case: Case) -> None:
    """Connections opened before an invalidation of the whole pool are closed with reason "pool_invalidated"."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=2)
        first, second = engine.connect(), engine.connect()
        first.close()
        time.sleep(0.02)
        engine.pool._invalidate(second.connection)
        second.close()
        time.sleep(0.02)
        first, second = engine.connect(), engine.connect()
        case.assert_true(
            checkouts=4,
            checkins=2,
            connects=4,
            invalidations__hard=1,
            closes__error=1,
            closes__pool_invalidated=1,
        )
        first.close()
        second.close()

    case.run(scenario)


def test_soft_invalidation(case: Case) -> None:
    """A soft-invalidated connection stays open until its next checkout replaces it."""

    def scenario(case: Case) -> None:
        engine = case.start()
        time.sleep(0.02)
        connection = engine.connect()
        time.sleep(0.02)
        connection.connection.invalidate(soft=True)
        connection.close()
        case.assert_true(checkouts=1, checkins=1, connects=1, invalidations__soft=1)
        time.sleep(0.02)
        engine.connect().close()
        case.assert_true(
            checkouts=2, checkins=2, connects=2, invalidations__soft=1, closes__soft_invalidated=1
        )

    case.run(scenario)


def test_dispose_with_connections_out(case: Case) -> None:
    """dispose() closes idle connections; those in use stay so until returned, and are no overflow of the new pool."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=2, max_overflow=0)
        out, idle = engine.connect(), engine.connect()
        idle.close()
        engine.dispose()
        exposition = case.now()
        assert exposition.value("connections", case.name, state="in_use") == 1
        assert exposition.value("connections", case.name, state="idle") == 0
        assert exposition.counters(case.name)["closes.dispose"] == 1
        case.assert_server_agrees()
        both = [engine.connect(), engine.connect()]
        assert case.now().value("connections", case.name, state="in_use") == 3
        assert case.now().value("overflow_connections", case.name) == 0
        for connection in both:
            connection.close()
        out.close()
        del out, connection
        # The replaced pool keeps the connection until the pool itself is garbage-collected.
        case.assert_server_agrees()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        case.assert_true(checkouts=4, checkins=4, connects=4, closes__dispose=2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.run(scenario)


def test_dispose_without_closing(case: Case) -> None:
    """After ``dispose(close=False)`` the old connections count as disposed when collected; the new pool is recorded."""

    def scenario(case: Case) -> None:
        engine = case.start()
        engine.connect().close()
        engine.dispose(close=False)
        engine.connect().close()
        exposition = case.now()
        assert exposition.counters(case.name)["checkouts"] == 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        case.assert_true(checkouts=2, checkins=2, connects=2, closes__dispose=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.run(scenario)
