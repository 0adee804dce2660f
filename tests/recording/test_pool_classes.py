# SPDX-License-Identifier: Apache-2.0
"""Checkouts are counted for every class of pool and every kind of creator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.segment.block import ROWS
from sqlalchemy_pool_exporter.segment.page import ROWS_PER_PAGE
from tests.support.memory import creator
from tests.support.samples import Exposition, sqlalchemy_lines
from tests.support.witness import metric_state, pool_state

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

pytestmark = pytest.mark.usefixtures("leave_nothing")


class OwnPool(QueuePool):
    """A user's subclass with an argument of its own."""

    def __init__(self, *args: Any, colour: str = "red", **kwargs: Any) -> None:
        self.colour = colour
        super().__init__(*args, **kwargs)


class OwnConnect(QueuePool):
    """A user's subclass whose ``connect()`` takes an argument."""

    def connect(self, shard: int = 0) -> Any:
        self.shard = shard
        return super().connect()


@pytest.mark.parametrize(
    "make",
    [
        lambda: QueuePool(creator),
        lambda: QueuePool(creator, use_lifo=True),
        lambda: NullPool(creator),
        lambda: StaticPool(creator),
        lambda: SingletonThreadPool(creator),
        lambda: AssertionPool(creator),
        lambda: OwnPool(creator, colour="blue"),
        lambda: OwnConnect(creator),
    ],
)
def test_every_pool_class(make: Any, registry: CollectorRegistry) -> None:
    """Each class of pool counts checkouts and returns, and shows which connections are in use and idle."""
    pool = make()
    handle = instrument(pool, name="p", registry=registry)
    for _ in range(2):
        connection = pool.connect()
        assert Exposition(registry).value("connections", "p", state="in_use") == 1
        connection.cursor().execute("select 1")
        connection.close()
    exposition = Exposition(registry)
    assert exposition.value("connections", "p", state="in_use") == 0
    kept = not isinstance(pool, NullPool)
    assert exposition.value("connections", "p", state="idle") == kept
    counted = exposition.counters("p")
    assert (counted["checkouts"], counted["checkins"]) == (2, 2)
    assert counted["connects"] == (1 if kept else 2)
    assert "exporter_recording_faults" not in counted
    pool.dispose()
    closed = {key: value for key, value in Exposition(registry).counters("p").items() if "closes" in key}
    assert closed == ({"closes.dispose": 1} if kept else {"closes.unpooled": 2})
    handle.close()


def test_async_pool_class(registry: CollectorRegistry) -> None:
    """The pool of an asyncio engine is found through the AsyncEngine, and the info metric names its class."""
    engine = create_async_engine("sqlite+aiosqlite:///x", poolclass=AsyncAdaptedQueuePool)
    handle = instrument(engine, registry=registry)
    assert instrument(engine.sync_engine, registry=registry) is handle
    assert 'pool_class="AsyncAdaptedQueuePool"' in "".join(sqlalchemy_lines(registry))


def test_connect_with_arguments_of_a_subclass(registry: CollectorRegistry) -> None:
    """A subclass's ``connect()`` gets its own arguments, and the checkout is counted."""
    pool = OwnConnect(creator)
    instrument(pool, name="p", registry=registry)
    connect: Any = pool.connect
    connect(shard=7).close()
    connect(8).close()
    assert pool.shard == 8
    assert Exposition(registry).counters("p")["checkouts"] == 2


def test_nested_checkout_of_a_thread(registry: CollectorRegistry) -> None:
    """SingletonThreadPool returns the connection that a thread already holds: one checkout, not two."""
    pool = SingletonThreadPool(creator)
    instrument(pool, name="p", registry=registry)
    first = pool.connect()
    second = pool.connect()
    assert second is first
    second.close()
    assert Exposition(registry).value("connections", "p", state="in_use") == 1
    first.close()
    counted = Exposition(registry).counters("p")
    assert (counted["checkouts"], counted["checkins"]) == (1, 1)


def test_custom_creator(registry: CollectorRegistry) -> None:
    """The connects of an engine with a custom creator are timed and counted."""
    engine = create_engine("sqlite://", creator=creator, poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    assert Exposition(registry).counters(handle.name)["connect_seconds_count"] == 1


def test_creator_replaced_later(registry: CollectorRegistry) -> None:
    """If the creator is replaced after ``instrument()``, its connections are recorded at their checkout."""
    pool = QueuePool(creator)
    instrument(pool, name="p", registry=registry)
    pool._creator = creator
    pool.connect().close()
    exposition = Exposition(registry)
    assert metric_state(exposition, "p") == pool_state(pool)
    assert exposition.counters("p")["checkouts"] == 1


def test_more_waiters_and_connections_than_the_tables_hold(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more connections than the table has rows, all checkouts are counted and the rest show as untracked, too."""
    monkeypatch.setattr("sqlalchemy_pool_exporter.segment.pool_block.ROW_PAGES", 2)
    pool: Pool = NullPool(creator)
    instrument(pool, name="p", registry=registry)
    most = ROWS + 2 * ROWS_PER_PAGE
    out = [pool.connect() for _ in range(most + 4)]
    exposition = Exposition(registry)
    assert exposition.value("connections", "p", state="in_use") == most + 4
    assert exposition.value("untracked_connections", "p") == 4
    for connection in out:
        connection.close()
    exposition = Exposition(registry)
    assert exposition.value("untracked_connections", "p") == 0
    assert exposition.value("connections", "p", state="in_use") == 0
    counted = exposition.counters("p")
    assert (counted["checkouts"], counted["checkins"], counted["closes.unpooled"]) == (most + 4,) * 3
