# SPDX-License-Identifier: Apache-2.0
"""Callers cancelled in the queue, while connecting, and while they hold a connection."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import warnings
from contextlib import asynccontextmanager, suppress
from linecache import getline
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sqlalchemy_pool_exporter import instrument, uninstrument
from tests.support.samples import Exposition
from tests.support.wait import eventually, eventually_async
from tests.support.witness import metric_state, pool_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.pg import Server

NAME = "cancelled"


@asynccontextmanager
async def engine_of(
    server: Server, driver: str, registry: CollectorRegistry, name: str
) -> AsyncIterator[AsyncEngine]:
    url = server.url(f"postgresql+{driver}", application_name=name)
    engine = create_async_engine(url, pool_size=1, max_overflow=0, poolclass=AsyncAdaptedQueuePool)
    handle = instrument(engine, name=NAME, registry=registry)
    try:
        yield engine
    finally:
        await engine.dispose()
        handle.close()


async def until_pending(registry: CollectorRegistry, count: int) -> None:
    assert await eventually_async(lambda: Exposition(registry).value("pending_checkouts", NAME) == count)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_cancelled_while_queueing(
    server: Server, driver: str, registry: CollectorRegistry, application_name: str
) -> None:
    """A caller in the queue is pending until it is cancelled; then it counts as cancelled, and its wait is observed."""

    async def scenario() -> None:
        async with engine_of(server, driver, registry, application_name) as engine:
            async with engine.connect():
                waiting = [asyncio.create_task(engine.connect().start()) for _ in range(3)]
                await until_pending(registry, 3)
                assert Exposition(registry).value("longest_pending_seconds", NAME) > 0
                for task in waiting:
                    task.cancel()
                results = await asyncio.gather(*waiting, return_exceptions=True)
                assert all(isinstance(result, asyncio.CancelledError) for result in results)
                exposition = Exposition(registry)
                assert exposition.value("pending_checkouts", NAME) == 0
                assert exposition.value("longest_pending_seconds", NAME) == 0
                assert metric_state(exposition, NAME) == pool_state(engine.sync_engine.pool)
            counted = Exposition(registry).counters(NAME)
            assert counted["checkout_errors.cancelled"] == 3
            assert (counted["checkouts"], counted["checkins"], counted["checkout_wait_seconds_count"]) == (
                1,
                1,
                4,
            )

    asyncio.run(scenario())


@asynccontextmanager
async def mute_server() -> AsyncIterator[int]:
    """A server that accepts connections and never answers."""
    release = asyncio.Event()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        release.set()
        listener.close()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_cancelled_while_connecting(driver: str, registry: CollectorRegistry) -> None:
    """A caller cancelled while connecting counts as cancelled, and its connection attempt as a connect error."""

    async def scenario() -> None:
        async with mute_server() as port:
            engine = create_async_engine(f"postgresql+{driver}://nobody@127.0.0.1:{port}/nothing")
            instrument(engine, name=NAME, registry=registry)
            task = asyncio.ensure_future(engine.connect().start())
            await until_pending(registry, 1)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            exposition = Exposition(registry)
            assert exposition.value("pending_checkouts", NAME) == 0
            assert exposition.counters(NAME) == {
                "checkout_errors.cancelled": 1,
                "connect_errors": 1,
                "checkout_wait_seconds_count": 1,
                "connect_seconds_count": 1,
            }
            assert metric_state(exposition, NAME) == pool_state(engine.sync_engine.pool)
            await engine.dispose()
            uninstrument(engine)

    asyncio.run(scenario())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_cancelled_while_holding(
    server: Server, driver: str, registry: CollectorRegistry, application_name: str
) -> None:
    """A holder cancelled in a statement is no longer in use, and the idle count equals the server's connections."""

    async def hold(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select pg_sleep(2)"))

    async def scenario() -> None:
        async with engine_of(server, driver, registry, application_name) as engine:
            for _ in range(3):
                task = asyncio.create_task(hold(engine))
                assert await eventually_async(
                    lambda: Exposition(registry).value("connections", NAME, state="in_use")
                )
                await asyncio.sleep(0.05)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                # SQLAlchemy 2.0.0 loses the record if the return is cancelled; the garbage collector then frees it.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    gc.collect()
                exposition = Exposition(registry)
                assert exposition.value("connections", NAME, state="in_use") == 0
                counted = exposition.counters(NAME)
                ended = sum(counted.get(key, 0) for key in ("checkins", "detaches", "leaked_checkouts"))
                assert ended >= counted["checkouts"]
                idle = exposition.value("connections", NAME, state="idle")
                assert await eventually_async(lambda: server.count(application_name) == idle)  # noqa: B023 - awaited here

    asyncio.run(scenario())


def is_blocked(thread: threading.Thread) -> bool:
    """Return whether a thread waits in a queue. Just before that, an interrupt leaves its lock as it is."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and "waiter.acquire(True" in getline(frame.f_code.co_filename, frame.f_lineno)


def test_interrupted_while_queueing(
    server: Server, registry: CollectorRegistry, application_name: str
) -> None:
    """If a signal handler raises while a synchronous caller waits in the queue, the caller is no longer pending."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    engine = create_engine(
        server.url("postgresql+psycopg", application_name=application_name), pool_size=1, max_overflow=0
    )
    instrument(engine, name=NAME, registry=registry)

    def when_pending() -> None:
        waits = eventually(lambda: Exposition(registry).value("pending_checkouts", NAME) == 1)
        # It is pending a moment before it waits.
        if waits and eventually(lambda: is_blocked(main)):
            os.kill(os.getpid(), signal.SIGALRM)

    main = threading.current_thread()
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupter = threading.Thread(target=when_pending)
    try:
        with engine.connect():
            interrupter.start()
            with pytest.raises(Interrupt):
                engine.connect()
        exposition = Exposition(registry)
        assert exposition.value("pending_checkouts", NAME) == 0
        assert exposition.counters(NAME)["checkout_errors.cancelled"] == 1
        assert metric_state(exposition, NAME) == pool_state(engine.pool)
    finally:
        interrupter.join()
        signal.signal(signal.SIGALRM, before)
        engine.dispose()
        uninstrument(engine)


