# SPDX-License-Identifier: Apache-2.0
"""Callers that wait for a connection time out when a test says so, and not when a time has passed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc

from tests.support.callers import Clock, sqlalchemy_queue
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

_LONGER_THAN_ANY = 1e6  # seconds: than any timeout of a pool


class Timeouts:
    """Lets callers of a pool with threads time out. A pool's own timeout may strike before a thread looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._clock = Clock()
        monkeypatch.setattr(sqlalchemy_queue, "_time", self._clock.time)

    @staticmethod
    def await_queue(pool: Pool, waiting: int = 1) -> Any:
        """Wait until so many callers wait in the queue of a pool; return the condition that they wait for."""
        queue: Any = pool._pool  # type: ignore[attr-defined]
        assert eventually(lambda: len(queue.not_empty._waiters) == waiting)
        return queue.not_empty

    def strike(self, pool: Pool, waiting: int = 1) -> None:
        """Let all callers time out, once so many wait in the queue."""
        not_empty = self.await_queue(pool, waiting)
        with not_empty:  # a caller that is about to wait holds the lock until it does
            self._clock.passed += _LONGER_THAN_ANY
            not_empty.notify_all()

    def time_out(self, engine: Engine, meanwhile: Callable[[], object]) -> object:
        """Check out of a pool without a free connection, and time out; return what another thread saw meanwhile."""
        done: list[object] = []

        def look() -> None:
            try:
                done.append(meanwhile())
            finally:
                self.strike(engine.pool)

        looks = threading.Thread(target=look)
        looks.start()
        with pytest.raises(exc.TimeoutError):
            engine.connect()
        looks.join()
        return done.pop()
