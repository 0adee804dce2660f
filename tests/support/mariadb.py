# SPDX-License-Identifier: Apache-2.0
"""A MariaDB of Debian's mariadb-server that a test may stop and start again, with options of its own.

It runs from a temporary directory as an ordinary user, on a free port of the loopback interface and a Unix socket. A
test that needs one has the marker ``requires(*PROGRAMS)``.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pymysql

from tests.support import wait
from tests.support.postgres_keeper import _account, _free_port
from tests.support.probed_server import HANG, SECRET, make_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("mariadbd", "mariadb-install-db")
# Account → what it may do. The watcher has what the documentation says; the stranger sees only its own sessions.
GRANTS = {
    "app": ["GRANT ALL ON shop.* TO app@'%'"],
    "watcher": [
        "GRANT PROCESS ON *.* TO watcher@'%'",
        "GRANT SELECT ON performance_schema.session_connect_attrs TO watcher@'%'",
    ],
    "stranger": [],
}


# What tests change while it runs.
DEFAULTS = {
    "interactive_timeout": 28800,
    "max_connections": 20,
    "read_only": 0,
    "tx_read_only": 0,
    "idle_transaction_timeout": 0,
    "wait_timeout": 28800,
}


class MariaDB:
    """A server; ``options`` are those of ``mariadbd``, without dashes."""

    def __init__(self) -> None:
        self.directory = make_directory()
        self.port = _free_port()
        self.socket = self.directory / "socket"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._data = self.directory / "data"
        installed = self._spawn(
            "mariadb-install-db",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=4M",
        )
        assert installed.wait(HANG) == 0, self.log.read_text()

    def _spawn(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        path = shutil.which(program)
        assert path is not None
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [path, "--no-defaults", f"--datadir={self._data}", f"--tmpdir={self.directory}", *options],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **_account(),
            )

    def start(self, **options: object) -> None:
        """Start it, unless it runs; an option without a value is given as True."""
        if self.process is not None:
            return
        given = {"max_connections": 20, "performance_schema": "ON", **options}
        self.process = self._spawn(
            "mariadbd",
            f"--socket={self.socket}",
            f"--port={self.port}",
            f"--pid-file={self.directory / 'pid'}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=16M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-log-file-size=4M",
            *(
                f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
                for name, value in given.items()
            ),
        )
        assert wait.eventually(self._answers, seconds=HANG), self.log.read_text()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
            one.connect(str(self.socket))
            return bool(one.recv(1))  # its greeting
        return False

    def create_accounts(self) -> None:
        """Create a table and the accounts of `GRANTS`; root is left without a password, for the socket alone."""
        with self.admin() as admin:
            admin.execute("CREATE DATABASE shop")
            admin.execute("CREATE TABLE shop.item (id INT PRIMARY KEY, amount INT) ENGINE=InnoDB")
            admin.execute("INSERT INTO shop.item VALUES (1, 1), (2, 2)")
            for account, grants in GRANTS.items():
                admin.execute(f"CREATE USER {account}@'%' IDENTIFIED BY '{SECRET}'")
                for grant in grants:
                    admin.execute(grant)

    @contextlib.contextmanager
    def admin(self) -> Iterator[Any]:
        """Yield a cursor of root."""
        connection = pymysql.connect(unix_socket=str(self.socket), user="root", autocommit=True)
        try:
            yield connection.cursor()
        finally:
            connection.close()

    def set(self, **variables: object) -> None:
        """Set variables for new sessions, as a restart with such options would."""
        with self.admin() as admin:
            for name, value in variables.items():
                admin.execute(f"SET GLOBAL {name} = {value}")

    def end_sessions(self) -> None:
        """End the sessions of all accounts but root's, and wait until they are gone."""
        with self.admin() as admin:
            for account in GRANTS:
                admin.execute(f"KILL USER {account}")
            mine = "SELECT COUNT(*) FROM information_schema.processlist WHERE user IN ('app', 'watcher', 'stranger')"

            def gone() -> bool:
                admin.execute(mine)
                return bool(admin.fetchone()[0] == 0)

            assert wait.eventually(gone, seconds=HANG)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(HANG)
            self.process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def dsn(
        self, account: str = "watcher", password: str = SECRET, scheme: str = "mysql", query: str = ""
    ) -> str:
        return f"{scheme}://{account}:{password}@127.0.0.1:{self.port}/{query and '?' + query}"

    def url(self, driver: str, account: str = "app") -> str:
        """Return what `create_engine()` takes."""
        return f"mysql+{driver}://{account}:{SECRET}@127.0.0.1:{self.port}/shop"

    def connect(self, account: str = "app", **options: Any) -> Any:
        """Connect as an application does."""
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=account, password=SECRET, **{"database": "shop"} | options
        )

    def count(self, account: str) -> int:
        """Return how many sessions an account has."""
        with self.admin() as admin:
            admin.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s", [account])
            return int(admin.fetchone()[0])


@contextlib.contextmanager
def running(**options: object) -> Iterator[MariaDB]:
    """Run a new server with the accounts for the duration of the block."""
    server = MariaDB()
    try:
        server.start(**options)
        server.create_accounts()
        yield server
    finally:
        server.close()
