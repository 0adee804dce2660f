# SPDX-License-Identifier: Apache-2.0
"""Checkouts from many threads, or from greenlets, are all counted."""

from __future__ import annotations

import gc
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.recording import slow_path, sqlalchemy_pool
from tests.support.database import Database
from tests.support.diary import PACKAGE
from tests.support.pool_incidents import CANCELLED
from tests.support.programs import PROLOGUE, run
from tests.support.samples import Exposition
from tests.support.wait import SECONDS
from tests.support.witness import assert_sites_add_up, metric_state, pool_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


pytestmark = pytest.mark.usefixtures("little_to_collect")


def test_threads_lose_nothing() -> None:
    """Eight threads with a switch interval of 1 µs lose no count and leave nothing in use or pending."""
    database = Database()
    engine, registry = database.engine(pool_size=2, max_overflow=2, pool_timeout=30), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for turn in range(150):
                raw = engine.raw_connection()
                if turn % 10 == number:
                    raw.invalidate()
                raw.close()
        except BaseException as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    _in_threads(work, 8)
    assert failures == []
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    expected = {"checkouts": 1200, "checkins": 1200, "invalidations.hard": 120, "closes.error": 120}
    assert expected == {key: counted[key] for key in expected}
    assert counted["connects"] == next(database.serials) - 1
    assert counted["checkout_wait_seconds_count"] == counted["hold_seconds_count"] == 1200
    assert metric_state(exposition, handle.name) == pool_state(engine.pool)
    assert_sites_add_up(exposition, handle.name)
    assert exposition.value("pending_checkouts", handle.name) == 0
    assert exposition.value("connections", handle.name, state="idle") == len(database.open)


