# SPDX-License-Identifier: Apache-2.0
"""Callers of ``connect()`` in threads and in tasks; the test controls where they stop and the pools' clock."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util import queue as queue_module

from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine

    from tests.support.reference_parts import Caller

sqlalchemy_queue: Any = queue_module  # its `_time` is the clock of the pools


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, which asyncio would also raise out of the event loop."""


class ListenerError(LookupError):
    """An error that an application's listener raises."""


ERRORS = {
    "refused": ConnectionRefusedError,
    "interrupted": Interrupt,
    "listener": ListenerError,
    "disconnected": exc.DisconnectionError,
}
_KINDS = {
    exc.TimeoutError: "timeout",
    exc.InvalidRequestError: "exhausted",
    asyncio.CancelledError: "cancelled",
    ConnectionRefusedError: "refused",
    Interrupt: "interrupted",
    ListenerError: "listener",
}


class Clock:
    """The clock of the pools' queues, which a test moves forward."""

    def __init__(self) -> None:
        self.passed = 0.0

    def time(self) -> float:
        return time.time() + self.passed


class Call:
    """A call of ``connect()`` in a thread or a task of its own."""

    def __init__(self, caller: Caller, expires: float, connect: Callable[[Engine], Connection]) -> None:
        self.caller = caller
        self.connect = connect
        self.expires = expires
        self.is_done = threading.Event()
        self.fault = ""
        self.connection: Connection | None = None
        self.waits_to_connect = threading.Event()
        self.may_connect: Any = None
        self.interrupted = False
        self.task: Any = None

    def run(self, engine: Engine) -> None:
        current_call.set(self)
        self.fault, self.connection = attempt(lambda: self.connect(engine))
        self.is_done.set()


current_call: ContextVar[Call | None] = ContextVar("call", default=None)


def attempt(function: Callable[[], Any]) -> tuple[str, Any]:
    """Return the kind of error that a function raised ("" if none), and its result.

    The exception itself is not returned, because its traceback would keep connections alive.
    """
    try:
        return "", function()
    except BaseException as error:  # noqa: BLE001 - every error has a kind
        for class_, kind in _KINDS.items():
            if isinstance(error, class_):
                return kind, None
        if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
            return "dead", None
        return repr(error), None


class Threads:
    """Runs callers in threads, as a synchronous application does."""

    def __init__(self, clock: Clock) -> None:
        self._pool = ThreadPoolExecutor(3)
        self._clock = clock

    def start(self, call: Call, engine: Engine) -> None:
        threading.Thread(
            target=copy_context().run, args=[call.run, engine], name=call.caller.holder, daemon=True
        ).start()

    def run(self, function: Callable[[], Any]) -> Any:
        return self._pool.submit(function).result(SECONDS)

    run_plainly = run

    def wait_to_connect(self, call: Call) -> None:
        call.may_connect = threading.Event()
        call.waits_to_connect.set()
        call.may_connect.wait()

    def let_connect(self, call: Call) -> None:
        call.waits_to_connect.clear()
        call.may_connect.set()

    def cancel(self, call: Call) -> str:
        call.interrupted = True
        self.let_connect(call)
        return "interrupted"

    @staticmethod
    def waiters(pool: Any) -> int:
        return len(pool._pool.not_empty._waiters)

    def expire(self, pool: Any) -> None:
        with pool._pool.not_empty:
            pool._pool.not_empty.notify()

    def close(self) -> None:
        self._pool.shutdown()


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._test_clock = clock
        super().__init__()

    def time(self) -> float:
        return super().time() + self._test_clock.passed


class Tasks:
    """Runs callers in tasks of an event loop, as an asyncio application does."""

    def __init__(self, clock: Clock) -> None:
        self._loop = _Loop(clock)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, call: Call, engine: Engine) -> None:
        def create() -> None:
            call.task = self._loop.create_task(greenlet_spawn(call.run, engine), name=call.caller.holder)

        self._loop.call_soon_threadsafe(create)

    def run(self, function: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(greenlet_spawn(function), self._loop).result(SECONDS)

    def run_plainly(self, function: Callable[[], Any]) -> Any:
        """Run a function outside of a greenlet, as the garbage collector runs finalizers."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(SECONDS)

    def wait_to_connect(self, call: Call) -> None:
        call.may_connect = asyncio.Event()
        call.waits_to_connect.set()
        await_only(call.may_connect.wait())

    def let_connect(self, call: Call) -> None:
        call.waits_to_connect.clear()
        self._loop.call_soon_threadsafe(call.may_connect.set)

    def cancel(self, call: Call) -> str:
        self._loop.call_soon_threadsafe(call.task.cancel)
        return "cancelled"

    @staticmethod
    def waiters(pool: Any) -> int:
        return len([getter for getter in pool._pool._queue._getters if not getter.done()])

    def expire(self, _pool: Any) -> None:
        self._loop.call_soon_threadsafe(lambda: None)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()
