# SPDX-License-Identifier: Apache-2.0
"""An application whose pools have every kind of incident, so that every query of the dashboards finds data.

``python -m tests.support.board_worker URL POOLS [--calm] [--serve]`` instruments pools and repeats the scenes until
standard input ends. It prints the port of its own endpoint, or 0 without ``--serve``. ``POOLS`` are three names with
commas between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from sqlalchemy_pool_exporter import instrument, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

ROUND = 60.0  # seconds until the scenes repeat
TIMEOUT = 1.5  # pool_timeout
LEAK_AFTER = 8.0


@dataclass(frozen=True, slots=True)
class Scene:
    """The time of a scene, in seconds from the start of a round."""

    start: float
    end: float

    def is_on(self, at: float) -> bool:
        return self.start <= at % ROUND < self.end


BUSY = Scene(8, 26)  # more callers than connections; during SLOW some wait for pool_timeout
SLOW = Scene(14, 22)
CHURN = Scene(28, 36)  # bursts beyond pool_size
LEAK = Scene(36, 44)
CUT = Scene(44, 50)  # the server ends connections
REFUSED = Scene(50, 57)  # connecting fails
TRANSACTION = Scene(10, 20)  # a transaction stays open and idle


class Application:
    """One process with its pools.

    Args:
        url: of the database, with ``%s`` for the application's name.
        names: of the pools: with a pre-ping, without one, and without limits; asyncpg's pool adds a suffix to the last.
        is_busy: whether to run the scenes BUSY and CHURN.
    """

    def __init__(self, url: str, names: tuple[str, str, str], *, is_busy: bool) -> None:
        self._began = time.monotonic()
        self._is_busy = is_busy
        guarded, bare, unlimited = names
        self.guarded = self._engine(
            url,
            guarded,
            pool_size=4,
            max_overflow=2,
            pool_timeout=TIMEOUT,
            pool_pre_ping=True,
            pool_recycle=10,
        )
        self.bare = self._engine(url, bare, pool_size=3, max_overflow=3, pool_timeout=5)
        self.unlimited = self._engine(url, unlimited, poolclass=NullPool)
        event.listen(self.unlimited, "do_connect", self._refuse)
        event.listen(self.bare, "checkout", self._fault)
        self._faults = itertools.count()
        self.asynchronous = create_async_engine(
            url.replace("+psycopg", "+asyncpg").replace("application_name=%s", ""),
            pool_size=1,
            max_overflow=0,
        )
        instrument(self.asynchronous, name=f"{unlimited}-async", sites=True)

    def _engine(self, url: str, name: str, **options: Any) -> Engine:
        engine = create_engine(url % name, **options)
        # All sites, so that the pictures name those that hold few connections, too.
        instrument(engine, name=name, leak_after=LEAK_AFTER, sites=True)
        return engine

    def _refuse(self, *_: object) -> None:
        if REFUSED.is_on(self.now):
            raise exc.OperationalError("connect", None, ConnectionRefusedError("not now"))

    def _fault(self, *_: object) -> None:
        if next(self._faults) % 200 == 199:
            raise RuntimeError("a listener of the application's own")

    @property
    def now(self) -> float:
        """Seconds since the application was made."""
        return time.monotonic() - self._began

    def play(self) -> None:
        """Start the threads that use the pools."""
        for engine in (self.guarded, self.bare):
            for _ in range(2):
                self._start(self._visit, engine)
        self._start(self._visit, self.unlimited, 0.2)
        if self._is_busy:
            for _ in range(12):
                self._start(self._crowd)
            for _ in range(5):
                self._start(self._burst)
        self._start(self._keeper)
        self._start(self._nester)
        self._start(self._thinker)
        self._start(self._careless)
        self._start(self._cut)
        self._start(lambda: asyncio.run(self._impatient(self.asynchronous)))

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _visit(self, engine: Engine, pause: float = 0.05) -> None:
        while True:
            with _failing():
                self._query(engine, random.uniform(0.002, 0.02))  # noqa: S311
            time.sleep(pause)

    def _crowd(self) -> None:
        while True:
            if BUSY.is_on(self.now):
                with _failing():
                    self._query(self.guarded, 1.2 if SLOW.is_on(self.now) else 0.15)
            time.sleep(0.05)

    def _burst(self) -> None:
        while True:
            if CHURN.is_on(self.now):
                with _failing():
                    self._query(self.bare, 0.05)
            time.sleep(0.1)

    def _keeper(self) -> None:
        """Hold a connection nearly all the time, so that there is a holder whenever one is looked for."""
        while True:
            with _failing(), self.bare.connect() as connection:
                connection.execute(text("SELECT 1"))
                connection.rollback()
                time.sleep(2 * LEAK_AFTER)

    def _nester(self) -> None:
        while True:
            with _failing(), self.bare.connect() as connection, self.bare.connect():
                connection.execute(text("SELECT 1"))
            time.sleep(2)

    def _thinker(self) -> None:
        while True:
            if TRANSACTION.is_on(self.now):
                with _failing(), self.bare.connect() as connection:
                    connection.execute(text("SELECT 1"))
                    time.sleep(3)  # the transaction stays open
            time.sleep(0.2)

    def _careless(self) -> None:
        while True:
            if LEAK.is_on(self.now):
                with _failing():
                    _forget(self.guarded)
                    connection = self.bare.connect()
                    connection.detach()
                    connection.close()
                    raw = self.bare.raw_connection()
                    raw.invalidate(soft=True)
                    raw.close()
            time.sleep(0.5)

    def _cut(self) -> None:
        while True:
            if CUT.is_on(self.now):
                with _failing(), self.unlimited.connect() as connection:
                    connection.execute(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                            " WHERE pid <> pg_backend_pid() AND application_name = ANY(:names)"
                        ),
                        {
                            "names": [
                                self.guarded.url.query["application_name"],
                                self.bare.url.query["application_name"],
                            ]
                        },
                    )
            time.sleep(1.5)

    async def _impatient(self, engine: AsyncEngine) -> None:
        while True:
            with _failing():
                async with asyncio.timeout(0.1), engine.connect():
                    waiting = asyncio.create_task(_checked_out(engine))
                    await asyncio.sleep(0.02)
                    waiting.cancel()
            await asyncio.sleep(1)

    @staticmethod
    def _query(engine: Engine, seconds: float) -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})


def _forget(engine: Engine) -> None:
    connection = engine.raw_connection()
    connection.cursor().execute("SELECT 1")  # never closed


async def _checked_out(engine: AsyncEngine) -> None:
    async with engine.connect():
        pass


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Suppress the errors of the pools, which the scenes cause on purpose."""
    with contextlib.suppress(exc.SQLAlchemyError, RuntimeError, TimeoutError, OSError):
        yield


def main(url: str, pools: str, *options: str) -> None:
    """Run the scenes until standard input ends."""
    warnings.simplefilter("ignore", exc.SAWarning)  # about the intended leaks
    guarded, bare, unlimited = pools.split(",")
    application = Application(url, (guarded, bare, unlimited), is_busy="--calm" not in options)
    port = serve(host="127.0.0.1", port=0).port if "--serve" in options else 0
    application.play()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
