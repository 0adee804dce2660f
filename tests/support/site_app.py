# SPDX-License-Identifier: Apache-2.0
"""An application that checks connections out in many ways; each function is one site, and calls ``look`` meanwhile."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    Look = Callable[[], None]

ONE = text("select 1")


def core(engine: Engine, look: Look) -> None:
    with engine.connect():
        look()


def begin(engine: Engine, look: Look) -> None:
    with engine.begin() as connection:
        connection.execute(ONE)
        look()


def session(engine: Engine, look: Look) -> None:
    with Session(engine) as one:
        one.execute(ONE)
        look()


def scoped(engine: Engine, look: Look) -> None:
    sessions = scoped_session(sessionmaker(engine))
    sessions.execute(ONE)
    look()
    sessions.remove()


def raw(engine: Engine, look: Look) -> None:
    connection = engine.raw_connection()
    look()
    connection.close()


def exit_stack(engine: Engine, look: Look) -> None:
    with ExitStack() as stack:
        stack.enter_context(engine.connect())
        look()


def partial(engine: Engine, look: Look) -> None:
    with functools.partial(functools.partial(engine.connect))():
        look()


@contextmanager
def manager(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def through_manager(engine: Engine, look: Look) -> None:
    with manager(engine):
        look()


def through_decorator(engine: Engine, look: Look) -> None:
    manager(engine)(look)()


def generator(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def through_generator(engine: Engine, look: Look) -> None:
    for _ in generator(engine):
        look()


def in_thread_pool(engine: Engine, look: Look) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as executor:
        executor.submit(core, engine, look).result()


def method(engine: Engine, look: Look) -> None:
    Service(engine).serve(look)


class Service:
    """A class whose method checks out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def serve(self, look: Look) -> None:
        with self.engine.connect():
            look()


# The function of a test, and the one that is the site.
SYNCHRONOUS: dict[Callable[[Any, Look], None], str] = {
    core: "core",
    begin: "begin",
    session: "session",
    scoped: "scoped",
    raw: "raw",
    exit_stack: "exit_stack",
    partial: "partial",
    through_manager: "manager",
    through_decorator: "manager",
    through_generator: "generator",
    in_thread_pool: "core",
    method: "Service.serve",
}


async def async_core(engine: AsyncEngine, look: Look) -> None:
    async with engine.connect():
        look()


async def async_awaited(engine: AsyncEngine, look: Look) -> None:
    connection = await engine.connect()
    look()
    await connection.close()


async def async_session(engine: AsyncEngine, look: Look) -> None:
    async with AsyncSession(engine) as one:
        await one.execute(ONE)
        look()


async def run_sync(engine: AsyncEngine, look: Look) -> None:
    async with AsyncSession(engine) as one:
        await one.run_sync(inside_run_sync, look)


def inside_run_sync(one: Session, look: Look) -> None:
    one.execute(ONE)
    look()


@asynccontextmanager
async def async_manager(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        yield connection


async def through_async_manager(engine: AsyncEngine, look: Look) -> None:
    async with async_manager(engine):
        look()


async def in_task(engine: AsyncEngine, look: Look) -> None:
    await asyncio.create_task(async_core(engine, look))


async def gathered(engine: AsyncEngine, look: Look) -> None:
    await asyncio.gather(async_session(engine, look))


async def with_timeout(engine: AsyncEngine, look: Look) -> None:
    await asyncio.wait_for(async_core(engine, look), 60)


ASYNCHRONOUS: dict[Callable[[Any, Look], Any], str] = {
    async_core: "async_core",
    async_awaited: "async_awaited",
    async_session: "async_session",
    run_sync: "inside_run_sync",
    through_async_manager: "async_manager",
    in_task: "async_core",
    gathered: "async_session",
    with_timeout: "async_core",
}
