# SPDX-License-Identifier: Apache-2.0
"""The metrics stay correct when the garbage collector and finalizers run at any moment of a recording."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import event
from sqlalchemy.pool import (
    Pool,
    QueuePool,
)

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.recording import connection_row_cy
from tests.support import wait
from tests.support.database import Database, Socket
from tests.support.moments import Scene, checks_out_again, each_moment
from tests.support.pool_incidents import POOLS, quietly
from tests.support.programs import run
from tests.support.samples import Exposition, RegistrySamples
from tests.support.sources import is_compiled
from tests.support.witness import metric_state, pool_state

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.parametrize("poolclass", POOLS)
def test_everything_is_collected_as_before(poolclass: type[Pool]) -> None:
    """A dropped engine, its pool, records and connections are garbage-collected."""
    database = Database()
    engine = database.engine(poolclass=poolclass)
    handle = quietly(engine)
    raw: Any = engine.raw_connection()
    dropped = [
        weakref.ref(each) for each in (engine, engine.pool, raw, raw._connection_record, raw.dbapi_connection)
    ]
    raw.close()
    del raw, engine
    gc.collect()
    assert [reference() for reference in dropped] == [None] * len(dropped)
    assert handle.closed
    assert not database.open


def test_what_a_listener_loses_is_collected() -> None:
    """A connection whose return fails in a listener is lost to its pool; our code does not keep it alive."""
    database, registry = Database(), CollectorRegistry()
    engine = database.engine(poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    raw: Any = engine.raw_connection()
    record = weakref.ref(raw._connection_record)

    def refuse(*_: object) -> None:
        message = "no"
        raise LookupError(message)

    event.listen(engine, "checkin", refuse)
    with pytest.raises(LookupError):
        raw.close()
    # Use a cycle, so that the garbage collector frees the proxy: unlike the last decref, the collector leaves a weak
    # reference its callback, which could keep the record alive.
    cycle: list[object] = [raw]
    cycle.append(cycle)
    del raw, cycle
    gc.collect()
    gc.collect()
    assert record() is None
    assert not database.open
    assert Exposition(registry).value("connections", handle.name, state="in_use") == 0


@pytest.mark.parametrize("poolclass", POOLS)
def test_nothing_waits_for_the_garbage_collector_that_did_not_before(poolclass: type[Pool]) -> None:
    """Without the garbage collector, records and connections are freed at the same moments as in a bare pool."""

    def lifetimes(*, instrumented: bool) -> list[object]:
        database = Database()
        make: Any = partial(Socket, database)
        pool = poolclass(make)
        if instrumented:
            instrument(pool, registry=CollectorRegistry())
        told: list[object] = []
        gc.disable()
        try:
            for end in ("close", "detach", "invalidate", "drop", "keep"):
                raw: Any = pool.connect()
                kept = [weakref.ref(raw._connection_record), weakref.ref(raw.dbapi_connection)]
                if end in {"detach", "invalidate"}:
                    getattr(raw, end)()
                if end != "drop":
                    raw.close()
                if end != "keep":
                    del raw
                told.append((end, [reference() is None for reference in kept], sorted(database.open)))
            if poolclass is QueuePool:
                several = [pool.connect() for _ in range(7)]
                records = [weakref.ref(raw._connection_record) for raw in several]
                for raw in several:
                    raw.close()
                told.append(([record() is None for record in records], sorted(database.open)))
            pool.dispose()
            told.append(sorted(database.open))
            pool = pool.recreate()
            told.append(sorted(database.open))
        finally:
            gc.enable()
        return told

    assert lifetimes(instrumented=False) == lifetimes(instrumented=True)


def returns_one(scene: Scene) -> None:
    if scene.held:
        scene.held.pop()


def opens_overflow(scene: Scene) -> None:
    several = [scene.pool.connect() for _ in range(3)]
    several.clear()


@pytest.mark.parametrize("finalizer", [returns_one, checks_out_again, opens_overflow])
@pytest.mark.parametrize("act", ["checkout", "overflow", "invalidate", "detach", "leak"])
def test_finalizers_at_any_moment(act: str, finalizer: Callable[[Scene], None]) -> None:
    """If a finalizer uses the same pool in the middle of a recording, its checkouts and returns are counted too."""
    for scene, where, raised in each_moment(act, finalizer, max_overflow=9):
        assert raised is None, where
        scene.assert_true(where)
        counted = RegistrySamples(scene.registry).counters(scene.handle.name)
        assert "exporter_recording_faults" not in counted, where
        assert counted["checkouts"] == counted["checkins"] + counted.get("detaches", 0), where


def test_the_garbage_collector_in_the_middle() -> None:
    """If a collection at every allocation runs finalizers that use the same pool, all totals are exact."""
    engine, registry = Database().engine(pool_size=2, max_overflow=-1), CollectorRegistry()
    engine.connect().close()  # SQLAlchemy holds a lock in its first connect, where a finalizer would deadlock
    handle = instrument(engine, registry=registry)
    checkouts: list[None] = []
    ended: list[None] = []
    depth = 0

    def cycle() -> None:
        raw = engine.raw_connection()
        checkouts.append(None)
        raw.close()

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            nonlocal depth
            if depth < 3:
                depth += 1
                cycle()
                depth -= 1
            ended.append(None)

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            Garbage()
            cycle()
    finally:
        gc.set_threshold(*thresholds)

    def all_ended() -> bool:
        gc.collect()  # does nothing while another thread, of an earlier test, collects
        return len(ended) == 300

    assert wait.eventually(all_ended)
    counted = Exposition(registry).counters(handle.name)
    assert {"checkouts": len(checkouts), "checkins": len(checkouts)} == {
        key: counted[key] for key in ("checkouts", "checkins")
    }
    assert len(checkouts) > 300
    assert "exporter_recording_faults" not in counted
    assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    assert Exposition(registry).value("pending_checkouts", handle.name) == 0


def test_a_finalizer_may_close_a_handle_at_any_moment() -> None:
    """A finalizer that closes its pool's handle can run at any moment while another pool is instrumented."""
    result = run(
        """
        import gc
        from prometheus_client import CollectorRegistry
        from sqlalchemy.pool import QueuePool
        from sqlalchemy_pool_exporter import instrument

        class Owner:
            def __init__(self):
                self.itself = self
                self.pool = QueuePool(object)
                self.handle = instrument(self.pool, name="owned", registry=registry)

            def __del__(self):
                self.handle.close()

        registry = CollectorRegistry()
        gc.freeze()
        for step in range(1, 400):
            gc.disable()
            gc.collect()
            Owner()
            gc.set_threshold(gc.get_count()[0] + step)
            gc.enable()
            instrument(QueuePool(object), name="other", registry=registry).close()
        print("done")
        """
    )
    assert result.stdout == "done\n", result.stderr


