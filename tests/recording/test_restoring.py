# SPDX-License-Identifier: Apache-2.0
"""Closing a handle restores the pool, its dialect, its listeners and its records."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event
from sqlalchemy.pool import (
    Pool,
    QueuePool,
)

from sqlalchemy_pool_exporter import instrument, uninstrument
from tests.support.database import Database
from tests.support.diary import EVENTS
from tests.support.pool_incidents import POOLS, attributes, quietly, snapshot
from tests.support.samples import Exposition, sqlalchemy_lines
from tests.support.wait import SECONDS
from tests.support.witness import metric_state, pool_state

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter import Handle

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.parametrize("poolclass", POOLS)
@pytest.mark.parametrize("out", [0, 1])
def test_closing_undoes_everything(poolclass: type[Pool], out: int) -> None:
    """close() restores the pool, its dialect, listeners and records, with or without a connection in use."""
    engine = Database().engine(poolclass=poolclass, pool_pre_ping=True)
    for _ in range(2):
        engine.connect().close()
    raw: Any = engine.raw_connection()
    record = raw._connection_record
    if not out:
        raw.close()
    before = snapshot(engine, record)
    for _ in range(2):
        registry = CollectorRegistry()
        with instrument(engine, registry=registry) as handle:
            assert instrument(engine, name="another", registry=CollectorRegistry()) is handle
            assert instrument(engine.pool) is handle
            if not out:
                engine.connect().close()
        handle.close()
        assert handle.closed
        assert before == snapshot(engine, record)
        assert Exposition(registry).samples == {}
    if out:
        raw.close()
    uninstrument(engine)


def test_closing_after_dispose_undoes_everything() -> None:
    """close() restores the pools from before and after dispose(), with their records."""
    engine = Database().engine(pool_pre_ping=True)
    for _ in range(2):
        engine.connect().close()
    first: Any = engine.raw_connection()
    old = engine.pool
    before = snapshot(engine, first._connection_record)
    handle = quietly(engine)
    engine.dispose()
    second: Any = engine.raw_connection()
    handle.close()
    assert before[1:] == snapshot(engine, second._connection_record)[1:]
    assert attributes(old) == before[0]
    assert attributes(old).keys() == attributes(engine.pool).keys()
    assert attributes(first._connection_record) == attributes(second._connection_record)
    first.close()
    second.close()


def test_closing_leaves_wrappers_of_others_alone() -> None:
    """close() leaves the application's wrapper around our ``connect()``; instrumenting again counts checkouts once."""
    engine, calls = Database().engine(), []
    handle = quietly(engine)
    inner = engine.pool.connect

    def theirs() -> Any:
        calls.append("connect")
        return inner()

    engine.pool.connect = theirs  # type: ignore[method-assign]
    handle.close()
    assert engine.pool.connect is theirs
    engine.connect().close()
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    with engine.connect():
        assert Exposition(registry).value("connections", again.name, state="in_use") == 1
    assert calls == ["connect"] * 2
    assert Exposition(registry).counters(again.name)["checkouts"] == 1
    assert Exposition(registry).counters(again.name)["checkins"] == 1
    again.close()
    assert engine.pool.connect is theirs


def test_every_hook_wrapped_by_somebody_else() -> None:
    """If the application has wrapped every hook, closing and instrumenting again still counts everything once."""
    engine = Database().engine()
    names = set(vars(engine.pool))
    handle = quietly(engine)
    for name in set(vars(engine.pool)) - names | {"_invoke_creator"}:
        hook = vars(engine.pool)[name]
        if inspect.isfunction(hook):
            setattr(engine.pool, name, lambda *args, hook=hook, **kwargs: hook(*args, **kwargs))
    handle.close()
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    connections = [engine.connect() for _ in range(2)]
    assert metric_state(Exposition(registry), again.name) == pool_state(engine.pool)
    for connection in connections:
        connection.close()
    exposition = Exposition(registry)
    assert metric_state(exposition, again.name) == pool_state(engine.pool)
    counted = exposition.counters(again.name)
    assert {"checkouts": 2, "checkins": 2, "connects": 2, "closes.overflow": 1} == {
        key: counted[key] for key in ("checkouts", "checkins", "connects", "closes.overflow")
    }


