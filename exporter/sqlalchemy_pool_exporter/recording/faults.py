# SPDX-License-Identifier: Apache-2.0
"""Faults in recording: counted, and kept from the application."""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy_pool_exporter.segment import fork

if TYPE_CHECKING:
    from collections.abc import Callable

    class CountsFaults(Protocol):
        """The part of a recorder that is needed here."""

        def fault(self, error: Exception) -> None:
            """Count a fault."""

    class HasRecorder(Protocol):
        """An object that records with a recorder."""

        @property
        def recorder(self) -> CountsFaults:
            """The recorder that counts the faults."""

    P = ParamSpec("P")
    R = TypeVar("R")
    S = TypeVar("S", bound=HasRecorder)


def never_raises(record: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Make a method count its exceptions as faults and return None, so that none reaches the application.

    Use it only for methods that do nothing but record, because an exception of the application's own call must reach
    the application. So must an exception of the application's signal handler: ``Recorder.fault()`` raises it again.
    Do not use it on the hot path, because it costs a call.
    """

    @functools.wraps(record)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            if not fork.mark[0] and not fork.notice():
                return None  # a forked child that is leaving the blocks of its parent
            return record(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - recording never raises
            self.recorder.fault(error)
            return None

    return guarded


def is_from_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler of the application raised ``error``.

    Task queues end a task that takes too long in this way, and the exception can be raised inside our code.
    """
    codes = {
        getattr(getattr(handler, "__func__", handler), "__code__", None)
        for handler in map(signal.getsignal, signal.valid_signals())
    } - {None}
    frame = error.__traceback__
    while frame:
        if frame.tb_frame.f_code in codes:
            return True
        frame = frame.tb_next
    return False
