# SPDX-License-Identifier: Apache-2.0
"""Connections that are held for longer than ``leak_after``: counted, logged, and logged again when they come back."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import TargetError, instrument, label
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.recording import leaks
from sqlalchemy_pool_exporter.recording.leaks import WATCH
from sqlalchemy_pool_exporter.recording.stacks import stack_of
from sqlalchemy_pool_exporter.segment.directory import Reader
from tests.support.database import Database
from tests.support.fakes import connect
from tests.support.programs import PROLOGUE, run
from tests.support.samples import Exposition, key, read_samples
from tests.support.wait import SECONDS, eventually, eventually_async

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from tests.support.pg import Server
    from tests.support.pool_case import Case

AFTER = 0.04


class Log(logging.Handler):
    """What was logged of suspects, and of those that came back."""

    def __init__(self) -> None:
        super().__init__()
        self.suspects: list[Any] = []
        self.ended: list[Any] = []
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        for name, found in (("pool_leak", self.suspects), ("pool_leak_ended", self.ended)):
            if hasattr(record, name):
                self.messages.append(record.getMessage())
                found.append(getattr(record, name))


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    # The thread may be in the middle of a look at a pool of this test, or sleep until the next look at one.
    WATCH.has_new = True
    eventually(lambda: not WATCH.is_running, seconds=20.0)
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def may_look(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let the watch look at the stack of a holder only once that is where the test wants it, and has said so."""
    is_there = threading.Event()

    def look_then(holder: Any) -> list[str]:
        assert is_there.wait(SECONDS)
        return stack_of(holder)

    monkeypatch.setattr(leaks, "stack_of", look_then)
    return is_there


def by_site(registry: CollectorRegistry, metric: str, pool: str = "diary") -> dict[str, float]:
    """Return the values of a counter that are not 0, by function."""
    return {
        dict(labels)["site"].split(":")[-2].rpartition(".")[2]
        if ":" in dict(labels)["site"]
        else "other": value
        for (name, labels), value in Exposition(registry).samples.items()
        if name == f"sqlalchemy_pool_{metric}" and dict(labels)["pool"] == pool and value
    }


def test_a_suspect(case: Case, log: Log) -> None:
    """A connection that is held too long is counted and logged once, with site and holder, and once when it is back."""
    case.options["leak_after"] = AFTER

    def scenario(case: Case) -> None:
        engine = case.start()
        assert case.now().value("leak_suspects", case.name) == 0

        def hold() -> Any:
            with label("GET /pay"):
                return engine.connect()

        held = hold()
        assert eventually(lambda: log.suspects)
        time.sleep(3 * AFTER)
        (report,) = log.suspects
        assert json.loads(json.dumps(report)) == report
        assert report["site"].split(":")[1].endswith("hold")
        assert (report["pool"], report["label"]) == (case.name, "GET /pay")
        assert report["leak_after_seconds"] == AFTER
        assert report["held_seconds"] >= AFTER
        if not case.is_async:
            assert report["holder"] == threading.current_thread().name
        assert report["holder"]
        assert bool(report["server_pid"]) == case.has_server
        assert "stack" not in report
        assert case.now().value("leak_suspects", case.name) == 1
        assert by_site(case.registry, "suspected_leaks_total", case.name) == {"hold": 1}
        held.close()
        assert case.now().value("leak_suspects", case.name) == 0
        assert eventually(lambda: log.ended)
        (ended,) = log.ended
        assert ended["held_seconds"] >= report["held_seconds"]
        assert ended["site"] == report["site"]
        engine.connect().close()
        assert case.now().value("leak_suspects", case.name) == 0
        held = hold()
        # On a busy machine the short checkout above is held for too long, too.
        assert eventually(lambda: [one["site"] for one in log.suspects].count(report["site"]) == 2)
        held.close()
        assert by_site(case.registry, "suspected_leaks_total", case.name)["hold"] == 2

    case.run(scenario)
    assert case.name in log.messages[0]
    assert "GET /pay" in log.messages[0]


def test_a_checkout_that_was_not_recorded(registry: CollectorRegistry, log: Log) -> None:
    """A connection that was out already when its pool was instrumented is a suspect, too, of no known site."""
    engine = Database().engine()
    held = engine.connect()
    with instrument(engine, registry=registry, leak_after=AFTER):
        assert eventually(lambda: log.suspects)
        assert log.suspects[0]["site"] == "other"
        assert Exposition(registry).value("leak_suspects", "diary") == 1
        assert by_site(registry, "suspected_leaks_total") == {"other": 1}
        held.close()
        assert eventually(lambda: log.ended)
    engine.dispose()


