# SPDX-License-Identifier: Apache-2.0
"""Tells an error of recording from a time limit of the application that strikes while recording runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.errors import SegmentError

if TYPE_CHECKING:
    from types import FrameType, TracebackType

# What the code of this package, SQLAlchemy's attributes that it reads, and the standard library's containers can raise.
_RECORDING_RAISES: Final = frozenset(
    (
        AttributeError,
        BufferError,
        FileExistsError,
        FileNotFoundError,
        IndexError,
        KeyError,
        MemoryError,
        OSError,
        OverflowError,
        PermissionError,
        RecursionError,
        ReferenceError,
        RuntimeError,
        SegmentError,
        TypeError,
        ValueError,
    )
)
_PACKAGE: Final = f"{__name__.partition('.')[0]}."


def is_own(error: BaseException) -> bool:
    """Return whether recording itself raised ``error``. If not, it belongs to the application and must reach it.

    The caller raises it again itself: a function that got it as an argument would be in its traceback, and that cycle
    would keep a connection out until the garbage collector runs.

    A time limit can strike inside our code. Task queues set one with ``PyThreadState_SetAsyncExc()`` or with a signal
    handler of any form, and most raise a class of their own. If recording can raise that class too, then:

    * ``PyThreadState_SetAsyncExc()`` takes a class, so the exception has no arguments. CPython gives each error of its
      own a message, except a ``MemoryError``, and each error of the system a number: a ``TimeoutError`` without one is
      a time limit, although it is an ``OSError``.
    * The traceback of an exception from a signal handler leads into the handler.
    """
    kind = type(error)
    if isinstance(error, OSError) and error.errno is not None:
        # Of any built-in class: where the directory was, there can be a file, for example.
        if kind.__module__ != "builtins":
            return False
    elif kind not in _RECORDING_RAISES or not (error.args or kind is MemoryError):
        return False
    return not handles_a_signal(error)


def handles_a_signal(error: BaseException) -> bool:
    """Return whether a signal handler raised ``error``."""
    step = error.__traceback__
    while step:
        if _handles_a_signal(step.tb_frame):
            return True
        step = step.tb_next
    return False


def is_of_package(frame: FrameType) -> bool:
    """Return whether a frame runs code of this package."""
    return str(frame.f_globals.get("__name__")).startswith(_PACKAGE)


class Suppressing(contextlib.AbstractContextManager["Suppressing"]):
    """Suppress errors of these classes, but only recording's own: ``TimeoutError`` is an ``OSError``."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Return whether the error ends here."""
        return isinstance(error, self._kinds) and is_own(error)


def _handles_a_signal(frame: FrameType) -> bool:
    """Return whether a frame is that of a signal handler: it got the frame that it interrupted as an argument.

    The present handlers would not tell: a handler can put the previous one back before it raises.
    """
    # Until Python 3.12 a look at f_locals makes the frame keep them. For our own frames, which have the error among
    # them, that would be a cycle.
    is_ours = is_of_package(frame)
    interrupted = frame.f_back
    return not (is_ours or interrupted is None) and any(
        each is interrupted
        for local in frame.f_locals.values()
        for each in (local if type(local) is tuple else (local,))
    )
