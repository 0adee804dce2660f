# SPDX-License-Identifier: Apache-2.0
"""Counts the processor's instructions of a checkout and its return, each way to watch a pool in turn.

A program for valgrind: callgrind writes a profile at each call of ``getppid()``, so one profile is of one way. Its
argument is a key of ``CALLERS``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from itertools import repeat
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from sqlalchemy import event
from sqlalchemy.util import greenlet_spawn

from benchmarks import fake
from sqlalchemy_pool_exporter import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

WARM_UP, CYCLES = 300, 1000
# Below valgrind on a busy machine many times are beyond the first bucket, and the search for another one is counted.
# The modules that record take the bound when they are loaded.
if __name__ == "__main__":
    metrics.__dict__["BUCKETS"] = (60.0, *metrics.BUCKETS[1:])


def nothing(_engine: Engine) -> None: ...


def listeners(engine: Engine) -> None:
    def checkout(_connection: object, _record: object, _proxy: object) -> None: ...

    def checkin(_connection: object, _record: object) -> None: ...

    event.listen(engine.pool, "checkout", checkout)
    event.listen(engine.pool, "checkin", checkin)


def recorded(**options: Any) -> Callable[[Engine], object]:
    from sqlalchemy_pool_exporter import instrument  # noqa: PLC0415 - see above

    return lambda engine: instrument(engine, registry=CollectorRegistry(), **options)


# The keys of WAYS, which say the order of the profiles.
WAYS: dict[str, Callable[[Engine], object]] = {
    "nothing": nothing,
    "listeners": listeners,
    "without sites": recorded(sites=False),
    "by default": recorded(),
    "with sites": recorded(sites=True),
}


def calls(engine: Engine, count: int) -> None:
    """Check out and return in one thread."""
    connect = engine.pool.connect
    for _ in repeat(None, count):
        connect().close()


def tasks(engine: Engine, count: int) -> None:
    """Check out and return in a task of its own each time, as a server does for each request of an asyncio engine."""

    async def request() -> None:
        connection = await greenlet_spawn(engine.raw_connection)
        await greenlet_spawn(connection.close)

    async def serve() -> None:
        for _ in repeat(None, count):
            await asyncio.create_task(request())

    asyncio.run(serve())


CALLERS = {"calls": calls, "tasks": tasks}


def main() -> None:
    gc.disable()
    use = CALLERS[sys.argv[1]]
    for attach in WAYS.values():
        engine = fake.engine()
        attach(engine)
        use(engine, WARM_UP)
        os.getppid()
        use(engine, CYCLES)
        os.getppid()


if __name__ == "__main__":
    main()
