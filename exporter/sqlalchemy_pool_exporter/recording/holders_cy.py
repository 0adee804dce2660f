# SPDX-License-Identifier: Apache-2.0
"""Who holds a connection: a thread or an asyncio task.

A server makes a task for each request, so a new holder is made at most of its checkouts.
"""

# cython: language_level=3, nonecheck=True, auto_pickle=False

from __future__ import annotations

import sys
import threading
from asyncio import Task, current_task
from asyncio.events import _get_running_loop
from contextlib import suppress
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.segment.entries import UNNAMED_THREAD
from sqlalchemy_pool_exporter.segment.own_errors import handles_a_signal, is_of_package, is_own
from sqlalchemy_pool_exporter.segment.texts import name_of

from .to_thread import awaits_this_thread

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.recording.connection_row_cy import HeldRows, Holder
else:
    from .connection_row_cy import HeldRows, Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The attributes of an asyncio task: for its holder, and for what threads have checked out for it before it has one.
HOLDER_ATTRIBUTE: Final = "_pool_exporter_holder"
_ROWS: Final = "_pool_exporter_rows"
# What asyncio and threading call a task and a thread that has no name of its own, with a number behind. A server that
# begins a thread for each request would soon have used up the room for names.
_UNNAMED_TASK: Final = "Task-"
_UNNAMED_THREAD: Final = "Thread-"
_DIGITS: Final = 14  # that a double holds exactly, and a half

# Of a thread, or of one call in it: a thread that works for many tasks, as for ``to_thread()``, runs each call in a
# context of its own.
holder_of_call: Final[ContextVar[Holder | None]] = ContextVar("sqlalchemy_pool_exporter_holder", default=None)


def current_holder() -> Holder:
    """Return the running task, else the running thread."""
    loop = _get_running_loop()
    task: Any = None if loop is None else current_task(loop)
    return _in_thread() if task is None else getattr(task, HOLDER_ATTRIBUTE, None) or new_for_task(task)


def _in_thread() -> Holder:
    holder = holder_of_call.get()
    # The context may be a copy of that of another thread.
    if holder is None or holder.thread_id != get_ident():
        holder = new_for_thread()
    return holder


def _number_of_thread(name: str) -> float:
    number = _number(name.partition(" (")[0], _UNNAMED_THREAD)
    return 0.0 if number < 0.0 else UNNAMED_THREAD - number


@cython.cfunc
def _number(name: str, prefix: str) -> float:
    """Return the first digits of a name that is a prefix and a number; -1 for another name."""
    if not name.startswith(prefix):
        return -1.0
    if not cython.compiled:
        digits = name.removeprefix(prefix)
        return float(digits[:_DIGITS]) if digits.isascii() and digits.isdigit() else -1.0
    # The methods of a text take a multiple of what this does.
    at: cython.Py_ssize_t
    digit: cython.Py_ssize_t
    first: cython.Py_ssize_t = len(prefix)
    end: cython.Py_ssize_t = first + _DIGITS
    number: cython.double = -1.0
    for at in range(first, len(name)):
        digit = ord(name[at]) - ord("0")
        if not 0 <= digit <= 9:  # noqa: PLR2004
            return -1.0
        if at == first:
            number = digit
        elif at < end:
            number = 10.0 * number + digit
    return number


def _name_of_thread() -> str:
    return threading.current_thread().name


def said(ask: Callable[[], object]) -> str:
    """Return what an object of the application says of itself; nothing if its method raises, or says no text."""
    try:
        text = ask()
    except Exception as error:
        # If the error is of that method, the checkout goes on. A time limit reaches the application, also if it strikes
        # in the standard library, by which the name of a thread is found.
        step = error.__traceback__
        while step is not None and is_of_package(step.tb_frame):
            step = step.tb_next
        is_theirs = step is not None and step.tb_frame.f_globals is not vars(threading)
        if not is_own(error) and (handles_a_signal(error) or not is_theirs):
            raise
        return ""
    return text if type(text) is str else ""


def new_for_task(task: Task[Any]) -> Holder:
    """Make a holder for a task, which keeps it."""
    # One of asyncio's own runs no code of the application, but may have a name of a class of the application.
    name: Any = task.get_name() if type(task) is Task else None
    if type(name) is not str:
        name = said(task.get_name)
    number = _number(name, _UNNAMED_TASK)
    rows = getattr(task, _ROWS, None)
    holder = Holder(0.0, task, name_of(name), rows) if number < 0.0 else Holder(-number, task, None, rows)
    # A task of another make may take no attributes. Then each of its checkouts has a holder of its own.
    try:  # noqa: SIM105 - contextlib.suppress() takes longer, and a server makes a task for each request
        setattr(task, HOLDER_ATTRIBUTE, holder)
    except AttributeError:
        pass
    return holder


def new_for_thread() -> Holder:
    """Make a holder for this thread, or for the call that it runs in this context."""
    # A request of FastAPI or Starlette is one task, which makes one call after the other in threads that AnyIO takes
    # from a pool: what one call checked out, the next one holds. So it is with asyncio.to_thread().
    task, call = _waits_in_anyio(), None
    if task is None:
        task, call = awaits_this_thread()
    rows = None if task is None else _rows_of(task)
    name = said(_name_of_thread)
    number = _number_of_thread(name)
    holder = Holder(number, None, None if number else name_of(name), rows, call)
    holder_of_call.set(holder)
    return holder


def _waits_in_anyio() -> Task[Any] | None:
    """Return the task that waits for the call that AnyIO runs in this thread, if there is one."""
    anyio: Any = sys.modules.get("anyio._core._eventloop")
    scope = getattr(getattr(anyio, "threadlocals", None), "current_cancel_scope", None)
    task: Task[Any] | None = getattr(scope, "_host_task", None)
    return task


def _rows_of(task: Any) -> HeldRows | None:
    """Return what a task has checked out, itself or in threads."""
    holder: Holder | None = getattr(task, HOLDER_ATTRIBUTE, None)
    rows: HeldRows | None = getattr(task, _ROWS, None) if holder is None else holder.rows
    if rows is None:
        try:
            setattr(task, _ROWS, HeldRows())
            rows = getattr(task, _ROWS)
        except AttributeError:  # as above
            pass
    return rows


def acts_for(holder: Holder) -> bool:
    """Return whether this thread or task is the holder, or is a task that the holder waits for.

    SQLAlchemy's asyncio extension returns a connection at the end of ``async with`` in a task of its own, for which the
    caller waits behind ``asyncio.shield()``.
    """
    if current_holder().rows is holder.rows:
        return True
    loop = _get_running_loop()
    running: Any = loop and current_task(loop)
    waiting: Any = holder.task and holder.task()
    awaited = getattr(waiting, "_fut_waiter", None)
    if running is None or awaited is None:
        return False
    # shield() and gather() give the running task a callback that refers to the future for which the holder waits.
    callbacks = [callback for callback, _ in getattr(running, "_callbacks", None) or ()]
    return awaited is running or any(
        awaited is one for callback in callbacks for one in _references(callback)
    )


def _references(callback: Any) -> Iterator[object]:
    for cell in getattr(callback, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    yield from getattr(callback, "args", ())  # of a functools.partial, as in wait_for()
