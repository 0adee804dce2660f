# SPDX-License-Identifier: Apache-2.0
"""``instrument()``: targets, names, every pool class, a pool in use, and undoing it."""

from __future__ import annotations

import gc
import logging
import sqlite3
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from sqlalchemy_pool_exporter import TargetError, instrument, uninstrument
from tests.support.samples import Exposition
from tests.support.wait import eventually
from tests.support.witness import metric_state, pool_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# SQLite's connections say so when they are collected open; here they are left to be.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed database:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class OwnPool(QueuePool):
    """A user's subclass, with an argument of its own."""

    def __init__(self, *args: Any, colour: str = "red", **kwargs: Any) -> None:
        self.colour = colour
        super().__init__(*args, **kwargs)


class OwnConnect(QueuePool):
    """A user's subclass whose ``connect()`` takes an argument."""

    def connect(self, shard: int = 0) -> Any:
        self.shard = shard
        return super().connect()


def creator() -> Any:
    return sqlite3.connect(":memory:", check_same_thread=False)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(autouse=True)
def _leave_nothing() -> Iterator[None]:
    yield
    gc.collect()


def sqlalchemy_lines(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "sqlalchemy_pool" in line]


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
    """Each class counts checkouts and returns, and shows what is in use, by the class's own rules."""
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
    """An asyncio engine's pool is named in info, and found through the AsyncEngine."""
    engine = create_async_engine("sqlite+aiosqlite:///x", poolclass=AsyncAdaptedQueuePool)
    handle = instrument(engine, registry=registry)
    assert instrument(engine.sync_engine, registry=registry) is handle
    assert 'pool_class="AsyncAdaptedQueuePool"' in "".join(sqlalchemy_lines(registry))


def test_connect_with_arguments_of_a_subclass(registry: CollectorRegistry) -> None:
    """Arguments of a subclass's own ``connect()`` reach it, and the checkout is counted."""
    pool = OwnConnect(creator)
    instrument(pool, name="p", registry=registry)
    connect: Any = pool.connect
    connect(shard=7).close()
    connect(8).close()
    assert pool.shard == 8
    assert Exposition(registry).counters("p")["checkouts"] == 2


def test_nested_checkout_of_a_thread(registry: CollectorRegistry) -> None:
    """SingletonThreadPool hands a thread the connection it holds already: that is one checkout."""
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


@pytest.mark.parametrize(
    "target",
    [None, 7, "postgresql://scott:tiger@db/orders", object(), QueuePool, create_engine, Session()],
    ids=lambda target: type(target).__name__,
)
def test_wrong_target_is_named(target: Any) -> None:
    """What is no engine and no pool is refused by name, without its credentials."""
    for function in (instrument, uninstrument):
        with pytest.raises(TargetError, match="takes an Engine, an AsyncEngine or a Pool, got") as info:
            function(target)
        assert type(target).__qualname__ in str(info.value)
        assert "tiger" not in str(info.value)


@pytest.mark.parametrize("name", ["", 7])
def test_wrong_name(name: Any) -> None:
    """An empty name, or one that is no string, is refused."""
    with pytest.raises(TargetError, match="name"):
        instrument(QueuePool(creator), name=name)


