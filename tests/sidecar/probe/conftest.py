# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL for the tests of the probe, pgbouncer in front of it, and certificates."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.asyncpg_parser import unset_variables
from tests.support.probed_server import (
    SECRET,
    Bouncer,
    ProbedServer,
    create_roles,
    end_other_sessions,
    make_directory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="package")
def cluster() -> Iterator[ProbedServer]:
    """Run a server for these tests alone, because they stop, freeze and fill it."""
    server = ProbedServer()
    try:
        server.start()
        asyncio.run(create_roles(server))
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.directory)


@pytest.fixture
def server(cluster: ProbedServer) -> ProbedServer:
    """Return the server, running and without sessions."""
    cluster.start()
    asyncio.run(end_other_sessions(cluster))
    return cluster


@pytest.fixture
def bouncer(server: ProbedServer) -> Iterator[Callable[..., Bouncer]]:
    """Return a function that starts a pgbouncer in front of the server."""
    made = []

    def make(**options: object) -> Bouncer:
        made.append(Bouncer(server, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="package")
def certificates() -> Iterator[Path]:
    """Make a certificate authority, and a certificate for localhost that it signed."""
    directory = make_directory()
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -nodes -addext"
    ca = f"{new} basicConstraints=critical,CA:TRUE -subj /CN=authority -keyout ca.key -out ca.crt"
    leaf = f"{new} subjectAltName=DNS:localhost -subj /CN=localhost -CA ca.crt -CAkey ca.key -keyout key -out crt"
    for command in (ca, leaf, f"rsa -aes128 -passout pass:{SECRET} -in rsa.key -out locked.key"):
        if command.startswith("rsa"):
            _openssl(directory, "genrsa -out rsa.key 2048")
        _openssl(directory, command)
    yield directory
    shutil.rmtree(directory)


def _openssl(directory: Path, command: str) -> None:
    subprocess.run(
        [shutil.which("openssl") or "openssl", *command.split()],
        check=True,
        cwd=directory,
        capture_output=True,
    )


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the variables that asyncpg reads."""
    unset_variables(monkeypatch)
