# SPDX-License-Identifier: Apache-2.0
"""Fakes for tests that need a DBAPI connection but no database."""

from __future__ import annotations

from typing import Any


class FakeConnection:
    """A DBAPI connection that does nothing; a test that needs more overrides a method.

    CPython frees it as soon as the last reference is gone, which is not true of a connection to SQLite.
    """

    def cursor(self) -> FakeConnection:
        return self

    def execute(self, _statement: str) -> None:
        """Execute nothing."""

    def rollback(self) -> None:
        """Roll back nothing."""

    def commit(self) -> None:
        """Commit nothing."""

    def close(self) -> None:
        """Close nothing."""


def connect() -> Any:
    """Return a new connection, as the creator of a pool does."""
    return FakeConnection()
