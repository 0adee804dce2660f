# SPDX-License-Identifier: Apache-2.0
"""The task that waits for this thread: it has called ``asyncio.to_thread()``.

A copied context does not tell, because a task can be cancelled or can begin other tasks. So the executor's future of
the call leads to the future that the task awaits, and that one to the task.
"""

from __future__ import annotations

import sys
import threading
import weakref
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import Task


def awaits_this_thread() -> tuple[Task[Any] | None, weakref.ref[Any] | None]:
    """Return the task that awaits the call of ``asyncio.to_thread()`` that runs in this thread, and its future.

    Only such a call has a context of its own, in which the answer can be kept. A task is not found if it has not yet
    come to its ``await``, as when the executor has just started this thread.
    """
    executors: Any = sys.modules.get("concurrent.futures.thread")
    work: Any = getattr(executors, "_WorkItem", None)
    # The search takes 4 µs; most threads are none of an executor.
    if work is None or threading.current_thread() not in getattr(executors, "_threads_queues", ()):
        return None, None
    item = _work_item(work.run.__code__)
    if item is None or not _has_own_context(item):
        return None, None
    for callback in list(getattr(item.future, "_done_callbacks", ())):
        awaited = _cell(callback, "destination")
        for wakeup, _ in list(getattr(awaited, "_callbacks", None) or ()):
            task: Any = getattr(wakeup, "__self__", None)
            if getattr(task, "_fut_waiter", None) is awaited:
                return task, weakref.ref(awaited)
    return None, None


def _work_item(run: object) -> Any:
    """Return what the executor runs in this thread; ``run`` is the code that does so."""
    frame = sys._getframe()  # noqa: SLF001 - inspect.currentframe() is the same
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is run:
            return frame.f_locals.get("self")
    return None


def _has_own_context(item: Any) -> bool:
    task = getattr(item, "task", None)  # since Python 3.14: function, arguments
    function = task[0] if isinstance(task, tuple) and task else getattr(item, "fn", None)
    return isinstance(getattr(getattr(function, "func", None), "__self__", None), Context)


def _cell(function: Any, name: str) -> Any:
    """Return the variable of an enclosing function."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(function, "__closure__", None) or (), strict=False))
    try:
        return cells[name].cell_contents
    except (KeyError, ValueError):
        return None
