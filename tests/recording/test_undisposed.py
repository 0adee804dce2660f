# SPDX-License-Identifier: Apache-2.0
"""Pools that end with connections open and of which nobody disposed are counted and logged once."""

from __future__ import annotations

import _thread
import asyncio
import gc
import logging
import os
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from sqlalchemy_pool_exporter import instrument, uninstrument
from sqlalchemy_pool_exporter.recording import undisposed
from sqlalchemy_pool_exporter.recording.undisposed import WATCH
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.snapshot import counters
from tests.support.samples import Exposition
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine

# SQLite's driver warns of connections that are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

OPTIONS: dict[str, Any] = {"connect_args": {"check_same_thread": False}}
START = """
    import atexit, logging, os, sys, threading, time
    logging.basicConfig(format="%(levelname)s %(message)s")
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool, QueuePool, StaticPool

    def made(poolclass=QueuePool):
        options = {"connect_args": {"check_same_thread": False}}
        return create_engine("sqlite://", poolclass=poolclass, **options)
"""


@pytest.fixture(autouse=True)
def _log_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log what earlier tests left, and have room for more lines than they all could write in this minute."""
    gc.collect()
    assert eventually(lambda: not WATCH._to_log)
    monkeypatch.setattr(undisposed, "_MOST_LINES", 1000)


@pytest.fixture(autouse=True)
def _all_is_logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait for the threads that log the pools of a test: a late line would be among those of the next test."""
    begun: list[None] = []
    ended: list[None] = []
    log_all = WATCH._log_all

    def counted(act: Callable[..., object], arguments: tuple[object, ...]) -> int:
        begun.append(None)
        return _thread.start_new_thread(act, arguments)

    def log() -> None:
        log_all()
        ended.append(None)

    monkeypatch.setattr(undisposed, "_thread", SimpleNamespace(start_new_thread=counted))
    monkeypatch.setattr(WATCH, "_log_all", log)
    yield
    assert eventually(lambda: len(ended) == len(begun))


def engine_of(poolclass: type = QueuePool) -> Engine:
    return create_engine("sqlite://", poolclass=poolclass, **OPTIONS)


