# SPDX-License-Identifier: Apache-2.0
"""A synchronous application: what its callers do with a connection, and how each goes wrong."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from sqlalchemy_pool_exporter import label

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.support.staged_database import Database

SLEEP = text("SELECT pg_sleep(:seconds)")
TAKE = text("UPDATE stock SET pieces = pieces - 1 WHERE article = 'bolt'")
_never = threading.Event()


def create_tables(database: Database) -> None:
    """Make the table of the shop."""
    database.ask("CREATE TABLE stock (article text PRIMARY KEY, pieces int)")
    database.ask("INSERT INTO stock VALUES ('bolt', 1000000)")


def order(engine: Engine, seconds: float) -> None:
    """Do a query and return the connection, as every function should."""
    with engine.connect() as connection:
        connection.execute(SLEEP, {"seconds": seconds})


def report(engine: Engine, seconds: float) -> None:
    """Do a slow query."""
    with label("GET /report"), engine.connect() as connection:
        connection.execute(SLEEP, {"seconds": seconds})


def transfer(engine: Engine, seconds: float) -> None:
    """Check a second connection out while the first one is held."""
    with engine.connect() as connection:
        connection.execute(SLEEP, {"seconds": seconds})
        with engine.connect() as journal:
            journal.execute(SLEEP, {"seconds": seconds})


def pay(engine: Engine, _seconds: float) -> None:
    """Change a row."""
    with label("POST /pay"), engine.begin() as connection:
        connection.execute(TAKE)


def restock(engine: Engine, seconds: float) -> None:
    """Change a row, and do something else before the commit."""
    with engine.begin() as connection:
        connection.execute(TAKE)
        time.sleep(seconds)


def hang(engine: Engine, _seconds: float) -> None:
    """Wait for something that never happens while the connection is held."""
    with engine.connect() as connection:
        connection.execute(SLEEP, {"seconds": 0})
        _never.wait()
