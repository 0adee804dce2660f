# SPDX-License-Identifier: Apache-2.0
"""Runs a function at every moment of a recording at which CPython may run other code."""

from __future__ import annotations

import dis
import gc
import inspect
import os
import sys
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Self
from zlib import crc32

from prometheus_client import CollectorRegistry
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.pool import Pool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.recording import checkout_cy
from sqlalchemy_pool_exporter.recording.holders_cy import current_holder
from sqlalchemy_pool_exporter.recording.sqlalchemy_pool import PING_METHODS
from tests.support.database import Database
from tests.support.diary import PACKAGE
from tests.support.samples import RegistrySamples
from tests.support.sources import is_compiled
from tests.support.witness import assert_sites_add_up, metric_state, pool_state, recorded_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


_CALLS = {
    dis.opmap[name] for name in dis.opmap if name.startswith(("CALL", "PRECALL")) and "INTRINSIC" not in name
}
_SECOND_HALF = dis.opmap["CALL"] if "PRECALL" in dis.opmap else None
_NONE, _RESUMED = -1, -2  # instead of the instruction before
_BACKWARD = {dis.opmap[name] for name in dis.opmap if "JUMP_BACKWARD" in name and "NO_INTERRUPT" not in name}


# Compiled code can be interrupted only inside of what it calls: an entry of a Python function is a moment, if compiled
# code called it. That has no frame, so the caller seems to be SQLAlchemy, which itself calls those of these modules.
_IS_COMPILED = is_compiled(checkout_cy)
_CALLED_BY_SQLALCHEMY = {
    f"sqlalchemy_pool_exporter.recording.{name}"
    for name in ("connections", "faults", "hooks", "statement_errors")
}
# The methods that the compiled hooks wrap; not that of returns, which loses the connection without this package, too.
_PING = next(name for name in PING_METHODS if hasattr(SQLiteDialect, name))
_ORIGINALS = {Pool.connect.__code__, getattr(SQLiteDialect, _PING).__code__} if _IS_COMPILED else set()
_FEWEST = 1 if _IS_COMPILED else 3


# `make soak` sets EVERY_MOMENT. Without it the tests take a fraction of the time and try the first moments and one in
# four of the others; which ones is another choice in each test, and the same in each run.
_FIRST, _STRIDE = 8, 1 if os.environ.get("EVERY_MOMENT") else 4


def moments(of: str) -> Iterator[int]:
    """Yield the numbers of the moments to try, without end; ``of`` names what is tried."""
    yield from range(1, _FIRST + 1)
    yield from count(_FIRST + 1 + crc32(of.encode()) % _STRIDE, _STRIDE)


class OutOfTime(Exception):  # noqa: N818 - as task queues name theirs
    """A time limit of the application."""


def strike() -> None:
    """Raise as a time limit does."""
    raise OutOfTime


class Intruder:
    """Runs a function in the middle of the recording, at the n-th possible moment.

    The moments are those at which CPython runs signal handlers, other threads and (since 3.12) the garbage collector:
    on entering a function, after a call of a C function, and at a jump backwards. Only the code of this package is
    traced, and, if the hot path is compiled, the methods that it wraps. The entry of one that SQLAlchemy calls is
    left out, because without this package SQLAlchemy's own function has the same moment.
    """

    def __init__(self, moment: int, intrude: Callable[[], object], *, outermost: bool = False) -> None:
        self._moment = moment
        self._intrude = intrude
        self._outermost = outermost
        self._seen = 0
        self._before: dict[FrameType, int] = {}
        self.where: str | None = None

    def __enter__(self) -> Self:
        self._traced = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._traced)
        self._before.clear()

    def _trace(self, frame: FrameType, what: str, _: object) -> Any:
        strikes = self._is_the_moment(frame, what)
        is_ours = frame.f_code.co_filename.startswith(PACKAGE)
        if not (is_ours or strikes):
            return None
        # No local of a function in the traceback may be the frame: this would look like a signal handler.
        del frame
        if strikes:
            self._intrude()
        return self._trace if is_ours else None

    def _is_the_moment(self, frame: FrameType, what: str) -> bool:
        caller, passes = frame.f_back, False
        if what == "call" and caller in self._before:
            self._before[caller] = _NONE  # the called function is written in Python
        if frame.f_code in _ORIGINALS and what == "call":
            return self._counts(frame)
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return False
        frame.f_trace_opcodes = True
        if what == "call":
            ours = _is_called_by_us(frame, caller)
            self._before[frame] = _NONE
            if frame.f_code.co_flags & inspect.CO_GENERATOR:
                # A generator that is closed has this event, too, but runs nothing: what is raised then would be lost.
                self._before[frame] = _RESUMED if ours else _NONE
            else:
                passes = ours or self._outermost
        elif what == "opcode":
            opcode = frame.f_code.co_code[frame.f_lasti]
            # In 3.11 a call is PRECALL and CALL; it has not happened before CALL.
            before = self._before.get(frame)
            called = before in _CALLS and opcode != _SECOND_HALF
            passes = called or before == _RESUMED or opcode in _BACKWARD
            self._before[frame] = opcode
        elif what == "exception":
            self._before[frame] = _NONE  # CPython checks for no signals after a call that raises
        elif what == "return":
            self._before.pop(frame, None)
        return passes and self._counts(frame)

    def _counts(self, frame: FrameType) -> bool:
        """Count a moment; return whether it is the one."""
        self._seen += 1
        if self._seen != self._moment:
            return False
        self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
        return True