def test_second_call_returns_the_same_handle(registry: CollectorRegistry) -> None:
    """An engine, its pool, its copies and its next pool are one instrumented pool."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    assert instrument(engine, name="other", registry=registry) is handle
    assert instrument(engine.pool, registry=registry) is handle
    assert instrument(engine.execution_options(isolation_level="AUTOCOMMIT"), registry=registry) is handle
    engine.dispose()
    assert instrument(engine, registry=registry) is handle
    with engine.connect():
        pass
    assert Exposition(registry).counters(handle.name)["checkouts"] == 1


def test_option_engines_share_the_pool(registry: CollectorRegistry) -> None:
    """Checkouts through a copy with other options are this pool's, before and after dispose()."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    copy = engine.execution_options(isolation_level="AUTOCOMMIT")
    copy.connect().close()
    copy.dispose()
    copy.connect().close()
    engine.connect().close()
    assert Exposition(registry).counters(handle.name)["checkouts"] == 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://scott:tiger@db.example:6432/orders", "orders@db.example"),
        ("postgresql+psycopg:///orders?host=/run/postgresql&password=tiger", "orders"),
        ("postgresql+psycopg://scott:tiger@db.example", "postgresql@db.example"),
        ("sqlite:////var/lib/app/app.db", "app.db"),
        ("sqlite://", "sqlite"),
    ],
)
def test_default_name(url: str, expected: str, registry: CollectorRegistry) -> None:
    """The name says database and host, and never a credential."""
    engine = create_engine(url)
    handle = instrument(engine, registry=registry)
    assert handle.name == expected
    text_ = generate_latest(registry).decode() + repr(handle)
    assert "tiger" not in text_
    assert "scott" not in text_
    handle.close()


def test_logging_name_is_the_default(registry: CollectorRegistry) -> None:
    """A pool that has a name in SQLAlchemy's log has it here."""
    engine = create_engine("sqlite://", pool_logging_name="billing")
    assert instrument(engine, registry=registry).name == "billing"


