# SPDX-License-Identifier: Apache-2.0
"""The report of a checkout that timed out: once a minute, complete, and never in the way of the application."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import exc
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_pool_exporter import instrument, label
from sqlalchemy_pool_exporter.recording import exhaustion
from sqlalchemy_pool_exporter.recording.exhaustion import Schedule
from sqlalchemy_pool_exporter.segment import fork
from tests.support.database import Database
from tests.support.fakes import connect
from tests.support.programs import PROLOGUE, run
from tests.support.report_log import ReportHandler, ReportLog
from tests.support.samples import Exposition
from tests.support.timeouts import Timeouts
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine

    from tests.support.pool_case import Case


@pytest.fixture
def log(application_name: str) -> Iterator[ReportLog]:
    """The reports of the pool of a test, which has a name that no other one has."""
    handler = ReportLog(application_name)
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> Timeouts:
    return Timeouts(monkeypatch)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that were started. How many there are changes with those that other tests left."""
    names: list[str] = []
    start = fork.start_thread

    def start_thread(act: Callable[..., object], *arguments: object, name: str) -> bool:
        names.append(name)
        return start(act, *arguments, name=name)

    monkeypatch.setattr(fork, "start_thread", start_thread)
    return names


def times_out(engine: Engine) -> None:
    with pytest.raises(exc.TimeoutError):
        engine.connect()


def test_a_report(case: Case, log: ReportLog) -> None:
    """The record says who has how many connections since when and from where, who waited, and why, in plain values."""

    def scenario(case: Case) -> None:
        case.options["loop_lag"] = False  # a slow machine blocks the loop, too, and that would be the cause
        engine = case.start()
        log.pools = {case.name}
        with label("GET /pay"):
            first = engine.connect()
        with first, engine.connect():
            times_out(engine)
        (report,) = log.reports()
        assert json.loads(json.dumps(report)) == report
        first_line = test_a_report.__code__.co_firstlineno
        sites = {group["site"] for group in report["held"]}
        assert all(site.rpartition(":")[0].endswith("test_a_report.<locals>.scenario") for site in sites)
        assert all(int(site.rpartition(":")[2]) > first_line for site in sites)
        assert report["site"].rpartition(":")[0].endswith("times_out")
        assert report["holder"] == (
            threading.current_thread().name if not case.is_async else report["holder"]
        )
        assert report["holder"]
        assert sum(group["connections"] for group in report["held"]) == report["in_use"] == 2
        assert [group["label"] for group in report["held"] if group["label"]] == ["GET /pay"]
        assert (report["pool"], report["size"], report["max_overflow"]) == (case.name, 1, 1)
        assert report["timeout_seconds"] == pytest.approx(0.05)
        assert report["waited_seconds"] >= 0.05
        assert (report["waiting"], report["suppressed"]) == (0, 0)
        # The caller itself holds both.
        assert report["cause"] == "self_deadlock"
        message = log.records[0].getMessage()
        assert case.name in message
        assert report["reason"] in message
        assert "GET /pay" in message
        assert case.now().value("exhaustion_reports_total", case.name) == 1

    case.run(scenario)


def test_threads_that_hold(registry: CollectorRegistry, log: ReportLog) -> None:
    """The report names the threads that hold connections, and counts the callers that wait."""
    engine = Database().engine(pool_size=2, max_overflow=0)
    done = threading.Event()
    held = threading.Barrier(3)

    def hold() -> None:
        with engine.connect():
            held.wait()
            done.wait()

    threads = [threading.Thread(target=hold, name=f"holder-{at}") for at in range(2)]
    with instrument(engine, name=log.pool, registry=registry):
        for thread in threads:
            thread.start()
        held.wait()
        times_out(engine)
        done.set()
        for thread in threads:
            thread.join()
    (report,) = log.reports()
    (group,) = report["held"]
    assert group["connections"] == 2
    assert group["holder"] in {"holder-0", "holder-1"}
    assert report["cause"] in {"stuck", "leak"}
    engine.dispose()


def test_tasks_that_wait_for_themselves(
    registry: CollectorRegistry, log: ReportLog, timeouts: Timeouts
) -> None:
    """If the tasks that hold all connections wait for another one, the report says so, whichever times out first."""
    engine = Database().engine(pool_size=2, max_overflow=0, pool_timeout=SECONDS)
    held = threading.Barrier(2)

    def nested() -> None:
        with engine.connect():
            held.wait()
            with suppress(exc.TimeoutError):
                engine.connect().close()
            held.wait()

    with instrument(engine, name=log.pool, registry=registry):
        threads = [threading.Thread(target=nested) for _ in range(2)]
        for thread in threads:
            thread.start()
        timeouts.strike(engine.pool, waiting=2)
        for thread in threads:
            thread.join()
    assert log.reports()[0]["cause"] == "self_deadlock"
    engine.dispose()