def test_off_by_default(registry: CollectorRegistry, log: Log) -> None:
    """Without leak_after there is no gauge, no thread and no record."""
    engine = Database().engine()
    with instrument(engine, registry=registry), engine.connect():
        time.sleep(3 * AFTER)
        assert Exposition(registry).get("leak_suspects", "diary") is None
        assert by_site(registry, "suspected_leaks_total") == {}
    assert log.suspects == []
    engine.dispose()


def test_without_sites(registry: CollectorRegistry, log: Log) -> None:
    """Without sites suspects are counted as of other sites."""
    engine = Database().engine()
    with instrument(engine, registry=registry, leak_after=AFTER, sites=False), engine.connect():
        assert eventually(lambda: log.suspects)
        assert by_site(registry, "suspected_leaks_total") == {"other": 1}
        assert by_site(registry, "checkouts_by_site_total") == {}
    engine.dispose()


def test_the_stack_of_a_thread(registry: CollectorRegistry, log: Log, may_look: threading.Event) -> None:
    """On request the record has the stack of the thread that holds the connection, as it is then."""
    engine = Database().engine()
    let_go = threading.Event()

    def inner_work() -> None:
        may_look.set()
        let_go.wait()

    def work() -> None:
        with engine.connect():
            inner_work()

    with instrument(engine, registry=registry, leak_after=AFTER, leak_stack=True):
        thread = threading.Thread(target=work, name="worker-7")
        thread.start()
        assert eventually(lambda: log.suspects)
        let_go.set()
        thread.join()
    stack = log.suspects[0]["stack"]
    assert log.suspects[0]["holder"] == "worker-7"
    functions = [line.rpartition(" in ")[2].rpartition(".")[2] for line in stack]
    assert functions.index("work") == functions.index("inner_work") - 1
    assert "inner_work" in log.messages[0]
    engine.dispose()