def test_clash_of_names(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A second pool of the same name gets a suffix and one line in the log; a freed name is free."""
    pools = [QueuePool(creator) for _ in range(3)]
    with caplog.at_level(logging.INFO):
        handles = [instrument(pool, name="orders", registry=registry) for pool in pools]
    assert [handle.name for handle in handles] == ["orders", "orders-2", "orders-3"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "'orders-2'" in caplog.text
    for handle in handles:
        handle.close()
    assert instrument(pools[0], name="orders", registry=registry).name == "orders"


def test_close_restores_the_pool(registry: CollectorRegistry) -> None:
    """After close() nothing of ours is left on pool, dialect and records, no series is left, and it can start again."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_pre_ping=True)
    engine.connect().close()
    before = dict(engine.pool.__dict__)
    listeners = {name: list(getattr(engine.pool.dispatch, name)) for name in POOL_EVENTS}
    handle = instrument(engine, registry=registry)
    held = engine.connect()
    record: Any = held.connection._connection_record
    assert sqlalchemy_lines(registry)
    handle.close()
    handle.close()
    assert engine.pool.__dict__ == before
    assert not [name for name in engine.dialect.__dict__ if "ping" in name]
    assert listeners == {name: list(getattr(engine.pool.dispatch, name)) for name in POOL_EVENTS}
    assert not [key for key in record.__dict__ if "exporter" in key]
    assert sqlalchemy_lines(registry) == []
    assert handle.closed
    assert "closed" in repr(handle)
    held.close()
    engine.connect().close()

    again = instrument(engine, registry=registry)
    assert again is not handle
    engine.connect().close()
    assert Exposition(registry).counters(again.name)["checkouts"] == 1
    uninstrument(engine)
    uninstrument(engine)
    assert again.closed


POOL_EVENTS = (
    "connect",
    "first_connect",
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "close",
    "detach",
    "close_detached",
)


def test_close_after_dispose(registry: CollectorRegistry) -> None:
    """close() restores the pool that replaced the one given, and the old one that has connections out."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    held, old = engine.connect(), engine.pool
    engine.dispose()
    handle.close()
    for pool in (old, engine.pool):
        assert not [
            name for name in ("connect", "dispose", "recreate", "_do_return_conn") if name in pool.__dict__
        ]
    held.close()


def test_series_are_there_from_the_start(registry: CollectorRegistry) -> None:
    """Every counter and reason is 0, every histogram empty, before the first checkout."""
    instrument(QueuePool(creator, recycle=900, pre_ping=False), name="p", registry=registry)
    exposition = Exposition(registry)
    assert exposition.counters("p") == {}
    reasons = {
        dict(labels)["reason"]
        for name, labels in exposition.samples
        if name == "sqlalchemy_pool_closes_total"
    }
    assert len(reasons) == 10
    assert exposition.value("checkout_wait_seconds_count", "p") == 0
    assert [
        exposition.value(key, "p") for key in ("size", "max_overflow", "capacity", "timeout_seconds")
    ] == [
        5,
        10,
        15,
        30,
    ]
    assert exposition.value("recycle_seconds", "p") == 900
    assert exposition.value("pre_ping", "p") == 0


def test_default_registry() -> None:
    """By default an existing /metrics shows the pools with no further line, until the handle is closed."""
    pool = QueuePool(creator)
    with instrument(pool, name="default-registry"):
        assert 'pool="default-registry"' in generate_latest(REGISTRY).decode()
    assert "sqlalchemy_pool" not in generate_latest(REGISTRY).decode()


def test_without_the_gil_there_is_a_warning(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Python that runs without the GIL the caller of ``instrument()`` is told what that costs."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.warns(
        RuntimeWarning, match="without the GIL, counts of simultaneous checkouts can be lost"
    ) as told:
        instrument(QueuePool(creator), registry=registry)
    assert [__file__] == [warning.filename for warning in told]


@pytest.mark.parametrize("wrong", [None, "registry", object(), REGISTRY.restricted_registry([])])
def test_wrong_registry(wrong: Any) -> None:
    """A registry without ``register()`` is refused by its type, and the pool stays as it was."""
    pool = QueuePool(creator)
    with pytest.raises(
        TargetError, match=f"registry must be a CollectorRegistry, got {type(wrong).__name__}"
    ):
        instrument(pool, registry=wrong)
    assert "connect" not in pool.__dict__


def test_a_registry_that_was_emptied(registry: CollectorRegistry) -> None:
    """If the application unregistered every collector, the next pool that is instrumented is shown."""
    first, second = QueuePool(creator), QueuePool(creator)
    instrument(first, name="first", registry=registry)
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    assert sqlalchemy_lines(registry) == []
    instrument(second, name="second", registry=registry)
    assert Exposition(registry).value("checkouts_total", "second") == 0


def test_two_registries(registry: CollectorRegistry) -> None:
    """Pools of one process can be shown in different registries."""
    other = CollectorRegistry()
    one, two = QueuePool(creator), QueuePool(creator)
    instrument(one, name="one", registry=registry)
    instrument(two, name="two", registry=other)
    assert 'pool="two"' not in generate_latest(registry).decode()
    assert 'pool="one"' not in generate_latest(other).decode()


def test_attach_while_connections_are_out(registry: CollectorRegistry) -> None:
    """What is out and idle already is shown at once, with the connection's true age; its return counts, untimed."""
    pool = QueuePool(creator, pool_size=3, max_overflow=1)
    out = [pool.connect() for _ in range(4)]
    out.pop().close()
    time.sleep(0.05)
    instrument(pool, name="p", registry=registry)
    exposition = Exposition(registry)
    assert metric_state(exposition, "p") == pool_state(pool)
    # Both are ages at the same moment, however late that is.
    held = exposition.value("longest_held_seconds", "p")
    assert exposition.value("oldest_connection_seconds", "p") - held >= 0.05
    for connection in out:
        connection.close()
    exposition = Exposition(registry)
    assert metric_state(exposition, "p") == pool_state(pool)
    assert exposition.counters("p") == {"checkins": 3, "closes.overflow": 1}
    pool.connect().close()
    assert Exposition(registry).counters("p") == {
        "checkins": 4,
        "closes.overflow": 1,
        "checkouts": 1,
        "checkout_wait_seconds_count": 1,
        "hold_seconds_count": 1,
    }


def test_attach_while_callers_wait(registry: CollectorRegistry) -> None:
    """Callers in the queue at that moment are in use once they are served, and nothing goes below zero."""
    pool = QueuePool(creator, pool_size=1, max_overflow=0)
    held = pool.connect()
    served, release = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        connection = pool.connect()
        served.release()
        release.wait(10)
        connection.close()

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(pool._pool.not_empty._waiters) == 2)  # type: ignore[attr-defined]
    instrument(pool, name="p", registry=registry)
    held.close()
    served.acquire()
    exposition = Exposition(registry)
    assert metric_state(exposition, "p") == pool_state(pool)
    assert exposition.value("connections", "p", state="in_use") == 1
    release.set()
    for thread in threads:
        thread.join()
    exposition = Exposition(registry)
    assert metric_state(exposition, "p") == pool_state(pool)
    assert exposition.counters("p") == {"checkins": 3}


