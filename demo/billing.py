# SPDX-License-Identifier: Apache-2.0
"""The billing service: synchronous, WSGI and SQLAlchemy over psycopg, one thread a request.

It has two engines, each instrumented under its own name. The first has no pre-ping, so the first statement on a
connection that the server closed fails. The second replaces connections that are older than a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sqlalchemy_pool_exporter import instrument

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from sqlalchemy import URL, Engine

SELECT = text("SELECT pg_sleep(:seconds)")


def create_app(database_url: URL) -> WSGIApplication:
    """Return the application; its engines use `database_url`, a ``postgresql+psycopg`` URL."""
    engine = create_engine(
        database_url,
        pool_size=4,
        max_overflow=2,
        pool_timeout=0.5,
        connect_args={"application_name": "billing"},
    )
    instrument(engine, name="billing", sites=True)  # as in orders

    reports_engine = create_engine(
        database_url,
        pool_size=2,
        max_overflow=0,
        pool_recycle=1,
        connect_args={"application_name": "reports"},
    )
    instrument(reports_engine, name="reports")

    cache: list[Connection] = []

    def query(engine: Engine, seconds: float) -> None:
        """Run one query that takes `seconds`."""
        with engine.connect() as connection:
            connection.execute(SELECT, {"seconds": seconds})

    def leak() -> None:
        """Keep the connection in a cache and never close it: the bug that the metrics must show."""
        connection = engine.connect()
        cache.append(connection)
        connection.execute(SELECT, {"seconds": 0})
        connection.rollback()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        parameters = parse_qs(environ["QUERY_STRING"])
        status = "200 OK"
        try:
            match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
                case "GET", "/query":
                    query(engine, float(parameters["seconds"][0]))
                case "GET", "/report":
                    query(reports_engine, float(parameters["seconds"][0]))
                case "POST", "/leak":
                    leak()
                case "POST", "/evict":
                    cache.clear()  # drop the last references, so that the garbage collector finds them
                case _:
                    status = "404 Not Found"
        except PoolTimeoutError:
            status = "503 Service Unavailable"
        except SQLAlchemyError:
            status = "500 Internal Server Error"
        body = status.encode() + b"\n"
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return app