def test_tasks_that_give_up_at_once(
    registry: CollectorRegistry, log: ReportLog, monkeypatch: pytest.MonkeyPatch, timeouts: Timeouts
) -> None:
    """So it is if both time out before the first of them is reported."""
    engine = Database().engine(pool_size=2, max_overflow=0, pool_timeout=SECONDS)
    held, failed = threading.Barrier(2), threading.Barrier(2)
    due = Schedule.due

    def later(schedule: Schedule, now: float) -> int | None:
        failed.wait()
        return due(schedule, now)

    monkeypatch.setattr(Schedule, "due", later)

    def nested() -> None:
        with engine.connect():
            held.wait()
            with suppress(exc.TimeoutError):
                engine.connect().close()
            held.wait()

    with instrument(engine, name=log.pool, registry=registry):
        threads = [threading.Thread(target=nested) for _ in range(2)]
        for thread in threads:
            thread.start()
        timeouts.strike(engine.pool, waiting=2)
        for thread in threads:
            thread.join()
    assert log.reports()[0]["cause"] == "self_deadlock"
    engine.dispose()


def test_one_a_minute(registry: CollectorRegistry, log: ReportLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further timeouts are counted, and the next report says how many; dispose() does not begin anew."""
    engine = Database().engine(max_overflow=0)
    with instrument(engine, name=log.pool, registry=registry):
        held = engine.connect()
        for _ in range(3):
            times_out(engine)
        assert [report["suppressed"] for report in log.reports()] == [0]
        held.close()
        engine.dispose()
        held = engine.connect()
        times_out(engine)
        monkeypatch.setattr(exhaustion, "SECONDS", 0.0)

        def reported_again() -> bool:
            # While the first one is being logged there is no second one.
            times_out(engine)
            return Exposition(registry).value("exhaustion_reports_total", log.pool) == 2

        assert eventually(reported_again)
        held.close()
        counted = Exposition(registry).value("checkout_timeouts_total", log.pool)
        assert counted >= 5
        assert [report["suppressed"] for report in log.reports(2)] == [0, counted - 2]
    engine.dispose()


def test_the_schedule() -> None:
    """The first timeout is due, those within a minute are not, and each report says how many were left out."""
    schedule = Schedule()
    assert [schedule.due(now) for now in (5.0, 6.0, 64.9, 65.0, 66.0, 125.0)] == [0, None, None, 2, None, 1]


def test_the_log_cannot_make_the_caller_wait(registry: CollectorRegistry) -> None:
    """A handler of the log that waits, or that raises, does neither to the caller that timed out."""
    engine = Database().engine(max_overflow=0)
    entered, let_go = threading.Event(), threading.Event()

    class Slow(ReportHandler):
        def emit(self, _record: logging.LogRecord) -> None:
            entered.set()
            let_go.wait()
            raise LookupError("the log is broken")

    handler = Slow("slow log")
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    logger.addHandler(handler)
    try:
        with instrument(engine, name="slow log", registry=registry), engine.connect():
            times_out(engine)
            assert entered.wait(60.0)
            times_out(engine)
    finally:
        logger.removeHandler(handler)
        let_go.set()
    engine.dispose()


def test_a_log_that_never_returns(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, started: list[str]
) -> None:
    """While a handler of the log hangs with one report, no other one gets a thread, or one more each minute."""
    engine = Database().engine(max_overflow=0)
    entered, let_go = threading.Event(), threading.Event()

    class Hangs(ReportHandler):
        def emit(self, _record: logging.LogRecord) -> None:
            entered.set()
            let_go.wait()

    handler = Hangs("log that hangs")
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    logger.addHandler(handler)
    monkeypatch.setattr(exhaustion, "SECONDS", 0.0)
    try:
        with instrument(engine, name="log that hangs", registry=registry), engine.connect():
            times_out(engine)
            assert entered.wait(60.0)
            for _ in range(3):
                times_out(engine)
            assert len(started) == 1
            assert Exposition(registry).value("exhaustion_reports_total", "log that hangs") == 1
            let_go.set()

            def reported() -> bool:
                times_out(engine)
                return Exposition(registry).value("exhaustion_reports_total", "log that hangs") == 2

            assert eventually(reported)
    finally:
        let_go.set()
        logger.removeHandler(handler)
    engine.dispose()


def test_a_log_in_the_database(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler of the log that checks out of the exhausted pool itself fails alone, and makes no second report."""
    engine = Database().engine(max_overflow=0)
    failed: list[BaseException] = []

    class Stores(ReportHandler):
        def emit(self, _record: logging.LogRecord) -> None:
            try:
                engine.connect()
            except exc.TimeoutError as error:
                failed.append(error)
                raise

    handler = Stores("log in the database")
    logger = logging.getLogger("sqlalchemy_pool_exporter")
    logger.addHandler(handler)
    monkeypatch.setattr(exhaustion, "SECONDS", 0.0)
    try:
        with instrument(engine, name="log in the database", registry=registry), engine.connect():
            times_out(engine)
            assert eventually(lambda: len(failed) == 1)
            exposition = Exposition(registry)
            assert exposition.value("exhaustion_reports_total", "log in the database") == 1
            assert exposition.value("checkout_timeouts_total", "log in the database") == 2
            assert exposition.value("pending_checkouts", "log in the database") == 0
    finally:
        logger.removeHandler(handler)
    engine.dispose()


def test_filters_see_the_context_of_the_caller(registry: CollectorRegistry, log: ReportLog) -> None:
    """A filter of the log that adds what a context variable has, such as the id of a request, finds it."""
    request = ContextVar("request", default="none")
    engine = Database().engine(max_overflow=0)

    def add(record: logging.LogRecord) -> bool:
        record.request = request.get()
        return True

    log.addFilter(add)
    request.set("r1")
    with instrument(engine, name=log.pool, registry=registry), engine.connect():
        times_out(engine)
        log.reports()
    assert log.records[0].request == "r1"  # type: ignore[attr-defined]
    engine.dispose()


def test_without_sites(registry: CollectorRegistry, log: ReportLog) -> None:
    """Without sites the report has the rest."""
    engine = Database().engine(max_overflow=0)
    with instrument(engine, name=log.pool, registry=registry, sites=False), engine.connect():
        times_out(engine)
        (report,) = log.reports()
    assert (report["site"], report["in_use"], report["held"][0]["site"]) == ("", 1, "other")
    engine.dispose()


def test_no_thread(registry: CollectorRegistry, log: ReportLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system has no thread left, the timeout counts as not reported, and the caller gets its error."""
    engine = Database().engine(max_overflow=0)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(exhaustion, "SECONDS", 0.0)
    with instrument(engine, name=log.pool, registry=registry), engine.connect():
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            patch.setattr("_thread.start_new_thread", refuse)  # since CPython 3.14
            times_out(engine)
        assert Exposition(registry).value("exhaustion_reports_total", log.pool) == 0
        times_out(engine)
        assert [report["suppressed"] for report in log.reports()] == [1]
        assert Exposition(registry).value("exporter_recording_faults_total", log.pool) == 0
    engine.dispose()


def test_a_fault_and_a_time_limit(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault while the report is made is counted and stays hidden; a time limit that strikes there is raised."""

    class TimeLimitError(Exception):
        pass

    def broken(*_: object) -> bool:
        raise AttributeError("broken")

    def struck(*_: object) -> bool:
        raise TimeLimitError

    engine = Database().engine(max_overflow=0)
    monkeypatch.setattr(exhaustion, "SECONDS", 0.0)
    with instrument(engine, registry=registry), engine.connect():
        monkeypatch.setattr(exhaustion, "log", broken)
        times_out(engine)
        monkeypatch.setattr(exhaustion, "log", struck)
        with pytest.raises(TimeLimitError):
            engine.connect()
        exposition = Exposition(registry)
        assert exposition.value("exporter_recording_faults_total", "diary") == 1
        assert exposition.value("checkout_timeouts_total", "diary") == 2
        assert exposition.value("pending_checkouts", "diary") == 0
    engine.dispose()


@pytest.mark.parametrize("is_async", [False, True])
def test_other_failures_are_not_reported(
    registry: CollectorRegistry, log: ReportLog, *, is_async: bool
) -> None:
    """A checkout that fails otherwise is no sign of an exhausted pool."""
    database = Database()
    database.connect_fails = LookupError("no")
    engine = database.engine()

    def act() -> None:
        with instrument(engine, name=log.pool, registry=registry):
            with pytest.raises(LookupError):
                engine.connect()
            assert Exposition(registry).value("exhaustion_reports_total", log.pool) == 0

    if is_async:
        asyncio.run(greenlet_spawn(act))
    else:
        act()
    assert log.records == []
    engine.dispose()


def test_a_closed_handle(
    registry: CollectorRegistry, log: ReportLog, timeouts: Timeouts, started: list[str]
) -> None:
    """A pool that is no longer instrumented is not reported, not even by a caller that waited meanwhile."""
    pool = QueuePool(connect, pool_size=1, max_overflow=0, timeout=SECONDS)
    held = pool.connect()
    handle = instrument(pool, name=log.pool, registry=registry)

    def wait() -> None:
        with pytest.raises(exc.TimeoutError):
            pool.connect()

    waits = threading.Thread(target=wait)
    waits.start()
    timeouts.await_queue(pool)
    handle.close()
    timeouts.strike(pool)
    waits.join()
    held.close()
    assert started == []
    assert log.records == []


def test_a_child_that_was_forked_in_c() -> None:
    """In a child that was forked in C while another thread had the lock of a handler, a timeout raises in time."""
    result = run(
        """
        import ctypes, logging, os, signal, threading
        pool = QueuePool(Connection, pool_size=1, max_overflow=0, timeout=0.05)
        handle = instrument(pool, name="p", registry=registry)
        handler = logging.StreamHandler()
        logging.getLogger().addHandler(handler)
        taken, release = threading.Event(), threading.Event()

        def take():
            with handler.lock:
                taken.set()
                release.wait()

        threading.Thread(target=take, daemon=True).start()
        taken.wait()
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            signal.alarm(30)
            held = pool.connect()
            try:
                pool.connect()
            except Exception as error:
                os._exit(7 if type(error).__name__ == "TimeoutError" else 1)
            os._exit(2)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        release.set()
        """,
        prologue=PROLOGUE,
    )
    assert result.stdout == "7\n", result.stderr
