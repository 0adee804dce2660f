# SPDX-License-Identifier: Apache-2.0
"""An application whose pools a probe joins with the sessions of their server."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.held_connections import HeldConnection, held_connections
from sqlalchemy_pool_exporter.segment.directory import Fleet, Reader

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Connection, Engine

    from sqlalchemy_pool_exporter.sidecar.probe.probe import ProbeStatus


class Application:
    """Pools of this process, with a segment in a directory, and threads that wait for the server."""

    def __init__(self, directory: Path) -> None:
        self.directory, self._reader = directory, Reader(directory)
        self._threads: list[threading.Thread] = []
        self._closing = ExitStack()

    def pool(self, url: str, name: str = "orders", **options: Any) -> Engine:
        """Make an instrumented engine, of a URL or a DSN of PostgreSQL."""
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), **options)
        self._closing.callback(engine.dispose)
        self._closing.callback(
            instrument(
                engine, name=name, directory=self.directory, registry=CollectorRegistry(), sites=True
            ).close
        )
        return engine

    def checkout(self, engine: Engine) -> Connection:
        """Check a connection out, and close it at the end of the test."""
        connection = engine.connect()
        self._closing.callback(self._close, connection)
        return connection

    def _close(self, connection: Connection) -> None:
        connection.invalidate()  # the server has ended its session
        connection.close()

    def execute(self, connection: Connection, statement: str) -> None:
        """Execute in a thread what takes long; the end of the session ends it."""

        def run() -> None:
            with suppress(DBAPIError):
                connection.exec_driver_sql(statement)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    @property
    def fleet(self) -> Fleet:
        """What the segments say now."""
        return self._reader.read()

    def held(self, *statuses: ProbeStatus, now: float | None = None) -> list[HeldConnection]:
        """Return the records, in the order of the checkouts."""
        now = time.monotonic() if now is None else now
        return held_connections(self.fleet, now=now, servers=[status.server_side(now) for status in statuses])

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        self._closing.close()
