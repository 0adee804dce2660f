# SPDX-License-Identifier: Apache-2.0
"""Work that takes time, off the event loop, in a thread nobody has to wait for at exit."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Return what ``work()`` returns or raise what it raises, having run it in a daemon thread of its own.

    ``asyncio.to_thread`` has a pool that is joined at exit: one collector that hangs on a dead file system would keep
    the whole process from ending. A thread a call costs about 0.1 ms, and callers see to it that there are few.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if outcome.done():  # cancelled meanwhile
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
        except BaseException as exc:  # noqa: BLE001 - it is raised where the result is awaited
            error = exc
            if isinstance(exc, StopIteration) or not isinstance(exc, Exception):
                # A future refuses the one, and is waited for ever; the others mean something else to an event loop.
                error = RuntimeError(f"{type(exc).__name__} in a thread")
                error.__cause__ = exc
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=run, name="sqlalchemy-pool-exporter-work", daemon=True).start()
    return await outcome