def test_attach_to_a_busy_null_pool(registry: CollectorRegistry) -> None:
    """A pool that keeps no list of what is out is searched for it."""
    pool = NullPool(creator)
    out = pool.connect()
    instrument(pool, name="p", registry=registry)
    assert Exposition(registry).value("connections", "p", state="in_use") == 1
    out.close()
    assert Exposition(registry).counters("p") == {"checkins": 1, "closes.unpooled": 1}


def test_custom_creator(registry: CollectorRegistry) -> None:
    """An engine with a creator, with or without the record as its argument, is timed and counted."""
    engine = create_engine("sqlite://", creator=creator, poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    assert Exposition(registry).counters(handle.name)["connect_seconds_count"] == 1


def test_creator_replaced_later(registry: CollectorRegistry) -> None:
    """Connections made by a creator that was set later are seen when they are checked out."""
    pool = QueuePool(creator)
    instrument(pool, name="p", registry=registry)
    pool._creator = creator
    pool.connect().close()
    exposition = Exposition(registry)
    assert metric_state(exposition, "p") == pool_state(pool)
    assert exposition.counters("p")["checkouts"] == 1


def test_pool_is_collected_with_its_series(registry: CollectorRegistry, tmp_path: Path) -> None:
    """A dropped engine is collected as it would be without us, its series go, and the handle does not hold it."""
    engine = create_engine(f"sqlite:///{tmp_path / 'db'}", poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    engine.connect().close()
    pool = weakref.ref(engine.pool)
    del engine
    gc.collect()
    assert pool() is None
    assert handle.closed
    assert f'pool="{handle.name}"' not in generate_latest(registry).decode()


def test_listeners_keep_their_order(registry: CollectorRegistry) -> None:
    """The application's listeners run as before, also those that were added after us and removed again."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    calls: list[str] = []

    def listener(label: str) -> Any:
        def called(*_: object) -> None:
            calls.append(label)

        return called

    early, late = listener("early"), listener("late")
    event.listen(engine, "invalidate", early)
    instrument(engine, registry=registry)
    event.listen(engine, "invalidate", late)
    connection = engine.connect()
    connection.invalidate()
    connection.close()
    assert calls == ["early", "late"]
    event.remove(engine, "invalidate", early)
    event.remove(engine, "invalidate", late)
    engine.dispose()
    connection = engine.connect()
    connection.invalidate()
    connection.close()
    assert calls == ["early", "late"]


def test_more_waiters_and_connections_than_the_tables_hold(registry: CollectorRegistry) -> None:
    """Beyond its tables a pool counts on: pending callers all, connections as untracked."""
    pool: Pool = NullPool(creator)
    instrument(pool, name="p", registry=registry)
    out = [pool.connect() for _ in range(4100)]
    exposition = Exposition(registry)
    assert exposition.value("connections", "p", state="in_use") == 4096
    assert exposition.value("untracked_connections", "p") == 4
    for connection in out:
        connection.close()
    exposition = Exposition(registry)
    assert exposition.value("untracked_connections", "p") == 0
    assert exposition.value("connections", "p", state="in_use") == 0
    counted = exposition.counters("p")
    assert (counted["checkouts"], counted["checkins"], counted["closes.unpooled"]) == (4100, 4100, 4100)
