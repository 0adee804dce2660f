# SPDX-License-Identifier: Apache-2.0
"""The public API as a type checker sees it: ``make types`` checks this file, and no test runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter import (
    Failure,
    Handle,
    Server,
    asgi_labels,
    classify,
    instrument,
    label,
    serve,
    uninstrument,
    wsgi_labels,
)

engine = create_engine("sqlite://")
assert_type(instrument(engine), Handle)
assert_type(instrument(engine.execution_options(isolation_level="AUTOCOMMIT")), Handle)
assert_type(instrument(create_async_engine("sqlite+aiosqlite://")), Handle)
assert_type(instrument(engine.pool), Handle)
assert_type(instrument(engine, name=None, registry=CollectorRegistry()), Handle)
assert_type(instrument(engine, directory=Path("segments"), group_readable=True), Handle)
assert_type(instrument(engine, leak_after=60, leak_stack=True), Handle)
assert_type(instrument(engine, loop_lag=False, request_deadline=30), Handle)
assert_type(instrument(engine, trace_after=0.5), Handle)
assert_type(instrument(engine, sites=True), Handle)
assert_type(instrument(engine, sites=0.8), Handle)

# Wrong targets, and arguments that are keyword-only, must be errors: the checker reports an ignore comment that is not
# needed.
instrument("sqlite://")  # type: ignore[arg-type]
instrument(engine, "orders")  # type: ignore[call-arg]
uninstrument(engine.connect())  # type: ignore[arg-type]
instrument(engine, name=b"orders")  # type: ignore[arg-type]
instrument(engine, sites="on")  # type: ignore[arg-type]

with instrument(engine) as handle:
    assert_type(handle, Handle)
    assert_type(handle.name, str)
    assert_type(handle.closed, bool)
    handle.close()

with serve(port=0) as server:
    assert_type(server, Server)
    assert_type(server.port, int)
    assert_type(server.url, str)

failure = classify(ValueError())
assert_type(failure, Failure)
assert_type(failure.is_retryable, bool)
assert_type(failure.kind, str)
assert_type(failure.sqlstate, str | None)
failure.kind = "deadlock"  # type: ignore[misc]

with label("GET /orders/{id}"), label(lambda: None), label(lambda: "nightly report"):
    pass
label(7)  # type: ignore[arg-type]


async def asgi(_scope: dict[str, Any], _receive: object, _send: object) -> None:
    """Answer nothing."""


def wsgi(_environ: dict[str, Any], _start_response: object) -> list[bytes]:
    """Answer nothing."""
    return []


asgi_labels(asgi_labels(asgi))
wsgi_labels(wsgi_labels(wsgi))
