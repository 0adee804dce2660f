# SPDX-License-Identifier: Apache-2.0
"""Faults in recording: counted, and kept from the application."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy_pool_exporter.segment import fork

if TYPE_CHECKING:
    from collections.abc import Callable

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
