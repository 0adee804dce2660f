# SPDX-License-Identifier: Apache-2.0
"""A worker process for an incident: callers use one pool in a loop, with the load that standard input gives.

Its only argument is JSON: the URL, the pool's options and the pool's name, and the module of an application, if its
functions are to be called instead of those here. Each line of standard input is JSON, too,
and replaces the load: ``{"callers": 3, "act": "query", "seconds": 0.05, "pause": 0.1}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sqlalchemy_pool_exporter import instrument

if TYPE_CHECKING:
    from types import ModuleType

    from sqlalchemy import Connection, Engine

SLEEP = text("SELECT pg_sleep(:seconds)")
# Locks what a session can wait for that has no row in common with the caller.
SHARE = text("SELECT pg_advisory_xact_lock_shared(1)")
# Errors that a caller ignores, as an application that answers 500 or 503 and goes on.
SURVIVED = (DBAPIError, PoolTimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Load:
    """How many callers there are, what each does with a connection, and its pause before the next, in seconds."""

    callers: int
    act: str = "query"
    seconds: float = 0.02
    pause: float = 0.05


class Callers:
    """Runs the load's callers in threads; the mutable state is the load and the number of threads."""

    def __init__(self, engine: Engine, acts: ModuleType | None = None) -> None:
        self._engine, self._acts = engine, acts
        self._load = Load(0)
        self._started = 0
        self._kept: list[Connection] = []

    def take(self, load: Load) -> None:
        """Replace the load."""
        self._load = load
        while self._started < load.callers:
            name = f"caller-{self._started}"
            threading.Thread(target=self._call, args=[self._started], name=name, daemon=True).start()
            self._started += 1

    def _call(self, number: int) -> None:
        # The callers start at different times, as requests do.
        time.sleep(number % 8 * self._load.pause / 8)
        while True:
            load = self._load
            if number < load.callers:
                with contextlib.suppress(*SURVIVED):
                    if self._acts is None:
                        getattr(self, load.act)(load.seconds)
                    else:
                        getattr(self._acts, load.act)(self._engine, load.seconds)
            time.sleep(load.pause)

    def query(self, seconds: float) -> None:
        """Do one query and give the connection back."""
        with self._engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": seconds})

    def forget(self, seconds: float) -> None:
        """Do one query, and forget to close; the garbage collector finds the connection so much later."""
        connection = self._engine.connect()
        connection.execute(SLEEP, {"seconds": 0})
        cycle: list[object] = [connection]
        cycle.append(cycle)
        del connection, cycle
        time.sleep(seconds)
        gc.collect()

    def write(self, seconds: float) -> None:
        """Do one query that only a server that takes writes allows."""
        with self._engine.begin() as connection:
            connection.execute(SLEEP, {"seconds": seconds})
            connection.execute(text("CREATE TABLE IF NOT EXISTS written ()"))

    def keep(self, seconds: float) -> None:
        """Do one query, and keep the connection for ever in a cache."""
        connection = self._engine.connect()
        self._kept.append(connection)
        connection.execute(SLEEP, {"seconds": seconds})
        connection.rollback()

    def nest(self, seconds: float) -> None:
        """Do one query, and ask for a second connection before the first is given back."""
        with self._engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": seconds})
            with self._engine.connect() as second:
                second.execute(SLEEP, {"seconds": seconds})


class Handlers:
    """Runs the load's callers as asyncio tasks, which can await something slow while they hold a connection."""

    def __init__(self, engine: AsyncEngine, acts: ModuleType | None = None) -> None:
        self._engine, self._acts = engine, acts
        self._load = Load(0)
        self._tasks: list[asyncio.Task[None]] = []

    def take(self, load: Load) -> None:
        """Replace the load."""
        self._load = load
        while len(self._tasks) < load.callers:
            self._tasks.append(asyncio.ensure_future(self._handle(len(self._tasks))))

    async def _handle(self, number: int) -> None:
        while True:
            load = self._load
            if number < load.callers:
                with contextlib.suppress(*SURVIVED):
                    if self._acts is None:
                        await getattr(self, load.act)(load.seconds)
                    else:
                        await getattr(self._acts, load.act)(self._engine, load.seconds)
            await asyncio.sleep(load.pause)

    async def query(self, seconds: float) -> None:
        """Do one query and give the connection back."""
        async with self._engine.connect() as connection:
            await connection.execute(SLEEP, {"seconds": seconds})

    async def wait(self, seconds: float) -> None:
        """Take a lock, then sleep while holding the connection."""
        async with self._engine.connect() as connection:
            await connection.execute(SHARE)
            await asyncio.sleep(seconds)

    async def block(self, seconds: float) -> None:
        """Run a query, then block the event loop while holding the connection; the load is an ordinary one after it."""
        self._load = replace(self._load, act="query", seconds=0.02)
        async with self._engine.connect() as connection:
            await connection.execute(SLEEP, {"seconds": 0})
            time.sleep(seconds)  # noqa: ASYNC251 - the fault


def _loads() -> Any:
    for line in sys.stdin:
        yield Load(**json.loads(line))


async def _asyncio(engine: AsyncEngine, acts: ModuleType | None) -> None:
    handlers = Handlers(engine, acts)
    loads = _loads()
    while (load := await asyncio.to_thread(next, loads, None)) is not None:
        handlers.take(load)


def main(options: dict[str, Any]) -> None:
    """Put load on a pool until standard input ends."""
    url, arguments = options["url"], options["pool"]
    acts = import_module(options["acts"]) if options.get("acts") else None
    if "poolclass" in arguments:
        arguments["poolclass"] = getattr(pool, arguments["poolclass"])
    instrumented: dict[str, Any] = {given: options[given] for given in ("name", "leak_after", "sites")}
    if "+asyncpg" in url:
        async_engine = create_async_engine(url, **arguments)
        instrument(async_engine, **instrumented)
        asyncio.run(_asyncio(async_engine, acts))
        return
    engine = create_engine(url, **arguments)
    instrument(engine, **instrumented)
    callers = Callers(engine, acts)
    for load in _loads():
        callers.take(load)


if __name__ == "__main__":
    # py-spy may look into this process although it is no descendant, which some systems forbid (PR_SET_PTRACER).
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
    main(json.loads(sys.argv[1]))
    # End at once, without waiting for the calls in progress.
    os._exit(0)