def test_waiting_threads_are_pending(
    server: Server, registry: CollectorRegistry, application_name: str
) -> None:
    """Each thread in the queue is one pending checkout until it is served."""
    engine = create_engine(
        server.url("postgresql+psycopg", application_name=application_name), pool_size=1, max_overflow=0
    )
    instrument(engine, name=NAME, registry=registry)
    served: list[Any] = []

    def work() -> None:
        with engine.connect() as connection:
            served.append(connection.scalar(text("select 1")))

    with engine.connect():
        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: Exposition(registry).value("pending_checkouts", NAME) == 5)
    for thread in threads:
        thread.join()
    exposition = Exposition(registry)
    assert served == [1] * 5
    assert exposition.value("pending_checkouts", NAME) == 0
    assert exposition.counters(NAME)["checkouts"] == 6
    engine.dispose()
    uninstrument(engine)


def test_error_of_another_pool_is_not_ours(registry: CollectorRegistry) -> None:
    """If a listener's checkout from another pool cannot connect, this pool's checkout fails with reason "other"."""
    broken = create_engine("sqlite:////nonexistent/directory/db")
    instrument(broken, name="broken", registry=registry)
    engine = create_engine("sqlite://")
    instrument(engine, name=NAME, registry=registry)

    @event.listens_for(engine, "checkout")
    def ask_the_other(*_: object) -> None:
        broken.connect()

    with pytest.raises(Exception, match="unable to open"):
        engine.connect()
    exposition = Exposition(registry)
    assert exposition.counters("broken")["checkout_errors.connect"] == 1
    assert exposition.counters(NAME)["checkout_errors.other"] == 1
    assert "checkout_errors.connect" not in exposition.counters(NAME)
    uninstrument(broken)
    uninstrument(engine)
