# SPDX-License-Identifier: Apache-2.0
"""A pool shows the limits that it has, and counts connections beyond its size as overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import connect
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    import pytest
    from prometheus_client import CollectorRegistry

    from tests.support.pool_case import Case


def test_overflow_opens_and_closes(case: Case) -> None:
    """Overflow connections are counted when they open and when they close, and shown while they are open."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=1, max_overflow=2)
        connections = [engine.connect() for _ in range(3)]
        assert case.now().value("overflow_connections", case.name) == 2
        case.assert_true(checkouts=3, connects=3, overflow_opened=2)
        for connection in connections:
            connection.close()
        case.assert_true(checkouts=3, checkins=3, connects=3, overflow_opened=2, closes__overflow=2)

    case.run(scenario)


def test_pool_size_zero_is_no_limit(case: Case) -> None:
    """With ``pool_size=0`` no limit is shown, and no connection is overflow."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=0)
        connections = [engine.connect() for _ in range(3)]
        exposition = case.now()
        assert [
            exposition.get(key, case.name) for key in ("size", "max_overflow", "capacity", "timeout_seconds")
        ] == [None] * 4
        for connection in connections:
            connection.close()
        case.assert_true(checkouts=3, checkins=3, connects=3)

    case.run(scenario)


def test_unlimited_overflow(case: Case) -> None:
    """With ``max_overflow=-1`` the size is shown but no limit, and overflow is counted."""

    def scenario(case: Case) -> None:
        engine = case.start(max_overflow=-1)
        connections = [engine.connect() for _ in range(3)]
        exposition = case.now()
        assert exposition.value("size", case.name) == 1
        assert [exposition.get(key, case.name) for key in ("max_overflow", "capacity")] == [None] * 2
        assert exposition.value("overflow_connections", case.name) == 2
        for connection in connections:
            connection.close()
        case.assert_true(checkouts=3, checkins=3, connects=3, overflow_opened=2, closes__overflow=2)

    case.run(scenario)


def test_null_pool(case: Case) -> None:
    """A NullPool has no limits and no overflow; each checkout opens a connection and each return closes it."""

    def scenario(case: Case) -> None:
        engine = case.start(poolclass=NullPool)
        first, second = engine.connect(), engine.connect()
        assert case.open() == 2
        case.assert_server_agrees()
        first.close()
        second.close()
        exposition = case.now()
        absent = (
            "size",
            "max_overflow",
            "capacity",
            "timeout_seconds",
            "overflow_connections",
            "overflow_opened_total",
        )
        assert [exposition.get(key, case.name) for key in absent] == [None] * len(absent)
        case.assert_true(checkouts=2, checkins=2, connects=2, closes__unpooled=2)

    case.run(scenario)


def test_a_pool_beyond_its_table_that_is_full_is_saturated(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also connections that found no row are in use, and overflow; returned, they are idle or closed."""
    monkeypatch.setattr("sqlalchemy_pool_exporter.segment.pool_block.ROW_PAGES", 1)
    pool = QueuePool(connect, pool_size=400, max_overflow=100)
    name = instrument(pool, registry=registry).name
    held = [pool.connect() for _ in range(500)]
    exposition = RegistrySamples(registry)
    assert exposition.value("untracked_connections", name) > 100
    assert exposition.value("connections", name, state="in_use") == exposition.value("capacity", name) == 500
    assert exposition.value("overflow_connections", name) == pool.overflow() == 100
    for connection in held:
        connection.close()
    exposition = RegistrySamples(registry)
    assert exposition.value("connections", name, state="in_use") == pool.checkedout() == 0
    assert exposition.value("connections", name, state="idle") == pool.checkedin() == 400


def test_a_large_pool_that_is_full_is_saturated(registry: CollectorRegistry) -> None:
    """With all 5,000 connections of a pool out, connections in use are its capacity, and none is untracked."""
    pool = QueuePool(connect, pool_size=4000, max_overflow=1000)
    name = instrument(pool, registry=registry).name
    held = [pool.connect() for _ in range(5000)]
    exposition = RegistrySamples(registry)
    assert exposition.value("connections", name, state="in_use") == exposition.value("capacity", name) == 5000
    assert exposition.value("overflow_connections", name) == 1000
    assert exposition.value("untracked_connections", name) == 0
    held.clear()
