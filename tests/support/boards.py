# SPDX-License-Identifier: Apache-2.0
"""Simulated processes in a directory, and what the board says of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.query import Query
from sqlalchemy_pool_exporter.board.view import board
from sqlalchemy_pool_exporter.segment.directory import Reader
from tests.support.segments import NOW, Process, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy_pool_exporter.board.schema import Board, Condition, Pool
    from tests.support.probed_sessions import Probed

WALL = 2 * NOW


class Directory:
    """A directory, and the clock of what reads it."""

    def __init__(self, path: Path, make: Callable[..., Process]) -> None:
        self.path, self._make = path, make
        self.passed = 0.0
        self.servers: tuple[Probed, ...] = ()
        self._reader = Reader(path)
        self.moments = Moments(
            self._reader.read,
            lambda: self.servers,
            monotonic=lambda: NOW + self.passed,
            wall=lambda: WALL + self.passed,
        )

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Directory]:
        with processes(path) as make:
            yield cls(path, make)

    def process(self, pool: str = "orders", **options: Any) -> Process:
        """Start a process with one pool; by default of two connections and one overflow."""
        return self._make(pool, **options)

    def board(self, after: float = 0.0, **query: Any) -> Board:
        """Return the board so many seconds after the last one."""
        self.passed += after
        return board(self.moments.get(), Query(**query))

    def pool(self, name: str = "orders", after: float = 0.0) -> Pool:
        (found,) = self.board(after, names=frozenset((name,)))["pools"]
        return found

    def condition(self) -> Condition:
        """Return the only condition."""
        (found,) = self.board()["conditions"]
        return found
