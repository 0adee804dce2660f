# SPDX-License-Identifier: Apache-2.0
"""A FastAPI application that checks connections out in many ways; each path says which function is the site.

``app.state`` has the engines; ``app.state.look()`` is called while a connection is checked out.
"""

# No `from __future__ import annotations`: FastAPI evaluates the annotations.
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, ForeignKey, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from starlette.concurrency import run_in_threadpool

ONE = text("select 1")
router = APIRouter(prefix="/orders")


class Base(DeclarativeBase):
    """The models."""


class Order(Base):
    """An order, whose items are loaded lazily."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    items: Mapped[list["Item"]] = relationship()

    @property
    def number_of_items(self) -> int:
        return len(self.items)


class Item(Base):
    """An item of an order."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))


class Shown(BaseModel):
    """An order, as a response shows it."""

    model_config = ConfigDict(from_attributes=True)
    id: int


# -- dependencies


def get_session(request: Request) -> Iterator[Session]:
    with Session(request.app.state.engine) as session:
        yield session


def get_connection(request: Request) -> Iterator[Connection]:
    with request.app.state.engine.connect() as connection:
        yield connection


async def get_async_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(request.app.state.async_engine) as session:
        yield session


async def get_async_connection(request: Request) -> AsyncIterator[AsyncConnection]:
    async with request.app.state.async_engine.connect() as connection:
        yield connection


Db = Annotated[Session, Depends(get_session)]
AsyncDb = Annotated[AsyncSession, Depends(get_async_session)]


class Repository:
    """A dependency of a dependency."""

    def __init__(self, session: Db) -> None:
        self.session = session

    def find(self) -> None:
        self.session.execute(ONE)


async def get_user(session: AsyncDb) -> str:
    await session.execute(ONE)
    return "user"


# -- sync


@router.get("/session")
def through_session(request: Request, session: Db) -> None:
    session.execute(ONE)
    request.app.state.look()


@router.get("/connection")
def through_connection(request: Request, _connection: Annotated[Connection, Depends(get_connection)]) -> None:
    request.app.state.look()


@router.get("/repository")
def through_repository(request: Request, repository: Annotated[Repository, Depends()]) -> None:
    repository.find()
    request.app.state.look()


@router.get("/begin")
def through_begin(request: Request) -> None:
    with sessionmaker(request.app.state.engine).begin() as session:
        session.execute(ONE)
        request.app.state.look()


@router.get("/get/{number}")
def through_get(request: Request, session: Db, number: int) -> None:
    assert session.get(Order, number) is not None
    request.app.state.look()


@router.get("/lazy")
def through_lazy_load(request: Request, session: Db) -> None:
    order = session.get_one(Order, 1) if hasattr(session, "get_one") else session.get(Order, 1)
    session.commit()  # the connection goes back
    assert order is not None
    assert order.number_of_items == 0
    request.app.state.look()


@contextmanager
def unit_of_work(request: Request) -> Iterator[Session]:
    with Session(request.app.state.engine) as session, session.begin():
        yield session


@contextmanager
def audited(request: Request) -> Iterator[Session]:
    with unit_of_work(request) as session:
        yield session


@router.get("/nested")
def through_nested_managers(request: Request) -> None:
    with audited(request) as session:
        session.execute(ONE)
        request.app.state.look()


def retried(function: Any) -> Any:
    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return call


@retried
def insert(request: Request, session: Session) -> None:
    session.add(Item(order_id=1))
    session.flush()
    request.app.state.look()
    session.rollback()


@router.get("/decorated")
def through_decorator(request: Request, session: Db) -> None:
    insert(request, session)


@router.get("/stream")
def through_stream(request: Request) -> StreamingResponse:
    def rows() -> Iterator[str]:
        with request.app.state.engine.connect() as connection:
            connection.execute(ONE)
            request.app.state.look()
            yield "1"

    return StreamingResponse(rows())


@router.get("/background")
def through_background(request: Request, tasks: BackgroundTasks) -> None:
    tasks.add_task(send_mail, request)


