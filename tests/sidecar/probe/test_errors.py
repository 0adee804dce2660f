# SPDX-License-Identifier: Apache-2.0
"""Each error has a reason and a text, and no text shows credentials."""

from __future__ import annotations

import logging
import socket
import ssl
from typing import TYPE_CHECKING

import asyncpg
import pytest

from sqlalchemy_pool_exporter.sidecar.probe.errors import classify_error
from tests.support.probed_server import SECRET, ProbedServer
from tests.support.running_probe import database_of_file, exposition_text, running, scenario

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy_pool_exporter.metrics import ProbeFailure


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "timeout"),
        (socket.gaierror(-2, SECRET), "connect"),
        (OSError(f"Multiple exceptions: {SECRET}"), "connect"),
        (ConnectionResetError(104, SECRET), "connect"),
        (ConnectionError(SECRET), "tls"),
        (ssl.SSLError(1, SECRET), "tls"),
        (ValueError(SECRET), "configuration"),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), "other"),
        (asyncpg.ClientConfigurationError(SECRET), "configuration"),
        (asyncpg.InterfaceError(SECRET), "disconnected"),
        (asyncpg.CannotConnectNowError(SECRET), "unavailable"),
        (asyncpg.AdminShutdownError(SECRET), "disconnected"),
        (asyncpg.QueryCanceledError(SECRET), "timeout"),
        (asyncpg.TooManyConnectionsError(SECRET), "too_many_connections"),
        (asyncpg.InvalidAuthorizationSpecificationError(SECRET), "authentication"),
        (asyncpg.InsufficientPrivilegeError(SECRET), "configuration"),
        (asyncpg.ProtocolViolationError(SECRET), "other"),
        (asyncpg.ProtocolViolationError(f"server login has been failing {SECRET}"), "unavailable"),
        (asyncpg.DiskFullError(SECRET), "other"),
        (KeyError(SECRET), "other"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_are_classified_without_quoting_them(error: Exception, expected: ProbeFailure) -> None:
    """Each error has a reason and a text; the text contains no part of the error's own message."""
    reason, text = classify_error(error)
    assert reason == expected
    assert SECRET not in text
    assert type(error).__name__ in text


@scenario
async def test_a_missing_database_and_a_rejected_parameter(server: ProbedServer, tmp_path: Path) -> None:
    """A failure that only a changed configuration can fix has the reason configuration."""
    for dsn in (
        server.dsn(database="nowhere"),
        f"{server.dsn()}?connect_timeout=3",
        f"{server.dsn()}?sslmode=odd",
    ):
        async with running(database_of_file(tmp_path / "dsn", dsn)) as runner:
            assert {"configuration": 1} == runner.probe.status.failures


@scenario
async def test_credentials_are_nowhere(
    server: ProbedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No log record of any level, repr, status or exposition contains the password."""
    caplog.set_level(logging.DEBUG)
    shown = []
    for dsn in (
        server.dsn("watcher"),
        server.dsn("nobody"),
        server.dsn(SECRET, "wrong"),
        server.dsn(database=SECRET),
        f"postgresql://watcher:x@{SECRET}.invalid/postgres",
        f"{server.dsn()}&?{SECRET}=1",
        f"{server.dsn()}?port={SECRET}",
        f"{server.dsn()}?sslmode={SECRET}",
        f"{server.dsn()}?sslmode=verify-ca&sslrootcert={SECRET}",
        f"{server.dsn()}?{SECRET}=1",
    ):
        one = database_of_file(tmp_path / "dsn", dsn)
        async with running(one) as runner:
            shown += [repr(one), str(one), repr(runner.probe), repr(runner.probe.status)]
            shown.append(exposition_text(runner.probe.status))
    shown += [record.getMessage() + (record.exc_text or "") for record in caplog.records]
    assert len(shown) > 50
    assert [text for text in shown if SECRET.lower() in text.lower()] == []