ROWS_THAT_CHANGE = """
import sys
from itertools import count
from sqlalchemy_pool_exporter.recording.connection_row_cy import HeldRows

MANY = 20_000

def change(held):
    # As many as before, and in a smaller table.
    del held.others[MANY - 1]
    for _ in range(2 * MANY):
        held.others[0] = None
        del held.others[0]
    held.others[0] = None

def reads(moment):
    held, moments = HeldRows(), count()
    held.others.update(dict.fromkeys(range(MANY)))
    for key in range(MANY - 1):
        del held.others[key]

    def trace(frame, event, _):
        frame.f_trace_opcodes = True
        if event == "opcode" and next(moments) == moment:
            change(held)
        return trace

    sys.settrace(trace)
    try:
        assert held.latest(64) == [None]
    except RuntimeError:
        pass
    finally:
        sys.settrace(None)
    return next(moments) > moment

tried = 0
while reads(tried):
    tried += 1
print("tried several" if tried > 5 else tried)
"""


@pytest.mark.skipif(is_compiled(connection_row_cy), reason="nothing runs in the midst of compiled code")
def test_rows_that_change_while_they_are_read() -> None:
    """A finalizer that changes what a holder has, at any moment of a look at it, does not crash the interpreter."""
    done = run(ROWS_THAT_CHANGE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tried several\n", "")
