# SPDX-License-Identifier: Apache-2.0
"""Pools that end with connections open because nobody called ``dispose()``: each is counted, ten a minute are logged.

A pool ends when the garbage collector finds its engine, or with the interpreter. The first is known in the midst of
anything, as garbage collection is, so a thread of its own writes the log: one that waited for a lock of the log there
could wait for itself.

An application that makes an engine for each tenant and drops it may lose hundreds a second. The log gets some lines a
minute, and the next one says how many have none.

The second is known for certain only when all exit functions of the application have run, because some of them dispose
of engines. Python calls exit functions in the reverse order of their registration, and an engine's may have been
registered first of all. So ours only makes a handler of the log: ``logging`` registers its ``shutdown()`` when it is
imported, that closes the handlers from the newest to the oldest, and the close of ours is the moment to look. The
application's handlers are still open then.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sqlalchemy_pool_exporter.segment import fork
from sqlalchemy_pool_exporter.segment.own_errors import is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_logger = logging.getLogger("sqlalchemy_pool_exporter")

# For the thread that writes the log when the interpreter ends, in seconds.
_MOST_WAIT: Final = 0.1
_MOST_LINES, _PERIOD_SECONDS = 10, 60.0  # of the log
_AFTER_ALL_OTHERS: Final = -1000  # of multiprocessing's finalizers, which have priorities
_WHY: Final = {
    "collected": "its engine was garbage-collected and nobody had called dispose(); the server keeps a session until "
    "it notices that its client is gone",
    "exit": "the interpreter ends and nobody called dispose(); the server sees its clients break off",
}


class Ending(NamedTuple):
    """A pool that ended with connections open."""

    name: Callable[[], str]
    when: str  # one of UNDISPOSED
    connections: int
    in_use: int


class Pool(Protocol):
    """The part of a recorder that is needed here."""

    def undisposed_at_exit(self) -> Ending | None:
        """Count the pool if it has connections open that nobody disposed of; return it the first time."""

    def fault(self, error: BaseException) -> bool:
        """Count a fault."""


def _no_pools() -> Iterable[Pool]:
    return ()


class _Watch:
    """Waits for pools to end.

    Mutable state: the pools of this process; those that ended and are not logged yet; since when how many lines are
    logged, and how many pools are left out since the last line; whether the end of the interpreter is awaited, has
    come, and whether a thread writes the log.
    """

    def __init__(self) -> None:
        self._pools: Callable[[], Iterable[Pool]] = _no_pools
        self._to_log: deque[Ending] = deque()
        self._since, self._lines, self._left_out = -_PERIOD_SECONDS, 0, 0
        self.is_awaiting = False
        self._has_ended = False
        self._idle = threading.Event()
        self._last_handler: _LastHandler | None = None

    def watch(self, pools: Callable[[], Iterable[Pool]]) -> None:
        """Look at these pools when the interpreter ends; ``pools`` is called then."""
        self._pools = pools
        fork.call_in_child(self._leave_parent)

    def await_end(self) -> None:
        """Await the end of the interpreter; each process does so when it opens its first connection.

        Not earlier: a child of ``multiprocessing`` first forgets all exit functions of its parent.
        """
        try:
            child = _child_of_multiprocessing()
            if child is None:
                atexit.register(self._at_exit)
            else:
                child.Finalize(None, self.look, exitpriority=_AFTER_ALL_OTHERS)
        except Exception as error:
            if not is_own(error):  # a time limit of the application; the next connection tries again
                raise
            # The interpreter ends already.
        self.is_awaiting = True

    def collected(self, ending: Ending) -> None:
        """Log a pool that was garbage-collected; this can run in the midst of anything."""
        if self._has_ended:
            return
        self._to_log.append(ending)
        if (
            fork.forks_workers_in_c()
        ):  # it may start no thread: this is logged with the next one, or at the end
            return
        # Not threading.Thread: its locks may be held by the code that was interrupted.
        with contextlib.suppress(RuntimeError):  # the system has no thread left, or the interpreter ends
            _thread.start_new_thread(self._log_all, ())

    def _at_exit(self) -> None:
        # Not a handler of the log without need: a forked child of a parent that has the connections ends as it did.
        try:
            fork.notice()
            if self._pools():
                self._last_handler = _LastHandler(self.look)
        except Exception:  # noqa: BLE001 - nothing of ours may be seen when the interpreter ends
            self.look()

    def look(self) -> None:
        """Count and log the pools that have connections open; the interpreter ends. Never raises."""
        with contextlib.suppress(Exception):
            if self._has_ended:
                return
            fork.notice()
            for pool in self._pools():
                try:
                    ending = pool.undisposed_at_exit()
                    if ending is not None:
                        self._to_log.append(ending)
                except Exception as error:  # noqa: BLE001 - one odd pool does not hide the others
                    pool.fault(error)
            self._has_ended = True
            if self._to_log or self._left_out:
                fork.without_locks_of_the_parent(self._log_all)
                self._idle.wait(_MOST_WAIT)

    def _log_all(self) -> None:
        self._idle.clear()
        try:
            while True:
                try:
                    ending = self._to_log.popleft()
                except IndexError:
                    break
                if self._may_log():
                    _log(ending, self._take_left_out())
                else:
                    self._left_out += 1
            if self._has_ended and (left_out := self._take_left_out()):
                _logger.warning(
                    "%d more pools ended with connections open (pid %d), which are not logged: "
                    "sqlalchemy_pool_undisposed_total counts them",
                    left_out,
                    os.getpid(),
                )
        except Exception:  # noqa: BLE001 - of a handler of the application, in a thread where nobody would see it
            return
        finally:
            self._idle.set()

    def _take_left_out(self) -> int:
        # Several threads may write at the same time: the first one says it.
        left_out, self._left_out = self._left_out, 0
        return left_out

    def _may_log(self) -> bool:
        now = time.monotonic()
        if now - self._since >= _PERIOD_SECONDS:
            self._since, self._lines = now, 0
        self._lines += 1
        return self._lines <= _MOST_LINES

    def _leave_parent(self) -> None:
        """In a forked child: what ended is the parent's, and so is the registration, if multiprocessing forked."""
        self._to_log.clear()
        self._since, self._lines, self._left_out = -_PERIOD_SECONDS, 0, 0
        self._idle = threading.Event()
        self.is_awaiting = self._has_ended = False
        self._last_handler = None