def test_a_record_that_another_thread_takes_as_it_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose connection is gone keeps its row if another thread takes it out of the queue at once."""
    engine, registry = Database().engine(pool_size=1, max_overflow=0), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    first, taken = engine.raw_connection(), list[Any]()
    look = sqlalchemy_pool.keeps

    def keeps(pool: Any, record: Any) -> bool:
        """Look while another thread has the record, which then opens its connection."""
        if taken:
            return look(pool, record)
        out = pool._pool.get(block=False)
        kept = look(pool, record)
        pool._pool.put(out, block=False)
        taken.append(engine.raw_connection())
        return kept

    monkeypatch.setattr(slow_path, "keeps", keeps)
    first.invalidate()
    assert Exposition(registry).value("connections", handle.name, state="in_use") == 1
    taken[0].close()
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    assert (counted["checkouts"], counted["checkins"], counted["hold_seconds_count"]) == (2, 2, 2)
    assert metric_state(exposition, handle.name) == pool_state(engine.pool)


class Interrupted(QueuePool):
    """A pool that another thread uses at the moment in which its hook is removed."""

    meanwhile: list[Callable[[], Any]]

    def __setattr__(self, name: str, value: Any) -> None:
        """Let the other thread come first."""
        if name == "connect" and self.__dict__.get("meanwhile"):
            self.meanwhile.pop()()
        super().__setattr__(name, value)


def test_a_record_that_another_thread_invalidates_before_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    """A return counts if a thread only then looks whether the pool kept the record, which it had returned before."""
    pool: Any = Database().engine(pool_size=1, max_overflow=0, pool_timeout=60).pool
    handle = instrument(pool, registry=registry)
    is_closed, has_looked = threading.Event(), threading.Event()
    look = slow_path.SlowPath.release_if_discarded

    def look_late(path: slow_path.SlowPath, record: Any) -> None:
        if threading.current_thread() is other:
            is_closed.wait()
        look(path, record)
        has_looked.set()

    def let_it_look(*_: object) -> None:
        is_closed.set()
        has_looked.wait()

    monkeypatch.setattr(slow_path.SlowPath, "release_if_discarded", look_late)
    other = threading.Thread(target=lambda: pool.connect().invalidate())
    other.start()
    while not pool.checkedin():
        time.sleep(0.001)
    mine = pool.connect()
    event.listen(
        pool, "checkin", let_it_look
    )  # called when the connection is closed, and the record still out
    mine.invalidate()
    other.join()
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    expected = {"checkouts": 2, "checkins": 2, "hold_seconds_count": 2, "exporter_recording_faults": 0}
    assert expected == {key: counted.get(key, 0) for key in expected}
    assert metric_state(exposition, handle.name) == pool_state(pool)


def test_two_threads_that_use_a_replaced_pool_again(registry: CollectorRegistry) -> None:
    """A pool that was replaced and lives on is one for both threads that use it at once; that is no fault."""
    creator: Any = Database().connect
    pool = Interrupted(creator, pool_size=2)
    engine = create_engine("sqlite://", pool=pool)
    handle = instrument(engine, registry=registry)
    engine.dispose()
    pool.meanwhile = [lambda: pool.connect().close()]
    pool.connect().close()
    counted = Exposition(registry).counters(handle.name)
    assert counted["checkouts"] == counted["checkins"] == 2
    assert "exporter_recording_faults" not in counted


def test_threads_and_disposals_lose_nothing() -> None:
    """The same, while one thread disposes of the engine again and again."""
    database = Database()
    engine, registry = database.engine(pool_size=2, max_overflow=4, pool_timeout=30), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(100):
                if number == 0 and turn % 2:
                    engine.dispose()
                else:
                    engine.raw_connection().close()
        except BaseException as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    _in_threads(work, 5)
    assert failures == []
    gc.collect()
    connections = [engine.raw_connection() for _ in range(4)]
    exposition = Exposition(registry)
    opened = exposition.counters(handle.name)["overflow_opened"]
    assert metric_state(exposition, handle.name) == pool_state(engine.pool)
    connections.append(engine.raw_connection())
    assert Exposition(registry).counters(handle.name)["overflow_opened"] == opened + 1
    for raw in connections:
        raw.close()
    engine.dispose()
    gc.collect()
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    assert counted["connects"] == sum(value for key, value in counted.items() if key.startswith("closes."))
    assert counted["checkouts"] == counted["checkins"] == 50 + 400 + 5
    assert_sites_add_up(exposition, handle.name)
    assert exposition.value("pending_checkouts", handle.name) == 0
    assert "exporter_recording_faults" not in counted


def _in_threads(work: Callable[[int], None], number: int) -> None:
    threads = [threading.Thread(target=work, args=(each,)) for each in range(number)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def test_threads_under_a_debugger_lose_nothing() -> None:
    """No count is lost if a trace function lets another thread run at each line of our code, as a debugger can."""
    database = Database()
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def stop() -> None:
        arrived.release()
        assert go_on.wait(SECONDS)

    engine, registry = database.engine(pool_size=24, max_overflow=0), CollectorRegistry()
    engine.connect().close()
    handle = instrument(engine, registry=registry)
    engine.dispose()
    database.during_connect = stop

    def trace(frame: FrameType, _what: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        time.sleep(0)
        return trace

    def work(_: int) -> None:
        sys.settrace(trace)
        try:
            engine.raw_connection().close()
            for _turn in range(10):
                engine.raw_connection().close()
        finally:
            sys.settrace(None)

    watcher: list[float] = []

    def watch() -> None:
        for _ in range(24):
            assert arrived.acquire(timeout=SECONDS)
        watcher.append(Exposition(registry).value("pending_checkouts", handle.name))
        database.during_connect = lambda: None
        go_on.set()

    thread = threading.Thread(target=watch)
    thread.start()
    _in_threads(work, 24)
    thread.join()
    assert watcher == [24]
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    assert (264, 264) == (counted["checkouts"], counted["checkins"])
    assert metric_state(exposition, handle.name) == pool_state(engine.pool)
    assert_sites_add_up(exposition, handle.name)
    assert exposition.value("pending_checkouts", handle.name) == 0
    assert "exporter_recording_faults" not in counted


def test_gevent() -> None:
    """Greenlets that switch, time out or are killed in connect, reset or close cause no deadlock and no wrong count."""
    pytest.importorskip("gevent")
    result = run(
        """
        pool = QueuePool(connect, pool_size=2, max_overflow=1, timeout=0.005)
        instrument(pool, name="p", registry=registry)
        tally = {"checkouts": 0, "failed": 0}

        def work(number):
            for turn in range(20):
                raw = None
                try:
                    with gevent.Timeout(0.003 if turn % 5 == number % 5 else None):
                        raw = pool.connect()
                        tally["checkouts"] += 1
                        gevent.sleep(0)
                        raw.close()
                except (gevent.Timeout, Exception):
                    tally["failed"] += 1
                finally:
                    if raw is not None:
                        raw.close() if raw.is_valid else None
                    raw = None

        greenlets = [gevent.spawn(work, number) for number in range(12)]
        gevent.sleep(0.05)
        for greenlet in greenlets[::4]:
            greenlet.kill(block=False)
        gevent.joinall(greenlets, raise_error=False)
        gc.collect()
        now = samples()
        assert now["pending_checkouts"] == 0, now
        # Of old, SQLAlchemy does not put back what is killed in the middle of its reset.
        lost = 0 if "new" in sys.argv else pool.checkedout()
        assert now["connections.in_use"] <= lost, (lost, now)
        assert now["exporter_recording_faults_total"] == 0, now
        assert tally["checkouts"] <= now["checkouts_total"], (tally, now)
        held = pool.connect()
        assert samples()["connections.in_use"] == now["connections.in_use"] + 1
        print("done")
        """,
        "new" if CANCELLED else "old",
        prologue=textwrap.dedent(
            """
            import gevent.monkey
            gevent.monkey.patch_all()
            import gevent
            """
        )
        + PROLOGUE
        + textwrap.dedent(
            """
            import warnings
            warnings.simplefilter("ignore")

            class Slow(Connection):
                def rollback(self): gevent.sleep(0.0005)
                def close(self): gevent.sleep(0.0005)

            def connect():
                gevent.sleep(0.001)
                return Slow()
            """
        ),
    )
    assert result.stdout == "done\n", result.stderr
