# SPDX-License-Identifier: Apache-2.0
"""Faults in recording: counted, and kept from the application."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, Protocol, TypeVar

from sqlalchemy_pool_exporter.segment import fork

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    class CountsFaults(Protocol):
        """The part of a recorder that is needed here."""

        def fault(self, error: BaseException) -> bool:
            """Count a fault; return False if ``error`` is the application's."""

    class HasRecorder(Protocol):
        """An object that records with a recorder."""

        @property
        def recorder(self) -> CountsFaults:
            """The recorder that counts the faults."""

    P = ParamSpec("P")
    R = TypeVar("R")
    S = TypeVar("S", bound=HasRecorder)


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
        TypeError,
        ValueError,
    )
)


_PACKAGE: Final = f"{__name__.partition('.')[0]}."


def never_raises(record: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Make a method count its exceptions as faults and return None, so that none reaches the application.

    Use it only for methods that do nothing but record, because an exception of the application's own call must reach
    the application. So must a time limit of the application, see ``is_own()``. Do not use it on the hot path, because
    it costs a call.
    """

    @functools.wraps(record)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            if not fork.mark[0] and not fork.notice():
                return None  # a forked child that is leaving the blocks of its parent
            return record(self, *args, **kwargs)
        except Exception as error:
            # Not type(), and no method: near the limit of recursion each call raises the same error again.
            if error.__class__ is not RecursionError and not self.recorder.fault(error):
                raise
            return None

    return guarded


def is_own(error: BaseException) -> bool:
    """Return whether recording itself raised ``error``. If not, it belongs to the application and must reach it.

    The caller raises it again itself: a function that got it as an argument would be in its traceback, and that cycle
    would keep a connection out until the garbage collector runs.

    A time limit can strike inside our code. Task queues set one with ``PyThreadState_SetAsyncExc()`` or with a signal
    handler of any form, and most raise a class of their own. If recording can raise that class too, then:

    * ``PyThreadState_SetAsyncExc()`` takes a class, so the exception has no arguments. CPython gives each error of its
      own a message, except a ``MemoryError``.
    * The traceback of an exception from a signal handler leads into the handler.
    """
    kind = type(error)
    if kind not in _RECORDING_RAISES or not (error.args or kind is MemoryError):
        return False
    step = error.__traceback__
    while step:
        if _handles_a_signal(step.tb_frame):
            return False
        step = step.tb_next
    return True


def _handles_a_signal(frame: FrameType) -> bool:
    """Return whether a frame is that of a signal handler: it got the frame that it interrupted as an argument.

    The present handlers would not tell: a handler can put the previous one back before it raises.
    """
    # Until Python 3.12 a look at f_locals makes the frame keep them. For our own frames, which have the error among
    # them, that would be a cycle.
    is_ours = str(frame.f_globals.get("__name__")).startswith(_PACKAGE)
    interrupted = frame.f_back
    return not (is_ours or interrupted is None) and any(
        each is interrupted
        for local in frame.f_locals.values()
        for each in (local if type(local) is tuple else (local,))
    )
