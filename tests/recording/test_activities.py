# SPDX-License-Identifier: Apache-2.0
"""What the holder of a connection does now: it waits for the database, for a connection, or for something else."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter.recording.connection_row_cy import Holder
from sqlalchemy_pool_exporter.recording.holders import current_holder
from sqlalchemy_pool_exporter.recording.stacks import Activity, activity_of
from tests.support.wait import eventually, eventually_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.pg import Server

SLEEP = text("SELECT pg_sleep(0.5)")


def kinds_of_thread(act: Callable[[], object]) -> tuple[set[str], Activity]:
    """Return the kinds of what a thread did meanwhile, all in a function of this module, and what it did at last."""
    holders: list[Holder] = []

    def run() -> None:
        holders.append(current_holder())
        act()

    thread = threading.Thread(target=run)
    thread.start()
    assert eventually(lambda: holders)
    seen = set()
    while thread.is_alive():
        activity = activity_of(holders[0])
        if activity.at.startswith(f"{__name__}:"):
            seen.add(activity.kind)
        time.sleep(0.001)
    thread.join()
    return seen, activity_of(holders[0])


def test_threads(server: Server, application_name: str) -> None:
    """A thread in a statement waits for the database, one in the queue for a connection; one that has ended has."""
    url = server.url("postgresql+psycopg", application_name=application_name)
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.5)

    def query() -> None:
        with engine.connect() as connection:
            connection.execute(SLEEP)

    def nested() -> None:
        with suppress(exc.TimeoutError), engine.connect(), engine.connect():
            pass

    for act, kind in ((query, "database"), (nested, "queue"), (lambda: time.sleep(0.3), "elsewhere")):
        seen, last = kinds_of_thread(act)
        assert kind in seen
        assert Activity("ended", "") == last
    engine.dispose()


def test_an_installed_application(server: Server, application_name: str) -> None:
    """Of an application that is installed like a library it is told, too, and with its prefixes nothing else counts."""
    source = "def pay(engine, sleep):\n    with engine.connect() as connection:\n        connection.execute(sleep)\n"
    shop: dict[str, Any] = {"__name__": "shop"}
    exec(compile(source, "/srv/site-packages/shop.py", "exec"), shop)  # noqa: S102 - as an application
    engine = create_engine(server.url("postgresql+psycopg", application_name=application_name))
    for prefixes in ((), ("shop",)):
        thread = threading.Thread(target=shop["pay"], args=(engine, SLEEP))
        thread.start()
        holder = Holder(0.0)
        holder.thread_id = thread.ident or 0
        seen = set()
        while thread.is_alive():
            seen.add(activity_of(holder, prefixes))
            time.sleep(0.01)
        thread.join()
        assert Activity("database", "shop:pay:3") in seen
    engine.dispose()


def test_tasks(server: Server, application_name: str) -> None:
    """A task behind the greenlet of an asyncio engine is told likewise."""

    async def watch(act: Callable[[], Any], kind: str) -> None:
        holders: list[Holder] = []

        async def run() -> None:
            holders.append(current_holder())
            await act()

        task = asyncio.create_task(run())
        assert await eventually_async(lambda: holders)
        seen: list[Activity] = []

        async def look() -> None:
            while not task.done():
                # From a thread, as the thread of a report looks.
                seen.append(await asyncio.to_thread(activity_of, holders[0]))

        await asyncio.gather(look(), task)
        assert kind in {one.kind for one in seen if one.at.startswith(f"{__name__}:test_tasks")}
        assert Activity("ended", "") == activity_of(holders[0])

    async def main() -> None:
        url = server.url("postgresql+asyncpg", application_name=application_name)
        engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.5)

        async def query() -> None:
            async with engine.connect() as connection:
                await connection.execute(SLEEP)

        async def nested() -> None:
            with suppress(exc.TimeoutError):
                async with engine.connect(), engine.connect():
                    pass

        await watch(query, "database")
        await watch(nested, "queue")
        await watch(lambda: asyncio.sleep(0.3), "elsewhere")
        await engine.dispose()

    asyncio.run(main())