@pytest.mark.parametrize("is_blocked", [False, True])
def test_the_stack_of_a_task(
    registry: CollectorRegistry,
    log: Log,
    server: Server,
    application_name: str,
    may_look: threading.Event,
    *,
    is_blocked: bool,
) -> None:
    """The stack of a task is what it awaits, through SQLAlchemy's greenlet, too; or what it does if it never awaits."""

    async def inner_work(connection: Any) -> None:
        if is_blocked:
            may_look.set()
            assert eventually(lambda: log.suspects)  # the mistake: it blocks the event loop
        else:
            await connection.execute(text("SELECT pg_advisory_lock(7)"))

    async def work(engine: Any) -> None:
        async with engine.connect() as connection:
            await inner_work(connection)

    def waits(other: psycopg.Connection) -> bool:
        """Return whether the task waits for the lock, as the server sees it: from then on its stack stays."""
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s"
        return other.execute(waiting, [application_name]).rowcount == 1

    async def main(other: psycopg.Connection) -> None:
        engine = create_async_engine(server.url("postgresql+asyncpg", application_name=application_name))
        with instrument(engine, registry=registry, leak_after=AFTER, leak_stack=True):
            task = asyncio.create_task(work(engine), name="payer")
            if not is_blocked:
                assert await eventually_async(lambda: waits(other))
                may_look.set()
            assert await eventually_async(lambda: log.suspects)
            other.execute("SELECT pg_advisory_unlock(7)")
            await task
            await engine.dispose()

    with psycopg.connect(server.dsn("has the lock"), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(7)")
        asyncio.run(main(other))
    report = log.suspects[0]
    assert report["holder"] == "payer"
    functions = [line.rpartition(" in ")[2].rpartition(".")[2] for line in report["stack"]]
    assert functions.index("work") == functions.index("inner_work") - 1


def test_the_stack_of_a_holder_that_has_ended(
    registry: CollectorRegistry, log: Log, may_look: threading.Event
) -> None:
    """A thread that has ended, or a task, has no stack; the record has its name all the same."""
    engine = Database().engine()
    held: list[Any] = []
    with instrument(engine, registry=registry, leak_after=AFTER, leak_stack=True):
        thread = threading.Thread(target=lambda: held.append(engine.connect()), name="gone")
        thread.start()
        thread.join()
        may_look.set()
        assert eventually(lambda: log.suspects)
        assert (log.suspects[0]["holder"], log.suspects[0]["stack"]) == ("gone", [])
        held.pop().close()
    engine.dispose()


def test_dispose(registry: CollectorRegistry, log: Log) -> None:
    """A connection from before dispose() stays a suspect until it is closed, and the new pool has suspects as well."""
    engine = Database().engine()
    with instrument(engine, registry=registry, leak_after=AFTER):
        old = engine.connect()
        engine.dispose()
        new = engine.connect()
        assert eventually(lambda: len(log.suspects) == 2)
        assert Exposition(registry).value("leak_suspects", "diary") == 2
        old.close()
        new.close()
        assert eventually(lambda: len(log.ended) == 2)
    engine.dispose()


def test_closing_the_handle(registry: CollectorRegistry, log: Log) -> None:
    """close() ends the watch over a pool: nothing more is logged of it, and the thread ends."""
    pool = QueuePool(connect)
    with instrument(pool, name="p", registry=registry, leak_after=AFTER):
        held = [pool.connect()]
        assert eventually(lambda: log.suspects)
    assert eventually(lambda: not WATCH.is_running)
    log.suspects.clear()
    held.append(pool.connect())
    held.pop(0).close()
    time.sleep(3 * AFTER)
    assert (log.suspects, log.ended) == ([], [])
    held.pop().close()


def watching() -> int:
    return sum(thread.name == "sqlalchemy-pool-exporter leaks" for thread in threading.enumerate())


def test_the_thread_runs_while_it_is_needed(registry: CollectorRegistry, log: Log) -> None:
    """The thread begins with the first connection, is one for all pools, ends after the last, and begins again."""
    assert eventually(lambda: not WATCH.is_running)
    pools = [QueuePool(connect) for _ in range(2)]
    handles = [
        instrument(pool, name=f"p{at}", registry=registry, leak_after=AFTER) for at, pool in enumerate(pools)
    ]
    assert not WATCH.is_running
    for _ in range(2):
        log.suspects.clear()
        held = [pool.connect() for pool in pools]
        assert eventually(lambda: {report["pool"] for report in log.suspects} == {"p0", "p1"})
        assert eventually(lambda: watching() == 1)  # the one before ends a moment after it has said so
        for pool, connection in zip(pools, held, strict=True):
            connection.close()
            pool.dispose()
        assert eventually(lambda: not WATCH.is_running)
    for handle in handles:
        handle.close()


def test_a_pool_that_is_looked_at_earlier(
    registry: CollectorRegistry, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool with a short leak_after does not wait for the next look at one that is looked at rarely."""
    monkeypatch.setattr(leaks, "_SECONDS", (0.01, 3600.0))
    pools = [QueuePool(connect) for _ in range(2)]
    rare, often = (
        instrument(pool, name=name, registry=registry, leak_after=after)
        for pool, name, after in zip(pools, ("rare", "often"), (7200.0, AFTER), strict=True)
    )
    held = [pools[0].connect()]
    assert eventually(lambda: WATCH.is_running and not WATCH.has_new)
    held.append(pools[1].connect())
    assert eventually(lambda: log.suspects)
    assert log.suspects[0]["pool"] == "often"
    for connection in held:
        connection.close()
    rare.close()
    often.close()


def test_a_dropped_pool(registry: CollectorRegistry, log: Log) -> None:
    """A pool that is garbage-collected is watched no more, and the watch does not keep it."""
    pool: Any = QueuePool(connect)
    instrument(pool, name="p", registry=registry, leak_after=60.0)
    held = pool.connect()
    del pool, held
    gc.collect()
    assert list(WATCH._needed()) == []
    assert log.suspects == []


def test_leaked_checkouts_by_site(registry: CollectorRegistry) -> None:
    """A checkout that the garbage collector ends is counted by its site."""
    pool = QueuePool(connect)
    with instrument(pool, name="p", registry=registry, sites=True):

        def forget() -> None:
            pool.connect()

        forget()
        gc.collect()
        assert Exposition(registry).value("leaked_checkouts_total", "p") == 1
        assert by_site(registry, "leaked_checkouts_by_site_total", "p") == {"forget": 1}
    pool.dispose()


def test_the_sidecar_sees_suspects(registry: CollectorRegistry, tmp_path: Path, log: Log) -> None:
    """The gauge is derived from the table, so whoever reads the segment sees it."""
    pool = QueuePool(connect)
    with instrument(pool, name="p", registry=registry, directory=tmp_path, leak_after=AFTER):
        held = pool.connect()
        assert eventually(lambda: log.suspects)
        sidecar = FleetCollector(Reader(tmp_path), worker_label=False, counters_per_worker=False)
        assert read_samples(sidecar.collect())[key("leak_suspects", pool="p")] == 1
        held.close()
        pool.dispose()


# -- processes


FORKED = """
import logging
seen = []

class Log(logging.Handler):
    def emit(self, record):
        if hasattr(record, "pool_leak"):
            seen.append(record.pool_leak)

logging.getLogger("sqlalchemy_pool_exporter").addHandler(Log())

def await_suspect():
    while not seen:
        time.sleep(0.01)

def threads():
    return len(os.listdir("/proc/self/task"))

from sqlalchemy_pool_exporter.recording.leaks import WATCH
"""


@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"])
def test_a_forked_child(fork: str) -> None:
    """A child begins a thread of its own with its first connection, whether its parent has one or not."""
    result = run(
        f"""
        import ctypes
        pool = QueuePool(Connection, pool_size=2)
        handle = instrument(pool, name="p", registry=registry, leak_after=0.04)
        pool.connect().close()
        print("parent", WATCH.is_running, flush=True)
        for _ in range(2):
            child = {fork}()
            if child == 0:
                signal.alarm(60)
                seen.clear()  # on a busy machine the short checkout of the parent is held for too long, too
                print("child", threads(), flush=True)
                held = pool.connect()
                await_suspect()
                print(seen[0]["pid"] == os.getpid(), flush=True)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            pool.dispose()
            while WATCH.is_running:
                time.sleep(0.01)
        while threads() > 1:  # it ends a moment after it has said so
            time.sleep(0.01)
        print("parent", threads(), flush=True)
        """,
        prologue=PROLOGUE + FORKED,
    )
    assert result.stdout == "parent True\n" + "child 1\nTrue\n" * 2 + "parent 1\n", result.stderr


def test_the_master_of_uwsgi() -> None:
    """In uWSGI's master no thread begins, although it connects; in its worker one does, also without a fork."""
    result = run(
        """
        import types
        sys.modules["uwsgi"] = uwsgi = types.ModuleType("uwsgi")
        uwsgi.worker_id = uwsgi.mule_id = lambda: 0
        pool = QueuePool(Connection, pool_size=2)
        handle = instrument(pool, name="p", registry=registry, leak_after=0.04)
        held = pool.connect()
        time.sleep(0.2)
        print(threads(), seen, flush=True)
        uwsgi.worker_id = lambda: 1
        uwsgi.post_fork_hook()
        await_suspect()
        print(threads(), len(seen), flush=True)
        """,
        prologue=PROLOGUE + FORKED,
    )
    assert result.stdout == "1 []\n2 1\n", result.stderr


# -- options


def test_the_environment(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """SQLALCHEMY_POOL_EXPORTER_LEAK_AFTER is the default, and the argument goes before it."""
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LEAK_AFTER", str(AFTER))
    engine = Database().engine()
    with instrument(engine, registry=registry), engine.connect():
        assert eventually(lambda: log.suspects)
    with instrument(engine, registry=registry, leak_after=0):
        assert Exposition(registry).get("leak_suspects", "diary") is None
    engine.dispose()


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_wrong_environment(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """A variable that is no number of seconds is said in the log, and there are no suspects."""
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LEAK_AFTER", value)
    with instrument(QueuePool(connect), name="p", registry=registry):
        assert Exposition(registry).get("leak_suspects", "p") is None
    assert f"SQLALCHEMY_POOL_EXPORTER_LEAK_AFTER is no number of seconds: {value!r}" in caplog.text


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "60"])
def test_a_wrong_argument(value: Any) -> None:
    """An argument that is no number of seconds is an error, before anything is instrumented."""
    with pytest.raises(TargetError, match="leak_after must be a number of seconds"):
        instrument(QueuePool(connect), leak_after=value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_that_ends_the_thread(registry: CollectorRegistry, log: Log) -> None:
    """If a handler of the log raises SystemExit, which ends the thread, the next connection begins another one."""

    class Exits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "pool_leak"):
                raise SystemExit  # of which Python says nothing if a thread raises it

    engine, exits = Database().engine(), Exits()
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    logger.addHandler(exits)
    try:
        with instrument(engine, registry=registry, leak_after=AFTER), engine.connect():
            assert eventually(lambda: len(log.suspects) == 1 and not WATCH.is_running)
            logger.removeHandler(exits)
            with engine.connect():
                assert eventually(lambda: len(log.suspects) == 2)
    finally:
        logger.removeHandler(exits)
    engine.dispose()
