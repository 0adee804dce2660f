# SPDX-License-Identifier: Apache-2.0
"""Blocking work off the event loop, in a thread that cannot keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def run_in_daemon_thread(work: Callable[[], T]) -> T:
    """Return what ``work()`` returns, or raise what it raises.

    ``asyncio.to_thread`` uses a pool whose threads are joined at exit: a collector that hangs on a dead file system
    would keep the process from ending. A thread a call costs about 0.1 ms, and the callers bound their number.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        if not outcome.set_running_or_notify_cancel():
            return  # the caller was cancelled before the thread began
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            if isinstance(error, StopIteration) or not isinstance(error, Exception):
                # An asyncio future refuses StopIteration, and a task ends the event loop with the others.
                wrapped = RuntimeError(f"{type(error).__name__} in a thread")
                wrapped.__cause__ = error
                error = wrapped
            outcome.set_exception(error)

    threading.Thread(target=run, name="sqlalchemy-pool-exporter-work", daemon=True).start()
    return await asyncio.wrap_future(outcome)