class _LastHandler(logging.Handler):
    """Is called when ``logging`` shuts down, before the handlers of the application; gets no record."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        super().__init__()
        self._on_close = on_close

    def close(self) -> None:
        """Note that the log is about to end."""
        self._on_close()
        super().close()


def _child_of_multiprocessing() -> Any:
    """Return ``multiprocessing.util`` in a process that it forked: that ends without the exit functions of others."""
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if process is None or util is None or process.parent_process() is None:
        return None
    method = getattr(process.current_process(), "_start_method", None)
    if method is None:
        method = sys.modules["multiprocessing"].get_start_method(allow_none=True)
    return None if method == "spawn" else util


def _log(ending: Ending, left_out: int) -> None:
    report = {
        "pool": ending.name(),
        "pid": os.getpid(),
        "when": ending.when,
        "connections": ending.connections,
        "in_use": ending.in_use,
        "not_logged": left_out,
    }
    are = "connection" if ending.connections == 1 else "connections"
    out = f", {ending.in_use} of them checked out" if ending.in_use else ""
    more = f" ({left_out} more since the last line)" if left_out else ""
    _logger.warning(
        "pool %r (pid %d) ends with %d %s open%s: %s%s",
        report["pool"],
        report["pid"],
        ending.connections,
        are,
        out,
        _WHY[ending.when],
        more,
        extra={"pool_undisposed": report},
    )


WATCH: Final = _Watch()