@pytest.mark.parametrize("name", ["connect", "checkout", "invalidate", "soft_invalidate", "close", "checkin"])
def test_attaching_and_closing_inside_a_listener(name: str) -> None:
    """A listener can instrument its own pool, and another can undo it; the listeners after them still run."""
    engine, heard = Database().engine(), []
    handles: list[Handle] = []

    def attach(*_: object) -> None:
        heard.append("attach")
        handles.append(quietly(engine))

    def close(*_: object) -> None:
        heard.append("close")
        handles[-1].close()

    for listener in (attach, close):
        event.listen(engine, name, listener)
    event.listen(engine, name, lambda *_: heard.append("last"))
    connection = engine.connect()
    connection.connection.invalidate(soft=True)
    connection.invalidate()
    connection.close()
    assert heard
    assert heard == ["attach", "close", "last"] * (len(heard) // 3)


def test_closing_while_threads_are_inside_connect() -> None:
    """close() while other threads are connecting does not fail them and leaves nothing on their records."""
    arrived, go_on = threading.Semaphore(0), threading.Event()
    database = Database()

    def stop() -> None:
        arrived.release()
        assert go_on.wait(SECONDS)

    database.during_connect = stop
    engine = database.engine(pool_size=4)
    before = snapshot(engine)
    handle = quietly(engine)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(engine.raw_connection())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert arrived.acquire(timeout=SECONDS)
    handle.close()
    go_on.set()
    for thread in threads:
        thread.join()
    left = [name for raw in got for name in vars(raw._connection_record) if "exporter" in name]
    assert left == []
    after = snapshot(engine)
    assert before[0].keys() == after[0].keys()  # type: ignore[attr-defined]
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    assert metric_state(Exposition(registry), again.name) == pool_state(engine.pool)
    for raw in got:
        raw.close()
    assert metric_state(Exposition(registry), again.name) == pool_state(engine.pool)


def test_attaching_that_fails_leaves_nothing_behind() -> None:
    """If ``instrument()`` fails because the registry is invalid or refuses the collector, it leaves no trace."""

    class Refusing(CollectorRegistry):
        def register(self, _collector: object) -> None:
            raise ValueError("no more collectors")

    engine = Database().engine(pool_pre_ping=True)
    raw: Any = engine.raw_connection()
    before = snapshot(engine, raw._connection_record)
    for registry in (Refusing(), None):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            instrument(engine, registry=registry)  # type: ignore[arg-type]
        assert before == snapshot(engine, raw._connection_record)
    handle = quietly(engine)
    assert not handle.closed
    raw.close()


def test_closing_during_a_dispose_closes_the_new_pool_too() -> None:
    """After close() during another thread's dispose(), the new pool can be instrumented and counts correctly."""
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(QueuePool):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if threading.current_thread() is not threading.main_thread():
                arrived.set()
                assert go_on.wait(SECONDS)

    engine = Database().engine(poolclass=Slow)
    handle = quietly(engine)
    thread = threading.Thread(target=engine.dispose)
    thread.start()
    assert arrived.wait(SECONDS)
    handle.close()
    go_on.set()
    thread.join()
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    assert not again.closed
    engine.connect().close()
    assert Exposition(registry).value("checkouts_total", again.name) == 1


@pytest.mark.usefixtures("leave_nothing")
def test_close_restores_the_pool(registry: CollectorRegistry) -> None:
    """close() leaves nothing of ours on pool, dialect and records, and no series; the pool can be instrumented anew."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_pre_ping=True)
    engine.connect().close()
    before = dict(engine.pool.__dict__)
    listeners = {name: list(getattr(engine.pool.dispatch, name)) for name in EVENTS}
    handle = instrument(engine, registry=registry)
    held = engine.connect()
    record: Any = held.connection._connection_record
    assert sqlalchemy_lines(registry)
    handle.close()
    handle.close()
    assert engine.pool.__dict__ == before
    assert not [name for name in engine.dialect.__dict__ if "ping" in name]
    assert listeners == {name: list(getattr(engine.pool.dispatch, name)) for name in EVENTS}
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


@pytest.mark.usefixtures("leave_nothing")
def test_close_after_dispose(registry: CollectorRegistry) -> None:
    """After dispose(), close() restores both the new pool and the old one that still has connections in use."""
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
