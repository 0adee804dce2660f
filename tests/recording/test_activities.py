# SPDX-License-Identifier: Apache-2.0
"""What the holder of a connection does now: it waits for the database, for a connection, or for something else."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter.recording.connection_row_cy import Holder
from sqlalchemy_pool_exporter.recording.holders_cy import current_holder
from sqlalchemy_pool_exporter.recording.stacks import Activity, activity_of
from tests.support.timeouts import Timeouts
from tests.support.wait import SECONDS, eventually, eventually_async

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.support.pg import Server

SLEEP = text("SELECT pg_sleep(600)")


def activity_after(act: Callable[[], object], kind: str, end: Callable[[], object]) -> Activity:
    """Let a thread act until it is seen in what is of a kind, in a function of this module; return what it did last."""
    holders: list[Holder] = []

    def run() -> None:
        holders.append(current_holder())
        act()

    def is_seen() -> bool:
        activity = activity_of(holders[0])
        return activity.kind == kind and activity.at.startswith(f"{__name__}:")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert eventually(lambda: holders)
        assert eventually(is_seen)
    finally:
        end()
        thread.join()
    return activity_of(holders[0])


def test_threads(server: Server, application_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread in a statement waits for the database, one in the queue for a connection; one that has ended has."""
    url = server.url("postgresql+psycopg", application_name=application_name)
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=SECONDS)
    timeouts, done = Timeouts(monkeypatch), threading.Event()

    def query() -> None:
        with suppress(exc.DBAPIError), engine.connect() as connection:
            connection.execute(SLEEP)

    def nested() -> None:
        with suppress(exc.TimeoutError), engine.connect(), engine.connect():
            pass

    for act, kind, end in (
        # It waits for the database while it connects, too, and then there is nothing yet to end.
        (query, "database", lambda: eventually(lambda: server.terminate(application_name))),
        (nested, "queue", lambda: timeouts.strike(engine.pool)),
        (done.wait, "elsewhere", done.set),
    ):
        assert Activity("ended", "") == activity_after(act, kind, end)
    engine.dispose()


def test_an_installed_application(server: Server, application_name: str) -> None:
    """Of an application that is installed like a library it is told, too, and with its prefixes nothing else counts."""
    source = """
def pay(engine, sleep):
    with suppress(DBAPIError), engine.connect() as connection:
        connection.execute(sleep)
"""
    shop: dict[str, Any] = {"__name__": "shop", "suppress": suppress, "DBAPIError": exc.DBAPIError}
    exec(compile(source, "/srv/site-packages/shop.py", "exec"), shop)  # noqa: S102 - as an application
    engine = create_engine(server.url("postgresql+psycopg", application_name=application_name))
    for prefixes in ((), ("shop",)):
        thread = threading.Thread(target=shop["pay"], args=(engine, SLEEP))
        thread.start()
        holder = Holder(0.0)
        holder.thread_id = thread.ident or 0
        try:
            assert eventually(lambda: Activity("database", "shop:pay:4") == activity_of(holder, prefixes))  # noqa: B023 - called at once
        finally:
            eventually(lambda: server.terminate(application_name))
            thread.join()
    engine.dispose()


def test_tasks(server: Server, application_name: str) -> None:
    """A task behind the greenlet of an asyncio engine is told likewise."""
    queried = asyncio.Event()

    async def watch(act: Callable[[], Any], kind: str) -> None:
        holders: list[Holder] = []

        async def run() -> None:
            holders.append(current_holder())
            await act()

        async def is_seen() -> bool:
            # From a thread, as the thread of a report looks.
            activity = await asyncio.to_thread(activity_of, holders[0])
            return activity.kind == kind and activity.at.startswith(f"{__name__}:test_tasks")

        task = asyncio.create_task(run())
        try:
            assert await eventually_async(lambda: holders)
            assert await eventually_async(is_seen)
        finally:
            # A statement ends by itself: the connection of a cancelled one may still be open when the loop ends.
            if kind == "database":
                queried.set()
            else:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert Activity("ended", "") == activity_of(holders[0])

    async def main() -> None:
        url = server.url("postgresql+asyncpg", application_name=application_name)
        engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=SECONDS)

        async def query() -> None:
            async with engine.connect() as connection:
                while not queried.is_set():
                    await connection.execute(text("SELECT pg_sleep(0.5)"))

        async def nested() -> None:
            async with engine.connect(), engine.connect():
                pass

        await watch(query, "database")
        await watch(nested, "queue")
        await watch(lambda: asyncio.sleep(SECONDS), "elsewhere")
        await engine.dispose()

    asyncio.run(main())
