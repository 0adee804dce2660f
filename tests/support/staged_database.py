# SPDX-License-Identifier: Apache-2.0
"""The PostgreSQL of one incident: with settings of its own, and its administrator's session from the start."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, LiteralString, Self

import psycopg

from tests.support.postgres_keeper import PORT_ATTEMPTS, _account, _free_port, _programs
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Thirty servers are made at the same time.
MAKING_SECONDS = 4 * SECONDS


class Database:
    """A PostgreSQL server that can be restarted.

    Mutable state: the process, its port, and the administrator's session, which is open before the server is full.
    """

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self._directory = directory
        self._account = _account()
        if self._account:
            os.chown(directory, self._account["user"], self._account["group"])
        self._bin = _programs(directory, self._account)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            "autovacuum": "off",
            "fsync": "off",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._session: psycopg.Connection | None = None
        initdb = self._spawn(
            "initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-locale", "--no-sync"
        )
        try:
            assert initdb.wait(MAKING_SECONDS) == 0, self._log.read_text()
        finally:
            initdb.kill()
        for _ in range(PORT_ATTEMPTS):
            self.port = _free_port()
            if self._starts():
                break
        else:
            raise AssertionError(self._log.read_text())
        self.ask("SELECT 1")

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._bin / program, "-D", self._directory / "data", *arguments],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                **self._account,
            )

    def url(self, driver: str, role: str = "postgres") -> str:
        """Return SQLAlchemy's URL for a driver, or without one the DSN for asyncpg."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{role}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        assert self._starts(), self._log.read_text()

    def fail_over(self) -> None:
        """Put a replica in the place of the server: the same data, and no writes."""
        self.stop()
        signal_file = self._directory / "data" / "standby.signal"
        signal_file.touch()
        if self._account:
            os.chown(signal_file, self._account["user"], self._account["group"])
        self.start()

    def _starts(self) -> bool:
        """Start the server; return whether it is ready, which it is not if its port is taken."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        process = self._process = self._spawn("postgres", "-p", str(self.port), *options)
        state = self._directory / "data" / "postmaster.pid"

        def is_ready() -> bool:
            said = state.read_text() if state.exists() else ""
            return "ready" in said or "standby" in said

        eventually(lambda: is_ready() or process.poll() is not None, seconds=MAKING_SECONDS)
        return process.poll() is None and is_ready()

    def ask(self, query: LiteralString) -> list[tuple[Any, ...]]:
        """Return the rows of a query in the administrator's session, which is opened anew after a restart."""
        answers: list[list[tuple[Any, ...]]] = []
        failures: list[psycopg.OperationalError] = []

        def answered() -> bool:
            try:
                # The application name keeps it apart from the sessions of applications.
                self._session = self._session or psycopg.connect(
                    self.url(""),
                    autocommit=True,
                    application_name="the administrator",
                    options="-c idle_session_timeout=0",
                )
                cursor = self._session.execute(query)
                answers.append(cursor.fetchall() if cursor.description else [])
            except psycopg.OperationalError as error:
                failures.append(error)
                self._leave()
            return bool(answers)

        with self._lock:
            if not eventually(answered, poll_seconds=0.1):
                raise failures[-1]
        return answers[0]

    def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(psycopg.Error):
                session.close()

    def stop(self) -> None:
        """End all sessions and the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leave()
        self.stop()
