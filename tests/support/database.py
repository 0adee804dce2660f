# SPDX-License-Identifier: Apache-2.0
"""A database in memory that knows which of its connections are open."""

from __future__ import annotations

import sqlite3
from itertools import count
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.pool import (
    QueuePool,
)

from tests.support.fakes import FakeConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine


class Link(sqlite3.Connection):
    """A connection to SQLite that says whether it is open."""

    def __init__(self, database: Database, serial: int) -> None:
        super().__init__(":memory:", check_same_thread=False)
        self.database, self.serial = database, serial
        database.open.add(serial)

    def __repr__(self) -> str:
        return f"<Link {self.serial}>"

    def close(self) -> None:
        super().close()
        self.database.open.discard(self.serial)
        if self.database.close_fails is not None:
            raise self.database.close_fails

    def drop(self) -> None:
        """Close the connection as a server that goes away does: ``database.open`` still has it."""
        super().close()

    def __del__(self) -> None:
        super().close()
        self.database.open.discard(self.serial)


class Database:
    """Makes links, and knows which of them are open."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.serials = count(1)
        self.connect_fails: BaseException | None = None
        self.close_fails: BaseException | None = None
        self.during_connect: Callable[[], object] = lambda: None

    def connect(self) -> Link:
        self.during_connect()
        if self.connect_fails is not None:
            raise self.connect_fails
        return Link(self, next(self.serials))

    def engine(self, **options: Any) -> Engine:
        """Return an engine with a pool of one connection and one overflow, unless told otherwise."""
        if options.setdefault("poolclass", QueuePool) is QueuePool:
            options = {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.01} | options
        return create_engine("sqlite://", creator=self.connect, pool_logging_name="diary", **options)


class Socket(FakeConnection):
    """A connection that CPython frees with its last reference, which is not true of a connection to SQLite."""

    def __init__(self, database: Database) -> None:
        self.database, self.serial = database, next(database.serials)
        database.open.add(self.serial)

    def close(self) -> None:
        self.database.open.discard(self.serial)

    __del__ = close
