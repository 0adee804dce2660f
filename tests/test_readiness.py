# SPDX-License-Identifier: Apache-2.0
"""``/-/ready`` of every endpoint and ``handle.healthy()`` mean that a pool is not stuck, from numbers alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import httpx
import pytest
from aiohttp import web
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import aiohttp_handler, asgi_app, instrument, serve, wsgi_app
from sqlalchemy_pool_exporter.board.moment import Moments
from sqlalchemy_pool_exporter.board.query import QueryError
from sqlalchemy_pool_exporter.board.readiness import question, readiness
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.sidecar.web import app as sidecar
from tests.support.segments import NOW, processes
from tests.support.wait import eventually
from tests.support.wire import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

    from sqlalchemy_pool_exporter import Handle
    from tests.support.segments import Process

SOON = 0.3  # seconds without a return after which a pool of these tests is stuck
OPTIONS: dict[str, Any] = {"connect_args": {"check_same_thread": False}}


@contextmanager
def engine_of(size: int = 1, poolclass: type[Pool] = QueuePool) -> Iterator[Engine]:
    sizes = {} if poolclass is NullPool else {"pool_size": size, "max_overflow": 0, "pool_timeout": 60}
    engine = create_engine("sqlite://", poolclass=poolclass, **sizes, **OPTIONS)
    try:
        yield engine
    finally:
        engine.dispose()
        gc.collect()


@contextmanager
def waiting(engine: Engine, handle: Handle) -> Iterator[None]:
    """Hold the only connection, and let a caller wait for it."""
    held = engine.connect()
    caller = threading.Thread(target=lambda: engine.connect().close())
    caller.start()
    try:
        assert eventually(lambda: handle._recorders[0].snapshot().state(now=0, wall=0)["pending_checkouts"])
        yield
    finally:
        held.close()
        caller.join()


# -- what is asked of each endpoint


def over_http(port: int, target: str, method: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, target)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def by_serve(registry: CollectorRegistry, query: str, method: str) -> tuple[int, str]:
    with serve(0, "127.0.0.1", registry=registry) as server:
        return over_http(server.port, f"/-/ready?{query}", method)


def by_wsgi(registry: CollectorRegistry, query: str, method: str) -> tuple[int, str]:
    environ: dict[str, Any] = {"QUERY_STRING": query, "REQUEST_METHOD": method, "PATH_INFO": "/-/ready"}
    setup_testing_defaults(environ)
    started: list[Any] = []
    body = b"".join(wsgi_app(registry)(environ, lambda *given: started.extend(given)))
    return int(started[0].split()[0]), body.decode()


async def _fetched(application: Any, target: str, method: str) -> tuple[int, str]:
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        reply = await client.request(method, target)
    return reply.status_code, reply.text


def by_asgi(registry: CollectorRegistry, query: str, method: str) -> tuple[int, str]:
    return asyncio.run(_fetched(asgi_app(registry), f"/-/ready?{query}", method))


def by_mount(registry: CollectorRegistry, query: str, method: str) -> tuple[int, str]:
    application = FastAPI()
    application.mount("/metrics", asgi_app(registry))
    return asyncio.run(_fetched(application, f"/metrics/-/ready?{query}", method))


def by_aiohttp(registry: CollectorRegistry, query: str, method: str) -> tuple[int, str]:
    async def scenario() -> tuple[int, str]:
        application = web.Application()
        application.router.add_route("*", "/-/ready", aiohttp_handler(registry))
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            port = runner.addresses[0][1]
            return await asyncio.to_thread(over_http, port, f"/-/ready?{query}", method)
        finally:
            await runner.cleanup()

    return asyncio.run(scenario())


MOUNTS = {
    "serve": by_serve,
    "wsgi_app": by_wsgi,
    "asgi_app": by_asgi,
    "asgi_app mounted": by_mount,
    "aiohttp_handler": by_aiohttp,
}


@pytest.mark.parametrize("name", MOUNTS)
def test_every_mount(name: str) -> None:
    """200 for a pool that is busy, 503 with the reason for one that is stuck, 404 for one that is not known."""
    registry = CollectorRegistry()
    ask = MOUNTS[name]
    with engine_of() as engine, engine_of() as other:
        handle = instrument(engine, name="orders", registry=registry)
        instrument(other, name="billing", registry=registry)
        assert (200, "ready\n") == ask(registry, "pool=orders", "GET")
        with waiting(engine, handle):
            assert (200, "ready\n") == ask(registry, "pool=orders", "GET")  # for 30 s it may be busy
            time.sleep(SOON)
            status, text = ask(registry, f"pool=orders&stuck_after={SOON}", "GET")
            assert status == 503
            assert text.startswith("stuck: pool 'orders' in worker ")
            assert " has all 1 connection out and returned none for " in text
            assert "1 caller waiting" in text
            assert (503, "") == ask(registry, f"pool=orders&stuck_after={SOON}", "HEAD")
            assert (200, "ready\n") == ask(registry, f"pool=billing&stuck_after={SOON}", "GET")
            assert 503 == ask(registry, f"stuck_after={SOON}", "GET")[0]  # any pool of the application
            assert not handle.healthy(stuck_after=SOON)
            assert handle.healthy()
        assert (200, "ready\n") == ask(registry, f"pool=orders&stuck_after={SOON}", "GET")
        assert handle.healthy(stuck_after=SOON)
    assert (404, "404: no process has a pool 'nobody'\n") == ask(registry, "pool=nobody", "GET")
    for wrong in ("-1", "0", "nan", "inf", "soon", ""):
        assert 400 == ask(registry, f"stuck_after={wrong}", "GET")[0]
    assert 405 == ask(registry, "", "POST")[0]


def test_sidecar(tmp_path: Path) -> None:
    """It answers for the pools of all processes; without a pool for itself, whatever they do."""
    with processes(tmp_path) as make:
        process = make("orders")
        application = sidecar.application(
            CollectorRegistry(), settings(), moments=Moments(Reader(tmp_path).read, monotonic=lambda: NOW)
        )

        async def scenario() -> list[tuple[int, str]]:
            listener = await sidecar.start(application, settings())
            try:
                queries = ("", "pool=orders", "pool=nobody", "pool=orders&stuck_after=100", "stuck_after=x")
                return [
                    await asyncio.to_thread(over_http, listener.port, f"/-/ready?{query}", "GET")
                    for query in queries
                ]
            finally:
                await listener.close()

        for row in range(3):
            process.hold(NOW - 40, row)
        process.wait(NOW - 1)
        own, stuck, unknown, later, wrong = asyncio.run(scenario())
    assert (200, "ready\n") == own
    assert stuck[0] == 503
    assert stuck[1].startswith("stuck: pool 'orders' in worker 000 (pid ")
    assert "has all 3 connections out and returned none for 40 s; 1 caller waiting" in stuck[1]
    assert (404, "404: no process has a pool 'nobody'\n") == unknown
    assert (200, "ready\n") == later
    assert wrong[0] == 400


# -- when a pool is stuck


def answered(directory: Path, query: str = "pool=orders") -> tuple[HTTPStatus, str]:
    return readiness(question(query), Reader(directory).read(), NOW)


@pytest.mark.parametrize(
    ("held", "waits", "last_return", "is_stuck"),
    [
        ((40, 40, 40), 1, 0, True),
        ((29, 40, 40), 1, 0, True),  # the connection that was taken last says nothing
        ((29, 29, 29), 1, 0, False),  # the first callers ever still have theirs
        ((40, 40, 40), 0, 0, False),  # nobody waits
        ((40, 40), 1, 0, False),  # one is left
        ((40, 40, 40), 1, 31, True),
        ((40, 40, 40), 1, 29, False),  # one came back, and was taken at once
        ((), 0, 0, False),
    ],
)
def test_stuck(
    tmp_path: Path, held: tuple[float, ...], waits: float, last_return: float, *, is_stuck: bool
) -> None:
    """All connections are out, a caller waits, and nothing has come back for 30 s."""
    with processes(tmp_path) as make:
        process = make("orders")
        for row, seconds in enumerate(held):
            process.hold(NOW - seconds, row)
        if waits:
            process.wait(NOW - waits)
        if last_return:
            from sqlalchemy_pool_exporter.segment.block import LAST_CHECKIN  # noqa: PLC0415 - of this test alone

            process.block[LAST_CHECKIN] = NOW - last_return
        status, text = answered(tmp_path)
    assert (HTTPStatus.SERVICE_UNAVAILABLE if is_stuck else HTTPStatus.OK) == status
    assert is_stuck == text.startswith("stuck: ")


def test_one_process_of_several(tmp_path: Path) -> None:
    """A pool that is stuck in one process is stuck, and each process is named; of many, the first."""
    with processes(tmp_path) as make:

        def stuck() -> Process:
            process: Process = make("orders")
            for row in range(3):
                process.hold(NOW - 40, row)
            process.wait(NOW - 35)
            return process

        make("orders")
        stuck()
        status, text = answered(tmp_path)
        assert (503, 1) == (status, len(text.splitlines()))
        assert "worker 001 (pid" in text
        for _ in range(6):
            stuck()
        lines = answered(tmp_path)[1].splitlines()
        assert (6, "stuck: 2 more") == (len(lines), lines[-1])
        assert (200, 404) == (
            answered(tmp_path, "stuck_after=50")[0],
            answered(tmp_path, "pool=orders&pool=x")[0],
        )


def test_pool_that_is_gone(tmp_path: Path) -> None:
    """A pool whose processes have all ended is not known: there is nobody who could answer a request."""
    with processes(tmp_path) as make:
        make("orders").kill()
        assert (404, "404: no process has a pool 'orders'\n") == answered(tmp_path)
        assert (200, "ready\n") == answered(tmp_path, "")


def test_wrong_questions() -> None:
    """Too many parameters are refused."""
    with pytest.raises(QueryError, match="too many"):
        question("&".join("pool=a" for _ in range(2000)))


def test_other_pools() -> None:
    """A pool without a limit is never full; a pool that is no longer instrumented is not stuck."""
    registry = CollectorRegistry()
    with engine_of(poolclass=NullPool) as engine:
        handle = instrument(engine, name="orders", registry=registry)
        held = [engine.connect() for _ in range(3)]
        assert handle.healthy(stuck_after=1e-9)
        for one in held:
            one.close()
        handle.close()
        assert handle.healthy()


def test_no_connection_is_taken() -> None:
    """Asking neither opens nor checks out a connection, nor waits for one."""
    registry = CollectorRegistry()
    with engine_of() as engine:
        handle = instrument(engine, name="orders", registry=registry)
        assert handle.healthy()
        assert (200, "ready\n") == by_wsgi(registry, "pool=orders", "GET")
        assert 0 == engine.pool.checkedin()  # type: ignore[attr-defined]


def test_beside_a_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sidecar shows the pools, the application's own endpoint answers for its process all the same."""
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_SIDECAR", "1")
    registry = CollectorRegistry()
    with engine_of() as engine:
        handle = instrument(engine, name="orders", registry=registry, directory=tmp_path)
        assert (200, "ready\n") == by_wsgi(registry, "pool=orders", "GET")
        with waiting(engine, handle):
            time.sleep(SOON)
            assert 503 == by_wsgi(registry, f"pool=orders&stuck_after={SOON}", "GET")[0]
        handle.close()


# -- without a redirect


@pytest.mark.parametrize("attach", ["add_route", "mount"])
def test_fastapi_redirects_only_where_it_is_mounted(attach: str) -> None:
    """`add_route("/metrics", asgi_app())` answers at once; `mount()` answers 307 and then at `/metrics/`."""
    registry = CollectorRegistry()
    application = FastAPI()
    add: Callable[..., Any] = getattr(application, attach)
    add("/metrics", asgi_app(registry))
    if attach == "add_route":
        add("/-/ready", asgi_app(registry))
    with engine_of() as engine:
        instrument(engine, name="orders", registry=registry)
        status, text = asyncio.run(_fetched(application, "/metrics", "GET"))
        assert (200 if attach == "add_route" else 307) == status
        assert (attach == "add_route") == ("sqlalchemy_pool_size" in text)
        path = "/-/ready" if attach == "add_route" else "/metrics/-/ready"
        assert (200, "ready\n") == asyncio.run(_fetched(application, f"{path}?pool=orders", "GET"))
