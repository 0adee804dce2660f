# SPDX-License-Identifier: Apache-2.0
"""An engine without a database: its connections do nothing, so only the pool and its watcher take time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine, QueuePool, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.engine.default import DefaultDialect


class Connection:
    """A DBAPI connection that does nothing."""

    def rollback(self) -> None: ...

    def close(self) -> None: ...


class BenchmarkDialect(DefaultDialect):
    """A dialect without a driver, whose pre-ping succeeds at once."""

    name = driver = "benchmark"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        """Return a stand-in for the driver's module."""
        return SimpleNamespace(Error=Exception, paramstyle="named")

    def initialize(self, connection: object) -> None: ...

    def do_ping(self, dbapi_connection: object) -> bool:  # noqa: ARG002
        """Report the connection as alive."""
        return True


registry.register("benchmark", __name__, "BenchmarkDialect")


def engine(**options: Any) -> Engine:
    """Return an engine with a QueuePool; *options* are ``create_engine()``'s."""
    return create_engine("benchmark://", creator=Connection, poolclass=QueuePool, **options)
