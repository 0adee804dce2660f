# SPDX-License-Identifier: Apache-2.0
"""Who holds a connection: a thread or an asyncio task, and what the application says that it is doing."""

from __future__ import annotations

import threading
from asyncio import current_task
from asyncio.events import _get_running_loop
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.segment.own_errors import Suppressing, handles_a_signal, is_own
from sqlalchemy_pool_exporter.segment.page import HOLDERS, LABELS
from sqlalchemy_pool_exporter.segment.texts import number_of

from .connection_row import Holder

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Iterator

# The attribute of an asyncio task for its holder.
_ATTRIBUTE: Final = "_pool_exporter_holder"
_UNNAMED: Final = "Task-"  # what asyncio calls a task that has no name of its own
_DIGITS: Final = 15  # that a double holds exactly


# Its attribute ``holder`` is the running thread's, if the thread has checked out before. The hot path reads it itself.
of_thread: Final = threading.local()


def current_holder() -> Holder:
    """Return the running task, else the running thread."""
    loop = _get_running_loop()
    if loop is not None:
        task: Any = current_task(loop)
        if task is not None:
            return getattr(task, _ATTRIBUTE, None) or _new_for_task(task)
    try:
        holder: Holder = of_thread.holder
    except AttributeError:
        holder = of_thread.holder = Holder(number_of(HOLDERS, _said(_name_of_thread)))
    return holder


def _name_of_thread() -> str:
    return threading.current_thread().name


def _said(ask: Callable[[], object]) -> str:
    """Return what an object of the application says of itself; nothing if its method raises, or says no text."""
    try:
        text = ask()
    except Exception as error:
        # If the error is of that method, the checkout goes on. A time limit reaches the application.
        step = error.__traceback__
        is_inside = step is not None and step.tb_next is not None
        if not is_own(error) and (handles_a_signal(error) or not is_inside):
            raise
        return ""
    return text if type(text) is str else ""


def _new_for_task(task: Task[Any]) -> Holder:
    name = _said(task.get_name)
    digits = name.removeprefix(_UNNAMED)
    is_unnamed = len(digits) < len(name) and digits.isascii() and digits.isdigit()
    holder = Holder(-float(digits[:_DIGITS]) if is_unnamed else number_of(HOLDERS, name), task)
    # A task of another make may take no attributes. Then each of its checkouts has a holder of its own.
    with suppress(AttributeError):
        setattr(task, _ATTRIBUTE, holder)
    return holder


def acts_for(holder: Holder) -> bool:
    """Return whether this thread or task is the holder, or is a task that the holder waits for.

    SQLAlchemy's asyncio extension returns a connection at the end of ``async with`` in a task of its own, for which the
    caller waits behind ``asyncio.shield()``.
    """
    if current_holder() is holder:
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


def _shown(text: Any) -> str:
    if type(text) is str:
        return text
    return "" if text is None else _said(text.__str__)


# The number of the label, see ``LABEL``.
current_label: Final[ContextVar[int]] = ContextVar("sqlalchemy_pool_exporter_label", default=0)


@contextmanager
def label(text: str) -> Iterator[None]:
    """Say what this thread or task is doing, for example ``"GET /orders/{id}"``; checkouts inside show it.

    It costs nothing outside of checkouts, and follows the context: tasks that are started inside have it, too.

    Args:
        text: a route or the name of a job, without identifiers: there is room for 127 texts in a process, of 64 bytes
            each, and further ones are not shown. Anything else than a text is shown as ``str()`` does, None as nothing.
    """
    token = current_label.set(number_of(LABELS, _shown(text)))
    try:
        yield
    finally:
        # A framework may enter and leave a generator in different contexts, as FastAPI does with a dependency that is
        # not asynchronous. Then the context in which the label was set is gone, and the label with it.
        with Suppressing(ValueError):
            current_label.reset(token)
