# SPDX-License-Identifier: Apache-2.0
"""Runs blocking work in a daemon thread, which cannot keep the process from exiting."""

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

    The threads of ``asyncio.to_thread`` are joined at exit, so a collector that hangs on a dead file system would keep
    the process from exiting. A new thread for each call costs about 0.1 ms; the callers limit their number.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        if not outcome.set_running_or_notify_cancel():
            return  # the caller was cancelled before the thread began
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            if isinstance(error, StopIteration) or not isinstance(error, Exception):
                # asyncio futures refuse StopIteration. SystemExit and KeyboardInterrupt would end the event loop.
                wrapped = RuntimeError(f"{type(error).__name__} in a thread")
                wrapped.__cause__ = error
                error = wrapped
            outcome.set_exception(error)

    threading.Thread(target=run, name="sqlalchemy-pool-exporter-work", daemon=True).start()
    return await asyncio.wrap_future(outcome)
