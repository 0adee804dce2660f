# SPDX-License-Identifier: Apache-2.0
"""A time limit that strikes while something is recorded reaches the application, and every count stays right."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import instrument, label
from sqlalchemy_pool_exporter.recording import checkout_cy, holders_cy, undisposed
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.segment import texts
from sqlalchemy_pool_exporter.segment.block import WAITERS_USED
from sqlalchemy_pool_exporter.segment.held import held
from sqlalchemy_pool_exporter.segment.own_errors import is_own
from tests.support import wait
from tests.support.fakes import FakeConnection
from tests.support.moments import Intruder, Scene, each_moment, moments
from tests.support.programs import PROLOGUE, run
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

pytestmark = [
    pytest.mark.usefixtures("little_to_collect"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=sys.version_info < (3, 12))
def no_thread_about_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log no pools of earlier scenes: CPython 3.11 gives a limit for a thread to one that it is about to start."""
    monkeypatch.setattr(undisposed, "_thread", SimpleNamespace(start_new_thread=lambda *_: 0))


class OutOfTime(Exception):  # noqa: N818 - as task queues name theirs
    """The exception by which a task queue ends a slow task."""


def derived(base: type[BaseException]) -> type[BaseException]:
    """Return an application's own class derived from ``base``."""
    return type(f"Own{base.__name__}", (base,), {})


def raise_async(kind: type[BaseException], thread: int | None = None) -> None:
    """Make a thread raise ``kind`` at its next opportunity, as rq and others do."""
    # CPython 3.11 would give the limit to a thread that this one starts, until that one has begun.
    assert sys.version_info >= (3, 12) or wait.eventually(lambda: not threading._limbo)  # type: ignore[attr-defined]
    ident = ctypes.c_ulong(thread or threading.get_ident())
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(kind)) == 1


def strike() -> None:
    """Raise at once: an asynchronous exception that comes from this thread waits for the next opportunity."""
    raise OutOfTime


# -- from another thread

