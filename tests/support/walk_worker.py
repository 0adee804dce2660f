# SPDX-License-Identifier: Apache-2.0
"""A worker process that does what the walk over processes asks: see walk_machine.

It reads one JSON list a line, ``[command, argument, …]``, from a Unix socket and answers each with one JSON value.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, exc
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.segment import fork

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc


class TimeLimit(Exception):  # noqa: N818 - named like those of task queues
    """A time limit that another thread raises in the middle of anything."""


class Worker:
    """Engines by number, and the connections that are checked out of each."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.engines: dict[int, Engine] = {}
        self.held: dict[int, list[Connection]] = {}
        self.inherited: list[object] = []  # what belongs to the parent: never collected here

    def serve(self) -> None:
        """Answer commands until the socket is closed."""
        while True:
            with socket.socket(socket.AF_UNIX) as server:
                server.connect(self.address)
                stream = server.makefile("rw")
                stream.write(json.dumps(os.getpid()) + "\n")
                stream.flush()
                if self._answer(stream):
                    return

    def _answer(self, stream: Any) -> bool:
        """Answer commands; return False in a child that was forked by one of them."""
        for line in stream:
            command, *arguments = json.loads(line)
            answer = getattr(self, command)(*arguments)
            if answer == "child":
                return False
            stream.write(json.dumps(answer) + "\n")
            stream.flush()
        return True

    # -- commands

    def make(self, key: int, name: str, size: int, overflow: int) -> None:
        """Make an engine and instrument it."""
        engine = create_engine(
            "sqlite://",
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=overflow,
            pool_timeout=0.001,
            connect_args={"check_same_thread": False},
        )
        self.engines[key], self.held[key] = engine, []
        instrument(engine, name=name)

    def check_out(self, key: int) -> bool:
        """Check a connection out; return False after a timeout."""
        try:
            self.held[key].append(self.engines[key].connect())
        except exc.TimeoutError:
            return False
        return True

    def give_back(self, key: int) -> None:
        """Return a connection."""
        self.held[key].pop().close()

    def leak(self, key: int) -> None:
        """Leave a connection to the garbage collector."""
        self.held[key].pop()
        gc.collect()

    def invalidate(self, key: int) -> None:
        """Invalidate a connection, which closes it, and return its record."""
        connection = self.held[key].pop()
        connection.invalidate()
        connection.close()

    def dispose(self, key: int) -> None:
        """Dispose of an engine, which goes on with a new pool."""
        self.engines[key].dispose()

    def drop(self, key: int) -> None:
        """Forget an engine without ``dispose()``."""
        del self.engines[key], self.held[key]
        gc.collect()

    def fork(self, in_c: bool) -> int | str:
        """Fork; return the child's process id, or "child" in the child. In C no hook of Python runs."""
        pid: int = ctypes.PyDLL(None).fork() if in_c else os.fork()
        if pid:
            return pid
        self.inherited += self.held.values()
        self.held = {key: [] for key in self.engines}
        for engine in self.engines.values():
            # As SQLAlchemy's documentation says. A pool without connections goes on, as under a server that preloads.
            if engine.pool.checkedin() + engine.pool.checkedout() > 0:  # type: ignore[attr-defined]
                self.inherited.append(engine.pool)
                engine.dispose(close=False)
        return "child"

    def notice(self) -> None:
        """Notice that this process was forked in C, as a server's hook does."""
        fork.notice()

    def interrupt(self, key: int) -> tuple[int, int]:
        """Check out and return while another thread raises time limits; return how many cycles began and ended."""
        cycles = _Cycles(self.engines[key])
        cycles.run()
        gc.collect()
        return cycles.began, cycles.ended


class _Cycles:
    """Checkouts and returns of one thread, in which another thread raises a time limit again and again."""

    LIMITS = 20

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.began = self.ended = self.raised = 0
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._is_inside = self._is_over = False

    def run(self) -> None:
        other = threading.Thread(target=self._raise_limits, daemon=True)
        other.start()
        has_connections = True
        while has_connections and self.raised < self.LIMITS:
            self.began += 1
            try:
                has_connections = self._cycle()
                self.ended += has_connections
            except TimeLimit:
                self._is_inside = False
                self.raised += 1
        self._is_over = True
        other.join()

    def _cycle(self) -> bool:
        """Check out and return; return False if time limits made SQLAlchemy itself lose all connections."""
        self._is_inside = True
        try:
            self.engine.connect().close()
            has_connections = True
        except exc.TimeoutError:
            has_connections = False
        self._leave()
        self._let_a_pending_limit_be_raised()
        return has_connections

    def _leave(self) -> None:
        self._is_inside = False

    def _let_a_pending_limit_be_raised(self) -> None:
        """Do nothing: Python raises the exception of another thread at the next call."""

    def _raise_limits(self) -> None:
        limit = ctypes.py_object(TimeLimit)
        while not self._is_over:
            time.sleep(0.001)
            # One for each cycle, so that none is raised where the last one is caught. Code that must not raise, such as
            # a finalizer, drops the limit; that cycle ends as usual.
            before = self.raised + self.ended
            # Nothing is called in between: there the other thread could go on, and get the limit outside of its cycle.
            if self._is_inside:
                _raise_in_thread(self._thread, limit)
                while self.raised + self.ended == before and not self._is_over:
                    time.sleep(0.0002)


if __name__ == "__main__":
    Worker(sys.argv[1]).serve()