def _is_called_by_us(frame: FrameType, caller: FrameType | None) -> bool:
    if _IS_COMPILED and frame.f_globals["__name__"] not in _CALLED_BY_SQLALCHEMY:
        return True
    return caller is not None and caller.f_code.co_filename.startswith(PACKAGE)


class Scene:
    """An instrumented pool, and the acts to interrupt."""

    def __init__(self, *, warm: bool = True, **options: Any) -> None:
        self.database = Database()
        self.engine = self.database.engine(pool_timeout=0, **options)
        self.pool: Any = self.engine.pool
        self.registry = CollectorRegistry()
        self.held: list[Any] = []
        with self.engine.connect():
            pass  # SQLAlchemy does its one-time work here
        if not warm:
            self.pool.dispose()
        self.handle = instrument(self.engine, registry=self.registry)
        # The first checkout of a thread asks for its name. What a trace function raises meanwhile looks like an error
        # of the thread's own property, which ends there.
        current_holder()

    def checkout(self) -> None:
        self.pool.connect().close()

    def overflow(self) -> None:
        self.held += [self.pool.connect(), self.pool.connect()]
        while self.held:
            self.held.pop().close()  # the first is kept, the second closed

    def timeout(self) -> None:
        self.held += [self.pool.connect(), self.pool.connect()]
        self.pool.connect()

    def refused(self) -> None:
        self.held.append(self.pool.connect())
        self.database.connect_fails = ConnectionRefusedError()
        self.pool.connect()

    def invalidate(self) -> None:
        raw = self.pool.connect()
        raw.invalidate()
        raw.close()
        self.pool.connect().close()

    def detach(self) -> None:
        raw = self.pool.connect()
        raw.detach()
        raw.close()

    def dispose(self) -> None:
        self.pool.dispose()

    def leak(self) -> None:
        self.held.append(self.pool.connect())
        self.held.clear()

    def settle(self) -> RegistrySamples:
        """Release all connections, and return the samples."""
        self.held.clear()
        self.database.connect_fails = None
        gc.collect()
        return RegistrySamples(self.registry)

    def assert_true(self, where: str | None) -> RegistrySamples:
        """Assert that no connection is in use, pending or lost, and that the metrics stay true; return the last ones.

        A scrape takes longer than all that is tested.
        """
        exposition = self.settle()
        name = self.handle.name
        state = {
            "pending": exposition.value("pending_checkouts", name),
            "in use": exposition.value("connections", name, state="in_use"),
            "idle": exposition.value("connections", name, state="idle"),
            "overflow": exposition.value("overflow_connections", name),
            "checked out": self.pool.checkedout(),
        }
        if where and where.startswith("detach"):
            del state["idle"]  # the connection's row stays idle until its record connects again
        expected = {
            "pending": 0,
            "in use": 0,
            "idle": len(self.database.open),
            "overflow": 0,
            "checked out": 0,
        }
        assert {key: expected[key] for key in state} == state, where
        assert_sites_add_up(exposition, name)
        times = 4
        for at in range(times):  # new records may reuse the addresses of freed ones
            self.held += [self.pool.connect(), self.pool.connect()]
            if at in (0, times - 1):
                (recorder,) = self.handle._recorders
                assert recorded_state(recorder.snapshot()) == pool_state(self.pool), where
            self.held.clear()
        last = RegistrySamples(self.registry)
        assert metric_state(last, name) == pool_state(self.pool), where
        return last


ACTS = ("checkout", "overflow", "timeout", "refused", "invalidate", "detach", "leak")


def each_moment(
    act: str, intrude: Callable[[Any], object], *, make: Callable[..., Scene] = Scene, **options: Any
) -> Iterator[tuple[Scene, str, Any]]:
    """Repeat an act, each time with the intrusion at a later moment, until no moment is left.

    Yields the scene, the place of the intrusion, and the exception that the act raised.
    """
    for moment in moments(f"{act} {intrude.__qualname__}"):
        scene = make(**options)
        raised: BaseException | None = None
        intruder = Intruder(moment, partial(intrude, scene))
        # The pool of an earlier scene may be garbage: what is raised where that is collected would be lost.
        gc.disable()
        try:
            with intruder:
                getattr(scene, act)()
        except BaseException as error:  # noqa: BLE001 - an intrusion may raise anything
            raised = error.with_traceback(None)
            raised.__context__ = None
        finally:
            gc.enable()
        if intruder.where is None:
            assert moment > _FEWEST, "not a moment in it"
            return
        yield scene, f"{act}: {intruder.where}", raised
        # Else its end would start a thread that logs it, beside the next act, and CPython 3.11 may give that the limit.
        with suppress(Exception):
            scene.pool.dispose()


def interrupt(_: Scene) -> None:
    raise KeyboardInterrupt


def checks_out_again(scene: Scene) -> None:
    scene.pool.connect().close()