# The last ones are classes that recording can raise too.
KINDS = (
    OutOfTime,
    TimeoutError,
    *map(derived, (TimeoutError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)),
    *map(derived, (OSError, RecursionError, MemoryError, BaseException)),
    IndexError,
    AttributeError,
    TypeError,
    RuntimeError,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_class_reaches_the_application(kind: type[BaseException]) -> None:
    """An asynchronous exception of any class, anywhere in a recording, reaches the application."""
    for scene, where, raised in each_moment("checkout", lambda _: raise_async(kind)):
        assert type(raised) is kind, where
        assert_adds_up(scene, where)


@pytest.mark.parametrize("act", ["overflow", "timeout", "refused", "invalidate", "detach"])
def test_every_act_is_recorded(act: str, caplog: pytest.LogCaptureFixture) -> None:
    """An asynchronous exception anywhere in the recording of any act reaches the application; every sum stays right."""
    for scene, where, raised in each_moment(act, lambda _: raise_async(OutOfTime)):
        # While SQLAlchemy closes a detached connection, it logs what any listener raises, and goes on.
        is_logged = act == "detach" and "Exception during reset or similar" in caplog.text
        caplog.clear()
        # CPython 3.11 gives a limit that is set for a thread to one that it is about to start.
        is_lost = sys.version_info < (3, 12) and "start_" in where
        assert type(raised) is OutOfTime or is_logged or is_lost, where
        assert_adds_up(scene, where)


def test_a_first_connect() -> None:
    """If a time limit strikes while a new connection is recorded, nothing is open afterwards, or it is idle."""
    for scene, where, raised in each_moment("checkout", lambda _: raise_async(OutOfTime), warm=False):
        assert type(raised) is OutOfTime, where
        assert_adds_up(scene, where)


def test_a_pre_ping() -> None:
    """A time limit that strikes while a pre-ping is recorded reaches the application."""
    for scene, where, raised in each_moment(
        "checkout", lambda _: raise_async(OutOfTime), pool_pre_ping=True, max_overflow=9
    ):
        assert type(raised) is OutOfTime, where
        assert_adds_up(scene, where)


def test_a_first_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time limit anywhere in the first checkout of a place, later places and labels are recorded."""
    # The thread's number is of a text, too; as it was, it would mean another text after the test.
    fresh = ContextVar[Any]("holder", default=None)
    for module in (holders_cy, checkout_cy):
        monkeypatch.setattr(module, "holder_of_call", fresh)

    def act(scene: Scene) -> None:
        monkeypatch.setattr(texts, "_texts", texts._Texts())
        texts.write_into(scene.handle._recorders[0].storage.pages)
        with label("first"):
            scene.pool.connect().close()

    monkeypatch.setattr(Scene, "first", act, raising=False)
    for scene, where, raised in each_moment("first", lambda _: strike()):
        assert type(raised) is OutOfTime, where
        assert_adds_up(scene, where)
        (recorder,) = scene.handle._recorders
        exec("def late(pool): return pool.connect()", globals())  # noqa: S102 - another place
        with label("late"):
            connection = late(scene.pool)  # type: ignore[name-defined]  # noqa: F821
        (out,) = held(recorder.snapshot())
        assert out.site == f"{__name__}:late:1", where
        assert texts.own().label(out.label) == "late", where
        connection.close()


def test_the_name_of_a_thread() -> None:
    """A time limit that strikes in the standard library while a thread tells its name reaches the application."""

    def strike_at(moment: int) -> tuple[str | None, type[BaseException] | None]:
        """Strike at the given line of the standard library; return where that was, and what was raised."""
        seen, where, raised = 0, None, None

        def trace(frame: FrameType, what: str, _: object) -> Any:
            nonlocal seen, where
            if what == "line" and frame.f_code.co_filename == threading.__file__:
                seen += 1
                if seen == moment:
                    where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                    del frame  # as a local of this function it would make this a signal handler
                    raise OutOfTime
            return trace

        def work() -> None:
            nonlocal raised
            sys.settrace(trace)
            try:
                holders_cy.said(holders_cy._name_of_thread)
            except BaseException as error:  # noqa: BLE001 - whatever comes
                raised = type(error)
            finally:
                sys.settrace(None)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return where, raised

    for moment in count(1):
        where, raised = strike_at(moment)
        if where is None:
            break
        assert raised is OutOfTime, where
    assert moment > 3


@pytest.mark.skipif(
    sys.version_info < (3, 12),
    reason="CPython 3.11 loses a limit that is set while any thread is about to start",
)
@pytest.mark.parametrize("kind", [TimeoutError, OSError], ids=lambda kind: kind.__name__)
def test_beside_files(kind: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit of a class that files raise, too, reaches the application while a connection looks at its file."""
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_DIR", str(tmp_path))
    for scene, where, raised in each_moment("checkout", lambda _: raise_async(kind), warm=False):
        assert type(raised) is kind, where
        scene.handle.close()


def test_the_lock_is_released() -> None:
    """A time limit that strikes while the counts of pools that are gone are folded leaves no lock to other threads."""

    def is_free() -> bool:
        if is_mine := INSTRUMENTED.lock.acquire(blocking=False):
            INSTRUMENTED.lock.release()
        return is_mine

    for moment in count(1):
        intruder = Intruder(moment, strike)
        with intruder, suppress(OutOfTime):
            INSTRUMENTED.fold()
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(is_free).result(), intruder.where
        if intruder.where is None:
            break
    assert moment > 2


@pytest.mark.parametrize("act", ["instrument", "scrape"])
def test_other_calls(act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit reaches the caller of ``instrument()`` and of a scrape; after it the same call works."""
    # The registries of earlier tests: a scrape reads the names in all of them, so there would be far more moments.
    monkeypatch.setattr(INSTRUMENTED, "_collectors", WeakKeyDictionary())
    for moment in moments(act) if act == "instrument" else count(1, 37):
        pool, registry = QueuePool(FakeConnection), CollectorRegistry()  # type: ignore[arg-type]
        if act == "scrape":
            instrument(pool, name="p", registry=registry, directory=tmp_path)
        intruder = Intruder(moment, partial(raise_async, TimeoutError))
        raised: BaseException | None = None
        # The pool of an earlier test may be garbage: what is raised where that is collected would be lost.
        gc.disable()
        try:
            with intruder:
                if act == "scrape":
                    generate_latest(registry)
                else:
                    instrument(pool, name="p", registry=registry, directory=tmp_path)
        except BaseException as error:  # noqa: BLE001 - whatever comes
            raised = error.with_traceback(None)
        finally:
            gc.enable()
        if intruder.where is None:
            break
        assert type(raised) is TimeoutError, intruder.where
        with instrument(pool, name="p", registry=registry, directory=tmp_path):
            pool.connect().close()
            assert RegistrySamples(registry).value("connections", "p", worker="000", state="idle") == 1, (
                intruder.where
            )
    assert moment > 100


def assert_adds_up(scene: Scene, where: str) -> None:
    """Assert that the connection came back at once, that every sum is right, and that no slot is lost."""
    assert not scene.held or scene.pool.checkedout() <= len(scene.held), where
    exposition, name = scene.assert_true(where), scene.handle.name
    counted = exposition.counters(name)
    ended = counted.get("checkins", 0) + counted.get("detaches", 0)
    assert counted["checkouts"] == ended, where
    errors = sum(value for key, value in counted.items() if key.startswith("checkout_errors."))
    failed = counted.get("checkout_timeouts", 0) + errors
    assert counted["checkouts"] + failed == counted["checkout_wait_seconds_count"], where
    assert "exporter_recording_faults" not in counted, where
    # Two callers were pending at once at most, so two slots were ever needed.
    (recorder,) = scene.handle._recorders
    assert recorder.block[WAITERS_USED] <= 2, where


@pytest.mark.parametrize("number", [150, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "pool", ["QueuePool(Connection, pool_size=1, max_overflow=-1)", "NullPool(Connection)"]
)
def test_many_from_another_thread(pool: str, number: int) -> None:
    """Of many asynchronous exceptions none is lost, nothing stays in use or pending, and every sum is right."""
    result = run(
        """
        import ctypes
        import logging
        from types import FrameType
        from sqlalchemy_pool_exporter.recording.sqlalchemy_pool import records_of

        class OutOfTime(Exception):
            pass

        # SQLAlchemy logs one that strikes while it resets or closes a connection, and goes on. Python reports one that
        # strikes in a callback of the garbage collector.
        swallowed = []

        class Swallowed(logging.Handler):
            def emit(self, record):
                if record.exc_info and record.exc_info[0] is OutOfTime:
                    swallowed.append(record.getMessage())

        logging.getLogger("sqlalchemy.pool").addHandler(Swallowed())
        sys.unraisablehook = lambda raised: swallowed.append(raised.err_msg)

        pool = eval(sys.argv[1])
        handle = instrument(pool, name="p", registry=registry)
        caught = turns = sent = 0
        done = is_inside = False
        lost = []
        # Short, so that this thread finds the other one in the middle of a recording.
        sys.setswitchinterval(0.000005)

        # CPython's "try" does not cover the jump at the end of a loop that stands in it, so the loop is a function.
        def take_turns():
            global turns
            while not done:
                first = pool.connect()
                pool.connect().close()
                first.close()
                turns += 1

        def work():
            global caught, is_inside
            while not done:
                try:
                    is_inside = True
                    take_turns()
                except OutOfTime:
                    # The end of this block frees the traceback, and with it a connection, whose return is recorded.
                    # What is raised there would end the thread.
                    is_inside = False
                    caught += 1
            look()

        # In the same thread: one that strikes while SQLAlchemy's queue is entered leaves its lock to this thread.
        def look():
            gc.collect()
            assert len(lost) <= len(swallowed), (lost, swallowed)
            # If one strikes where SQLAlchemy's callback of a collected proxy begins, SQLAlchemy keeps the record in its
            # table and never hands it out again.
            out = len([record for record in records_of(pool) if record.in_use and record.fairy_ref() is None])
            assert out <= len(swallowed), (out, swallowed)
            idle = samples()
            assert idle["pending_checkouts"] == 0, idle
            assert idle["connections.in_use"] == out, idle
            assert idle["exporter_recording_faults_total"] == 0, idle
            closes = sum(value for key, value in idle.items() if key.startswith("closes_total"))
            assert idle["connects_total"] - closes == idle["connections.idle"] + out, idle
            held = [pool.connect() for _ in range(3)]
            assert samples()["connections.in_use"] == out + 3, samples()
            print("done")

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        thread, kind = ctypes.c_ulong(worker.ident), ctypes.py_object(OutOfTime)
        while sent < int(sys.argv[2]):
            frame = sys._current_frames()[worker.ident]
            # CPython 3.11 gave another object twice in 600 runs.
            code = frame.f_code if isinstance(frame, FrameType) else None
            del frame
            if not is_inside or code is None or "sqlalchemy_pool_exporter" not in code.co_filename:
                continue
            before, since = caught, turns
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, kind)
            sent += 1
            while caught == before and turns < since + 200 and worker.is_alive():
                time.sleep(0)
            if caught == before:
                lost.append(code.co_qualname)
        done = True
        worker.join()
        """,
        pool,
        str(number),
        prologue=PROLOGUE,
    )
    assert result.stdout == "done\n", result.stderr


# -- from a signal handler


class Handler:
    """A callable object as a signal handler."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        raise self.error

    def method(self, *_: object) -> None:
        raise self.error


def restores_first(error: Exception, number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise error


def handlers(error: Exception) -> Iterator[Callable[..., Any]]:
    """Yield a signal handler of each form that raises ``error``."""

    def function(_number: int, _frame: FrameType | None) -> None:
        raise error

    def closes_over(number: int, frame: FrameType | None) -> None:
        restores_first(error, number, frame)

    yield function
    yield closes_over
    yield partial(restores_first, error)
    yield Handler(error)
    yield Handler(error).method
    yield lambda *arguments: restores_first(error, *arguments)


FORMS = ("function", "restores", "partial", "object", "method", "lambda")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.parametrize("form", range(len(FORMS)), ids=FORMS)
@pytest.mark.parametrize("error", [OutOfTime("late"), RuntimeError("late")], ids=["own", "RuntimeError"])
def test_every_form_of_handler_reaches_the_application(form: int, error: Exception) -> None:
    """What a signal handler of any form raises reaches the application, wherever in a recording it strikes."""
    handler = list(handlers(error))[form]
    before = signal.getsignal(signal.SIGUSR1)

    def strike(_: Scene) -> None:
        signal.signal(signal.SIGUSR1, handler)
        signal.raise_signal(signal.SIGUSR1)

    try:
        for scene, where, raised in each_moment("checkout", strike):
            assert raised is error, where
            assert_adds_up(scene, where)
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- what recording itself raises


def test_what_is_own() -> None:
    """An error of a built-in class with a message is recording's own; a class derived from it is not."""

    def raised(act: Callable[[], object]) -> BaseException:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - any error
            return error
        raise AssertionError

    block = memoryview(bytearray(8)).cast("d")
    acts: tuple[Callable[[], object], ...] = (
        [].pop,
        lambda: block[1],
        lambda: object().missing,  # type: ignore[attr-defined]
        lambda: {0: 0}[1],
        lambda: None + 1,  # type: ignore[operator]
        lambda: int("x"),
    )
    assert [is_own(raised(act)) for act in acts] == [True] * len(acts)
    assert is_own(MemoryError())
    for missing in (lambda: os.stat("/missing"), lambda: os.listdir(__file__)):  # noqa: PTH116, PTH208
        assert is_own(raised(missing))
    assert not is_own(TimeoutError("late"))
    assert not is_own(RuntimeError())
    assert not is_own(derived(ValueError)("late"))
    assert not is_own(KeyboardInterrupt("now"))


# -- near the limit of recursion


@pytest.mark.parametrize("make", [partial(QueuePool, pool_size=1), NullPool], ids=["QueuePool", "NullPool"])
def test_near_the_limit_of_recursion(make: Callable[..., Any]) -> None:
    """A checkout near the limit of recursion raises only if SQLAlchemy runs into the limit, and loses nothing."""

    def attempts(pool: Any) -> list[bool]:
        """Return whether a checkout and a return work, at each of the last levels before the limit."""
        worked: list[bool] = []

        def descend(levels: int) -> None:
            if levels:
                descend(levels - 1)
            else:
                pool.connect().close()

        frame, depth = sys._getframe(), 0
        while frame:
            frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
        for levels in range(sys.getrecursionlimit() - depth - 40, sys.getrecursionlimit() - depth + 2):
            try:
                descend(levels)
            except RecursionError:
                worked.append(False)
            else:
                worked.append(True)
        return worked

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(600)
    try:
        bare = attempts(make(FakeConnection))
        pool, registry = make(FakeConnection), CollectorRegistry()
        handle = instrument(pool, registry=registry)
        instrumented = attempts(pool)
    finally:
        sys.setrecursionlimit(limit)
    # The hooks themselves are at most two levels.
    assert sum(bare) - 2 <= sum(instrumented) <= sum(bare)
    exposition = RegistrySamples(registry)
    assert exposition.value("connections", handle.name, state="in_use") == 0
    assert exposition.value("pending_checkouts", handle.name) == 0
    counted = exposition.counters(handle.name)
    assert counted["checkouts"] == counted["checkins"]