def send_mail(request: Request) -> None:
    with Session(request.app.state.engine) as session:
        session.execute(ONE)
        request.app.state.look()


# -- async


@router.get("/async-session")
async def through_async_session(request: Request, session: AsyncDb) -> None:
    await session.execute(ONE)
    request.app.state.look()


@router.get("/async-connection")
async def through_async_connection(
    request: Request, _connection: Annotated[AsyncConnection, Depends(get_async_connection)]
) -> None:
    request.app.state.look()


@router.get("/user")
async def through_user(request: Request, _user: Annotated[str, Depends(get_user)]) -> None:
    request.app.state.look()


@router.get("/sync-in-async")
async def through_thread_pool(request: Request) -> None:
    await run_in_threadpool(send_mail, request)


def load(session: Session) -> None:
    session.execute(ONE)


@router.get("/run-sync")
async def through_run_sync(request: Request, session: AsyncDb) -> None:
    await session.run_sync(load)
    request.app.state.look()


@router.get("/refresh")
async def through_refresh(request: Request, session: AsyncDb) -> None:
    order = await session.get(Order, 1)
    assert order is not None
    await session.commit()
    await session.refresh(order, ["id"])
    request.app.state.look()


@asynccontextmanager
async def async_unit_of_work(request: Request) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(request.app.state.async_engine) as session, session.begin():
        yield session


@router.get("/async-nested")
async def through_async_manager(request: Request) -> None:
    async with async_unit_of_work(request) as session:
        await session.execute(ONE)
        request.app.state.look()


@router.get("/async-stream")
async def through_async_stream(request: Request) -> StreamingResponse:
    async def rows() -> AsyncIterator[str]:
        async with AsyncSession(request.app.state.async_engine) as session:
            result = await session.stream(ONE)
            request.app.state.look()
            async for row in result:
                yield str(row)

    return StreamingResponse(rows())


@router.get("/async-background")
async def through_async_background(request: Request, tasks: BackgroundTasks) -> None:
    tasks.add_task(send_async_mail, request)


async def send_async_mail(request: Request) -> None:
    async with AsyncSession(request.app.state.async_engine) as session:
        await session.execute(ONE)
        request.app.state.look()


@router.websocket("/socket")
async def through_socket(socket: WebSocket) -> None:
    await socket.accept()
    async with socket.app.state.async_engine.connect():
        socket.app.state.look()
        await socket.send_text("1")
    await socket.close()


# -- a second connection beside that of a dependency


@router.get("/two")
def through_two(request: Request, _connection: Annotated[Connection, Depends(get_connection)]) -> None:
    with request.app.state.engine.connect():
        pass


@router.get("/async-two")
async def through_async_two(
    request: Request, _connection: Annotated[AsyncConnection, Depends(get_async_connection)]
) -> None:
    async with request.app.state.async_engine.connect():
        pass


# -- what FastAPI does after the endpoint


@router.get("/serialized")
def serialized_later(session: Db) -> Shown:
    order = session.get(Order, 1)
    session.commit()  # expires the order, which is loaded again when the response is made
    assert order is not None
    return order  # type: ignore[return-value]


# What the site is for each path: a function, and whether a thread of the pool holds the connection.
SITES = {
    "session": ("through_session", True),
    "connection": ("get_connection", True),
    "repository": ("Repository.find", True),
    "begin": ("through_begin", True),
    "get/1": ("through_get", True),
    "lazy": ("Order.number_of_items", True),
    "nested": ("through_nested_managers", True),
    "decorated": ("insert", True),
    "stream": ("through_stream.<locals>.rows", True),
    "background": ("send_mail", True),
    "async-session": ("through_async_session", False),
    "async-connection": ("get_async_connection", False),
    "user": ("get_user", False),
    "sync-in-async": ("send_mail", True),
    "run-sync": ("load", False),
    "refresh": ("through_refresh", False),
    "async-nested": ("through_async_manager", False),
    "async-stream": ("through_async_stream.<locals>.rows", False),
    "async-background": ("send_async_mail", False),
}


def make() -> FastAPI:
    """Make the application."""
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    return app
