# SPDX-License-Identifier: Apache-2.0
"""The tests' fakes, where a pool needs a connection and nobody cares which."""

from __future__ import annotations

from typing import Any


class FakeConnection:
    """A DBAPI connection that does nothing; each call gets a new one."""

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
    """Return a new one, as a pool's creator does."""
    return FakeConnection()
