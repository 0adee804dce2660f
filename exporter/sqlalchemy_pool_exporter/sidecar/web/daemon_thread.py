# SPDX-License-Identifier: Apache-2.0
"""Blocking work in a daemon thread, awaited from the event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def run_in_daemon_thread(work: Callable[[], T]) -> T:
    """Run ``work()`` in a daemon thread of its own and return its result, or raise its exception.

    Python joins the threads of ``asyncio.to_thread`` at exit, so one collector that hangs on a dead file system would
    keep the process from ending. Starting a thread takes about 0.1 ms.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if outcome.done():  # the caller was cancelled
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - raised again where the result is awaited
            error = exc
            if isinstance(exc, StopIteration) or not isinstance(exc, Exception):
                # A future refuses StopIteration, and KeyboardInterrupt or SystemExit would end the event loop.
                error = RuntimeError(f"{type(exc).__name__} in a thread")
                error.__cause__ = exc
        with suppress(RuntimeError):  # the event loop is closed: the process ends
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=run, name="sqlalchemy-pool-exporter-work", daemon=True).start()
    return await outcome