def reports(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return those of the engines of these tests; others may be collected meanwhile."""
    return [one.pool_undisposed for one in records(caplog)]


def records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    found: list[Any] = [one for one in caplog.records if hasattr(one, "pool_undisposed")]
    return [one for one in found if one.pool_undisposed["pool"].startswith("forgotten")]


def count(registry: CollectorRegistry, when: str = "collected") -> float:
    return Exposition(registry).value("undisposed_total", "forgotten", when=when)


def use(engine: Engine) -> None:
    engine.connect().close()


# -- collected


@pytest.mark.parametrize(
    ("open_connections", "held"), [(1, 0), (3, 0), (3, 2)], ids=["one", "three", "two held"]
)
def test_engine_that_is_collected(
    registry: CollectorRegistry, caplog_of_all: pytest.LogCaptureFixture, open_connections: int, held: int
) -> None:
    """It is counted and logged once, with the number of its connections, idle and checked out."""
    engine = engine_of()
    instrument(engine, name="forgotten", registry=registry)
    connections = [engine.raw_connection() for _ in range(open_connections)]
    for connection in connections[held:]:
        connection.close()
    assert 0 == count(registry)
    del engine, connections, connection
    gc.collect()
    assert 1 == count(registry)
    (report,) = eventually(lambda: reports(caplog_of_all))
    assert {
        "pool": "forgotten",
        "pid": os.getpid(),
        "when": "collected",
        "connections": open_connections,
        "not_logged": report["not_logged"],  # of engines of earlier tests
        # What is collected before its pool is returned, and not lost with it.
        "in_use": report["in_use"],
    } == report
    assert report["in_use"] in {0, held}
    (record,) = records(caplog_of_all)
    assert (logging.WARNING, "sqlalchemy_pool_exporter") == (record.levelno, record.name)
    assert (
        f"pool 'forgotten' (pid {os.getpid()}) ends with {open_connections} connection" in record.getMessage()
    )
    gc.collect()
    assert (1, 0) == (count(registry), count(registry, "exit"))


def _disposed(engine: Engine) -> None:
    use(engine)
    engine.dispose()


def _disposed_while_out(engine: Engine) -> None:
    held = engine.connect()
    engine.dispose()
    held.close()


def _disposed_twice(engine: Engine) -> None:
    _disposed(engine)
    _disposed(engine)


def _disposed_without_closing(engine: Engine) -> None:
    use(engine)
    engine.dispose(close=False)


def _uninstrumented(engine: Engine) -> None:
    use(engine)
    uninstrument(engine)


def _invalidated(engine: Engine) -> None:
    held = engine.connect()
    held.invalidate()
    held.close()


def _unused(engine: Engine) -> None:
    """Open nothing."""


@pytest.mark.parametrize(
    "act",
    [
        _disposed,
        _disposed_while_out,
        _disposed_twice,
        _disposed_without_closing,
        _uninstrumented,
        _invalidated,
        _unused,
    ],
)
def test_nothing_to_say(
    registry: CollectorRegistry, caplog_of_all: pytest.LogCaptureFixture, act: Callable[[Engine], None]
) -> None:
    """A pool that was disposed of, has no connection open or is not instrumented any more is not counted."""
    engine, other = engine_of(), engine_of()
    instrument(engine, name="forgotten", registry=registry)
    act(engine)
    del engine
    gc.collect()
    # The log of another one comes after whatever could have been said of the first.
    instrument(other, name="forgotten too", registry=registry)
    use(other)
    del other
    gc.collect()
    eventually(lambda: reports(caplog_of_all))
    assert ["forgotten too"] == [report["pool"] for report in reports(caplog_of_all)]
    assert 'undisposed_total{pool="forgotten",when="collected"} 1' not in Exposition(registry).text


def test_engine_that_is_used_after_dispose(
    registry: CollectorRegistry, caplog_of_all: pytest.LogCaptureFixture
) -> None:
    """The pool that replaced the disposed one is a pool like any other."""
    engine = engine_of()
    instrument(engine, name="forgotten", registry=registry)
    _disposed(engine)
    use(engine)
    del engine
    gc.collect()
    assert 1 == count(registry)
    assert 1 == eventually(lambda: reports(caplog_of_all))[0]["connections"]


@pytest.mark.parametrize(("poolclass", "expected"), [(NullPool, 0), (StaticPool, 1)])
def test_other_pools(registry: CollectorRegistry, poolclass: type, expected: int) -> None:
    """A NullPool has no connection between two checkouts; a StaticPool keeps its one."""
    engine = engine_of(poolclass)
    instrument(engine, name="forgotten", registry=registry)
    use(engine)
    del engine
    gc.collect()
    assert expected == count(registry)


@pytest.mark.parametrize("is_disposed", [False, True])
def test_async_engine(registry: CollectorRegistry, is_disposed: bool) -> None:
    """An asyncio engine that is not disposed of is counted."""
    pytest.importorskip("aiosqlite")

    async def run() -> None:
        engine = create_async_engine("sqlite+aiosqlite:///", poolclass=None)
        instrument(engine, name="forgotten", registry=registry)
        async with engine.connect() as connection:
            await connection.exec_driver_sql("select 1")
            raw = await connection.get_raw_connection()
            thread: Any = raw.driver_connection
        if is_disposed:
            await engine.dispose()
        del engine, connection, raw
        gc.collect()
        if not is_disposed:
            await thread.close()  # else its thread would keep the test's process alive

    asyncio.run(run())
    assert (0 if is_disposed else 1) == count(registry)


def test_a_handle_does_not_keep_the_engine_alive(registry: CollectorRegistry) -> None:
    """Nothing here refers to an engine, its pool or its connections."""
    engine = engine_of()
    handle = instrument(engine, name="forgotten", registry=registry)
    use(engine)
    del engine
    gc.collect()
    assert handle.closed


def test_a_handler_that_raises(registry: CollectorRegistry) -> None:
    """What a handler of the log raises reaches nobody."""

    class Raising(logging.Handler):
        seen = 0

        def handle(self, _record: logging.LogRecord) -> bool:
            self.seen += 1
            raise LookupError

    handler = Raising()
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    logger.addHandler(handler)
    try:
        engine = engine_of()
        instrument(engine, name="forgotten", registry=registry)
        use(engine)
        del engine
        gc.collect()
        eventually(lambda: handler.seen)
    finally:
        logger.removeHandler(handler)
    assert 1 == count(registry)


# -- at the end of the interpreter


def ended(program: str, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if directory is not None:
        environment["SQLALCHEMY_POOL_EXPORTER_DIR"] = str(directory)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(program)],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
        env=environment,
    )


def said(program: str, directory: Path | None = None) -> list[str]:
    """Return what a program that ends without an error says of pools that were not disposed of."""
    lines = ended(program, directory).stderr.splitlines()
    assert all(line.startswith("WARNING pool ") for line in lines), lines
    return [line.partition(" (pid ")[0] + line.partition(")")[2].partition(":")[0] for line in lines]


def counted(directory: Path) -> dict[str, float]:
    """Return the counts of a directory at the exit of processes, as a sidecar sums them."""
    found: dict[str, float] = {}
    for (label, *_), counts in Reader(directory).read().counts.items():
        values: dict[str, Any] = dict(counters(counts, has_overflow=True))
        found[label] = values["undisposed_total"]["exit"]
    return found


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("engine.connect().close()", ["WARNING pool 'orders' ends with 1 connection open"]),
        (
            "held = [engine.connect() for _ in range(3)]; held[0].close()",
            ["WARNING pool 'orders' ends with 3 connections open, 2 of them checked out"],
        ),
        ("engine.connect().close(); engine.dispose()", []),
        ("held = engine.connect(); engine.dispose()", []),
        ("engine.connect().close(); uninstrument(engine)", []),
        ("engine.connect().close(); os._exit(0)", []),
        ("engine.connect().close(); atexit.register(engine.dispose)", []),
        (
            "engine.dispose(); engine.connect().close()",
            ["WARNING pool 'orders' ends with 1 connection open"],
        ),
        ("", []),
        (
            """
out = threading.Event()
threading.Thread(target=lambda: (engine.connect(), out.set(), time.sleep(60)), daemon=True).start()
out.wait()
""",
            ["WARNING pool 'orders' ends with 1 connection open, 1 of them checked out"],
        ),
        # The child inherits idle connections of its parent.
        (
            "engine.connect().close()\nif os.fork() == 0: sys.exit()\nos.wait(); engine.dispose()",
            [],
        ),
        # The child has connections of its own.
        (
            "if os.fork() == 0:\n engine.connect().close(); sys.exit()\nos.wait()",
            ["WARNING pool 'orders' ends with 1 connection open"],
        ),
        (
            "engine.connect().close(); other = made(); instrument(other, name='billing'); other.connect().close()",
            [
                "WARNING pool 'orders' ends with 1 connection open",
                "WARNING pool 'billing' ends with 1 connection open",
            ],
        ),
    ],
)
def test_end_of_the_interpreter(program: str, expected: list[str], tmp_path: Path) -> None:
    """Each pool with connections open is logged once, and counted where a sidecar still sees it."""
    begin = "from sqlalchemy_pool_exporter import instrument, uninstrument\nengine = made()\n"
    assert expected == said(f"{begin}instrument(engine, name='orders')\n{program}", tmp_path)
    assert len(expected) == sum(counted(tmp_path).values())


TENANTS = """
    import _thread, gc
    from sqlalchemy_pool_exporter import instrument

    def collect():
        gc.collect()
        while _thread._count():  # each pool that is collected has a thread that logs it
            time.sleep(0.01)

    for number in range(60):
        engine = made()
        instrument(engine, name="tenant")
        engine.connect().close()
        if number == 49:
            collect()
            logging.warning("fifty")
    collect()
"""


def test_many_engines_do_not_fill_the_log(tmp_path: Path) -> None:
    """Of sixty tenants whose engines are dropped ten have a line; the last line of the process counts the others."""
    lines = ended(TENANTS, tmp_path).stderr.splitlines()
    pools = [line for line in lines if line.startswith("WARNING pool 'tenant' (pid ")]
    assert (10, 12) == (len(pools), len(lines)), lines
    assert lines[-1].startswith("WARNING 50 more pools ended with connections open (pid ")


def test_a_later_line_says_how_many_have_none(
    caplog_of_all: pytest.LogCaptureFixture, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute there is a line again."""
    monkeypatch.setattr(WATCH, "_since", time.monotonic())
    monkeypatch.setattr(WATCH, "_lines", undisposed._MOST_LINES)
    for _ in range(3):
        use(forgotten(registry))
        gc.collect()
    assert eventually(lambda: WATCH._left_out >= 3)
    WATCH._since -= undisposed._PERIOD_SECONDS
    use(forgotten(registry))
    gc.collect()
    (report,) = eventually(lambda: reports(caplog_of_all))
    assert report["not_logged"] >= 3
    (record,) = records(caplog_of_all)
    assert f"({report['not_logged']} more since the last line)" in record.getMessage()
    assert 4 == count(registry)


def forgotten(registry: CollectorRegistry) -> Engine:
    engine = engine_of()
    instrument(engine, name="forgotten", registry=registry)
    return engine


@pytest.mark.parametrize("poolclass", ["NullPool", "StaticPool"])
def test_end_of_other_pools(poolclass: str) -> None:
    """A NullPool has no connection between two checkouts; a StaticPool keeps its one."""
    program = f"""
        from sqlalchemy_pool_exporter import instrument
        engine = made({poolclass})
        instrument(engine, name="orders")
        engine.connect().close()
        """
    assert (["WARNING pool 'orders' ends with 1 connection open"] if poolclass == "StaticPool" else []) == (
        said(program)
    )


def test_dispose_by_the_first_exit_function() -> None:
    """An exit function that was registered before the exporter was imported runs last, and is in time."""
    program = """
        engine = made()
        atexit.register(engine.dispose)
        from sqlalchemy_pool_exporter import instrument
        instrument(engine, name="orders")
        engine.connect().close()
        """
    assert [] == said(program)


@pytest.mark.parametrize("is_disposed", [False, True])
def test_child_of_multiprocessing(tmp_path: Path, is_disposed: bool) -> None:
    """A process that multiprocessing forked ends without the exit functions of others, and is heard all the same."""
    program = f"""
        import multiprocessing
        from sqlalchemy_pool_exporter import instrument
        engine = made()
        instrument(engine, name="orders")

        def work():
            engine.connect().close()
            if {is_disposed}:
                engine.dispose()

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        """
    expected = [] if is_disposed else ["WARNING pool 'orders' ends with 1 connection open"]
    assert expected == said(program, tmp_path)


def test_a_log_that_is_gone() -> None:
    """A log that was shut down, or whose handler raises, harms nothing."""
    program = """
        from sqlalchemy_pool_exporter import instrument
        engine = made()
        instrument(engine, name="orders")
        engine.connect().close()

        class Raising(logging.Handler):
            def handle(self, record):
                raise LookupError

        logging.getLogger("sqlalchemy_pool_exporter").addHandler(Raising())
        logging.shutdown()
        logging.getLogger().handlers.clear()
        print("done")
        """
    done = ended(program)
    assert ("done\n", "") == (done.stdout, done.stderr)


def test_no_delay() -> None:
    """A handler that takes its time is waited for as long as it writes, and then for a tenth of a second at most."""
    program = """
        from sqlalchemy_pool_exporter import instrument
        from sqlalchemy_pool_exporter.recording.undisposed import WATCH
        engine = made()
        instrument(engine, name="orders")
        engine.connect().close()

        class Idle(threading.Event):
            def wait(self, timeout=None):
                print(timeout)
                return super().wait(timeout)

        WATCH._idle = Idle()
        """
    done = ended(program)
    assert "pool 'orders'" in done.stderr
    assert ["0.1"] == done.stdout.split()
