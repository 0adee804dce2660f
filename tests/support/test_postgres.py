# SPDX-License-Identifier: Apache-2.0
"""The tests' PostgreSQL counts, ends and removes as it should, and a missing program is not ignored in CI."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support.paths import ROOT
from tests.support.pg import running
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.pg import Server

pytestmark = pytest.mark.newest  # the server's wheel is the same with the oldest dependencies
pytest_plugins = ["pytester"]
NAME = "SHOW application_name"


def test_each_name_counts_its_own_connections(server: Server, application_name: str) -> None:
    """`count` counts only the connections with its application name, and falls to 0 when they are closed."""
    engine = create_engine(server.url("postgresql+psycopg", application_name=application_name))
    other = create_engine(server.url("postgresql+psycopg", application_name=f"{application_name}-other"))
    with engine.connect(), engine.connect(), other.connect():
        assert (2, 1) == (server.count(application_name), server.count(f"{application_name}-other"))
    engine.dispose()
    other.dispose()
    assert eventually(lambda: server.count(application_name) == 0)


@pytest.mark.parametrize("name", ["plain", "a b&c=d/é%"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_async_engines_have_the_name(server: Server, driver: str, name: str) -> None:
    """The URL sets the application name with both async drivers, although asyncpg has no argument for it."""

    async def ask() -> object:
        url = server.url(f"postgresql+{driver}", application_name=name)
        engine = create_async_engine(url, poolclass=NullPool)
        async with engine.connect() as connection:
            return (await connection.exec_driver_sql(NAME)).scalar_one()

    # PostgreSQL escapes the bytes that are not ASCII.
    assert name.replace("é", r"\xc3\xa9") == asyncio.run(ask())


def test_dsn_is_for_the_drivers(server: Server, application_name: str) -> None:
    """The DSN works with psycopg and asyncpg themselves, for engines with a creator."""

    async def ask() -> object:
        connection = await asyncpg.connect(server.dsn(application_name))
        try:
            return await connection.fetchval(NAME)
        finally:
            await connection.close()

    with psycopg.connect(server.dsn(application_name)) as connection:
        assert (application_name,) == connection.execute(NAME).fetchone()
    assert application_name == asyncio.run(ask())


def test_terminated_connections_are_gone(server: Server, application_name: str) -> None:
    """When `terminate()` returns, the server has none of the connections left, and the client's fail."""
    with psycopg.connect(server.dsn(application_name)) as connection:
        assert 1 == server.terminate(application_name)
        assert 0 == server.count(application_name)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


# Prints the directory of its server, forks a child that inherits all descriptors, and waits to be killed.
OWNER = """
import os, time
from tests.support import pg
with pg.running() as server:
    assert server.count("") == 0
    print(server.directory, flush=True)
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
    input()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_its_owner(number: signal.Signals) -> None:
    """However a test run ends, its server ends, and the server's directory is removed."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        directory = Path(owner.stdout.readline().strip())
        process = Path("/proc", (directory / "data" / "postmaster.pid").read_text().split()[0])
        assert process.exists()
        owner.send_signal(number)
    assert eventually(lambda: not directory.exists())
    assert eventually(lambda: not process.exists())


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [({}, {"passed": 1, "skipped": 1}), ({"REQUIRE_TOOLS": "1"}, {"passed": 1, "errors": 1})],
)
def test_missing_program(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    outcome: dict[str, int],
) -> None:
    """A test that requires a missing program is skipped, and fails if REQUIRE_TOOLS is set."""
    monkeypatch.delenv("REQUIRE_TOOLS", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.requires("sh")
        def test_present(): pass

        @pytest.mark.requires("sh", "no-such-program")
        def test_missing(): pass
        """
    )
    pytester.runpytest_subprocess("-p", "tests.conftest").assert_outcomes(**outcome)


@pytest.mark.soak
def test_servers_leave_nothing() -> None:
    """Each of ten servers in a row removes its directory."""
    for _ in range(10):
        with running() as server:
            assert 0 == server.count("")
            directory = server.directory
        assert not directory.exists()
