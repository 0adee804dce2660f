# SPDX-License-Identifier: Apache-2.0
"""A pool can be instrumented while it is in use."""

from __future__ import annotations

import copy
import threading
import time
from queue import SimpleQueue
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import event
from sqlalchemy.pool import NullPool, Pool, QueuePool, StaticPool

from sqlalchemy_pool_exporter import instrument
from tests.support.database import Database
from tests.support.fakes import connect
from tests.support.memory import creator
from tests.support.pool_incidents import quietly
from tests.support.programs import PROLOGUE, run
from tests.support.samples import Exposition
from tests.support.wait import SECONDS, eventually
from tests.support.witness import metric_state, pool_state

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.parametrize("moment", ["before the record", "while connecting", "in a listener"])
@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_attaching_while_a_connect_is_under_way(poolclass: Any, moment: str) -> None:
    """A checkout begun before instrumenting counts as in use once it succeeds, and as returned after its return."""
    arrived, go_on = threading.Event(), threading.Event()
    database = Database()

    def stop() -> None:
        arrived.set()
        assert go_on.wait(10)

    class Slow(poolclass):  # type: ignore[misc]
        def _create_connection(self) -> Any:
            if moment == "before the record":
                stop()
            return super()._create_connection()

    engine = database.engine(poolclass=Slow)
    if moment == "while connecting":
        database.during_connect = stop
    elif moment == "in a listener":
        event.listen(engine, "connect", lambda *_: stop())
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(engine.connect()))
    thread.start()
    assert arrived.wait(10)
    registry = CollectorRegistry()
    handle = instrument(engine, registry=registry)
    go_on.set()
    thread.join()
    assert Exposition(registry).value("connections", handle.name, state="in_use") == 1
    is_kept = poolclass is QueuePool
    if is_kept:
        assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    got.pop().close()
    assert Exposition(registry).value("connections", handle.name, state="in_use") == 0
    assert Exposition(registry).value("connections", handle.name, state="idle") == is_kept
    assert not Exposition(registry).get("exporter_recording_faults_total", handle.name)


def test_attaching_while_callers_wait() -> None:
    """A caller that waits in the queue when the pool is instrumented counts as in use once it is served."""
    engine = Database().engine(pool_size=1, max_overflow=0, pool_timeout=10)
    held = engine.connect()
    got: SimpleQueue[Any] = SimpleQueue()
    threads = [threading.Thread(target=lambda: got.put(engine.raw_connection())) for _ in range(2)]
    for thread in threads:
        thread.start()
    queue: Any = engine.pool._pool  # type: ignore[attr-defined]
    assert eventually(lambda: len(queue.not_empty._waiters) == 2)
    registry = CollectorRegistry()
    handle = instrument(engine, registry=registry)
    assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    held.close()
    for _ in threads:
        served = got.get(timeout=SECONDS)
        exposition = Exposition(registry)
        assert metric_state(exposition, handle.name) == pool_state(engine.pool)
        assert exposition.value("connections", handle.name, state="in_use") == 1
        served.close()
    for thread in threads:
        thread.join()
    assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    assert Exposition(registry).value("pending_checkouts", handle.name) == 0


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, StaticPool])
def test_checkouts_beside_those_that_are_awaited(poolclass: type[Pool], registry: CollectorRegistry) -> None:
    """While checkouts from before instrumenting are awaited, each later one counts as it does in a pool without any."""
    engine = Database().engine(poolclass=poolclass)
    held = engine.raw_connection()
    name = instrument(engine, registry=registry).name
    held.close()
    for _ in range(2):
        engine.raw_connection().close()
    assert Exposition(registry).counters(name).items() >= {"checkouts": 2, "checkins": 3}.items()

    @event.listens_for(engine, "checkout")
    def refuse(*_: object) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        engine.raw_connection()
    counters = Exposition(registry).counters(name)
    assert counters.items() >= {"checkouts": 2, "checkins": 3, "checkout_errors.other": 1}.items()
    assert Exposition(registry).value("connections", name, state="in_use") == 0
    assert not Exposition(registry).get("exporter_recording_faults_total", name)
    engine.dispose()


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_a_copy_of_a_pool_in_use(poolclass: type[Pool], registry: CollectorRegistry) -> None:
    """The checkouts of a copy of a pool, which has the same listeners, are not those of the pool."""
    pool: Any = poolclass(connect)
    copied = copy.copy(pool)
    held = pool.connect()
    name = instrument(pool, registry=registry).name
    other = copied.connect()
    assert Exposition(registry).value("connections", name, state="in_use") == 1
    other.close()
    assert Exposition(registry).counters(name) == {}
    held.close()


def test_attaching_does_not_wait_for_the_queue() -> None:
    """A finalizer that closes a handle while its thread holds the queue's lock does not deadlock."""
    result = run(
        """
        pool, other = QueuePool(Connection), QueuePool(Connection)
        pool.connect().close()
        handle = instrument(other, registry=registry)
        threading.Timer(60, os._exit, [1]).start()
        with pool._pool.mutex:  # as within put() and get(), in which the garbage collector can run
            attaching = threading.Thread(target=lambda: instrument(pool, registry=registry))
            attaching.start()
            attaching.join(0.5)
            handle.close()
        attaching.join()
        sys.stdout.write("done")
        sys.stdout.flush()
        os._exit(0)
        """,
        prologue=PROLOGUE,
    )
    assert result.stdout == "done", result.stderr


def test_others_that_refer_to_the_pool_are_not_touched() -> None:
    """``instrument()`` finds the pool's records without running code of objects that refer to the pool."""

    class Lazy:
        def __init__(self, pool: Pool) -> None:
            self.pool = pool

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise RuntimeError("working outside of a context")

    engine = Database().engine()
    with engine.connect():
        lazy = Lazy(engine.pool)
        quietly(engine)
    del lazy


@pytest.mark.usefixtures("leave_nothing")
def test_attach_while_connections_are_out(registry: CollectorRegistry) -> None:
    """Connections open before instrumenting show their true age; their returns are counted, without a hold time."""
    pool = QueuePool(creator, pool_size=3, max_overflow=1)
    out = [pool.connect() for _ in range(4)]
    out.pop().close()
    time.sleep(0.05)
    instrument(pool, name="p", registry=registry)
    exposition = Exposition(registry)
    assert metric_state(exposition, "p") == pool_state(pool)
    # Both ages are taken at the same moment, so a slow machine does not change the difference.
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


@pytest.mark.usefixtures("leave_nothing")
def test_attach_while_callers_wait(registry: CollectorRegistry) -> None:
    """Callers that queue when the pool is instrumented count as in use once served; no gauge goes below zero."""
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


@pytest.mark.usefixtures("leave_nothing")
def test_attach_to_a_busy_null_pool(registry: CollectorRegistry) -> None:
    """NullPool keeps no list of open connections; ``instrument()`` still finds those in use."""
    pool = NullPool(creator)
    out = pool.connect()
    instrument(pool, name="p", registry=registry)
    assert Exposition(registry).value("connections", "p", state="in_use") == 1
    out.close()
    assert Exposition(registry).counters("p") == {"checkins": 1, "closes.unpooled": 1}
