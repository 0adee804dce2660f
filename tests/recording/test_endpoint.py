# SPDX-License-Identifier: Apache-2.0
"""The in-application endpoint: its own server, and mounts for the application's server."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client import CollectorRegistry, Gauge, Info
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import (
    EndpointError,
    Server,
    aiohttp_handler,
    asgi_app,
    instrument,
    serve,
    wsgi_app,
)
from tests.support.fakes import connect
from tests.support.ports import free_port
from tests.support.server_threads import server_threads
from tests.support.wait import SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = 'sqlalchemy_pool_checkouts_total{pool="shown"} 1.0'


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """A registry that shows one pool."""
    registry = CollectorRegistry()
    pool = QueuePool(connect)
    with instrument(pool, name="shown", registry=registry):
        pool.connect().close()
        yield registry


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[Server]:
    """A running server for that registry."""
    with serve(0, "127.0.0.1", registry=registry) as server:
        yield server


def ask(
    server: Server, method: str = "GET", path: str = "/metrics", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def test_serves_the_metrics(endpoint: Server) -> None:
    """By default the server sends the text format, at the URL that its ``url`` names."""
    status, headers, body = ask(endpoint)
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    assert LINE in body.decode()
    assert endpoint.url == f"http://127.0.0.1:{endpoint.port}/metrics"
    assert endpoint.url in repr(endpoint)


def test_openmetrics_and_gzip(endpoint: Server) -> None:
    """A scraper that asks for OpenMetrics and gzip gets both."""
    _, headers, body = ask(
        endpoint, Accept="application/openmetrics-text; version=1.0.0", Accept_Encoding="gzip"
    )
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert headers["content-encoding"] == "gzip"
    assert list(parse_openmetrics(gzip.decompress(body).decode()))


def test_name_filter(endpoint: Server) -> None:
    """``name[]`` chooses families."""
    _, _, body = ask(endpoint, path="/metrics?name[]=sqlalchemy_pool_checkouts_total")
    assert [line for line in body.decode().splitlines() if not line.startswith("#")] == [LINE]


def test_head_page_and_errors(endpoint: Server) -> None:
    """HEAD has no body, the page links to the metrics, and other paths and methods are refused."""
    status, headers, body = ask(endpoint, "HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-type"].startswith("text/plain; version=")
    status, headers, page = ask(endpoint, path="/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b'href="metrics"' in page
    assert int(ask(endpoint, "HEAD", "/")[1]["content-length"]) > 0
    files = re.findall(r'(?:href|src)="(assets/[^"]+)"', page.decode())
    assert [200] * 3 == [ask(endpoint, path=f"/{path}")[0] for path in files]
    assert ask(endpoint, path="/nothing")[0] == 404
    assert [ask(endpoint, "POST", path)[0] for path in ("/metrics", "/")] == [405, 405]


def test_taken_port(endpoint: Server) -> None:
    """If the port is taken, ``serve()`` raises an error that names it."""
    with pytest.raises(EndpointError, match=rf"cannot listen on '127.0.0.1', port {endpoint.port}: .*in use"):
        serve(endpoint.port, "127.0.0.1")


@pytest.mark.parametrize(
    ("port", "host"),
    [
        (0, "192.0.2.1"),
        (70000, "127.0.0.1"),
        (-1, "127.0.0.1"),
        ("10079", "127.0.0.1"),
        (None, "127.0.0.1"),
        (0, "no.such.host.invalid"),
    ],
)
def test_impossible_address(port: Any, host: str) -> None:
    """For an invalid address, or one of another machine, ``serve()`` raises an error."""
    with pytest.raises(EndpointError, match="cannot listen"):
        serve(port, host)


def test_ipv6(registry: CollectorRegistry) -> None:
    """The server listens on IPv6 if the machine supports it."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        server = serve(0, "::1", registry=registry)
    except EndpointError:
        pytest.skip("no IPv6 address")
    with server:
        assert server.url == f"http://[::1]:{server.port}/metrics"


def test_stops_cleanly(registry: CollectorRegistry) -> None:
    """After close() the port is free and the thread has ended; a second close() does nothing."""
    before = server_threads()
    server = serve(free_port(), "127.0.0.1", registry=registry)
    assert server_threads() - before
    server.close()
    server.close()
    assert server_threads() <= before
    assert "closed" in repr(server)
    serve(server.port, "127.0.0.1", registry=registry).close()


@pytest.mark.parametrize(
    "end",
    [
        # The last one closes in a finalizer, which runs at interpreter exit when other threads no longer run.
        "",
        "atexit.register(serve(0, '127.0.0.1').close)",
        "class Owner:\n    server = serve(0, '127.0.0.1')\n    def __del__(self): self.server.close()\nowner = Owner()",
    ],
    ids=["never closed", "closed at exit", "closed by a finalizer"],
)
def test_the_interpreter_ends(end: str) -> None:
    """A serving process exits at once and silently, whether it closes its server never, at exit or in a finalizer."""
    program = f"import atexit\nfrom sqlalchemy_pool_exporter import serve\nserve(0, '127.0.0.1')\n{end}\nprint('last')"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (0, "last\n", "") == (result.returncode, result.stdout, result.stderr)


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, ``serve()`` raises an error and frees the port."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(EndpointError, match=r"cannot serve on '127\.0\.0\.1', port 0: can't start"):
        serve(0, "127.0.0.1")
    gc.collect()  # if the socket were open, collecting it would raise a ResourceWarning


@pytest.mark.parametrize("kind", [TimeoutError, RuntimeError, KeyboardInterrupt])
def test_a_time_limit_while_it_starts(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit that strikes in ``serve()`` reaches the application and leaves neither a thread nor the port."""
    start, before, port = threading.Thread.start, server_threads(), free_port()

    def strike(thread: threading.Thread) -> None:
        start(thread)
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", strike)
        with pytest.raises(kind) as raised:
            serve(port, "127.0.0.1")
    assert raised.type is kind
    assert server_threads() <= before
    serve(port, "127.0.0.1").close()


def test_silent_client_stops_nobody(endpoint: Server) -> None:
    """A client that connects and sends nothing does not block other clients."""
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        assert ask(endpoint)[0] == 200


def test_client_that_does_not_read_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A client that does not read its answer is cut off, without a traceback in the application's log."""
    registry = CollectorRegistry()

    def shorten() -> float:
        # Once the request has come: a slow client has the time of the server to send it.
        monkeypatch.setattr("sqlalchemy_pool_exporter.recording.http_server.SECONDS", 1.0)
        return 1.0

    Gauge("shortens", "The time to read the answer.", registry=registry).set_function(shorten)
    Info("large", "Larger than the buffers of a socket.", registry=registry).info({"text": "x" * 16_000_000})
    # The mounts of earlier tests keep threads of the same name until they are garbage-collected.
    before = set(threading.enumerate())
    with serve(0, "127.0.0.1", registry=registry) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert client.recv(1)
        assert eventually(
            lambda: not any("exporter answer" in one.name for one in set(threading.enumerate()) - before)
        )
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child_does_not_keep_the_port(registry: CollectorRegistry) -> None:
    """A forked child does not keep the port taken after its parent has closed the server."""
    server = serve(free_port(), "127.0.0.1", registry=registry)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    server.close()
    try:
        serve(server.port, "127.0.0.1", registry=registry).close()
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(pid, 0)


def test_scrapes_beside_checkouts(registry: CollectorRegistry) -> None:
    """Each checkout is counted while other requests read the metrics."""
    pool = QueuePool(connect)
    with (
        instrument(pool, name="busy", registry=registry) as handle,
        serve(0, "127.0.0.1", registry=registry) as server,
    ):
        stop = time.monotonic() + 0.5
        done = [0] * 4

        def work(at: int) -> None:
            while time.monotonic() < stop:
                pool.connect().close()
                done[at] += 1

        threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        while time.monotonic() < stop:
            assert ask(server)[0] == 200
        for thread in threads:
            thread.join()
        body = ask(server)[2].decode()
        assert f'sqlalchemy_pool_checkouts_total{{pool="{handle.name}"}} {float(sum(done))}' in body


def test_wsgi_mount(registry: CollectorRegistry) -> None:
    """The WSGI application conforms to the protocol, as wsgiref's validator checks it."""
    environ: dict[str, Any] = {"SCRIPT_NAME": "", "PATH_INFO": "/metrics", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    started: list[str] = []

    def start_response(status: str, _headers: Any, _exc_info: Any = None) -> Any:
        started.append(status)

    body: Any = validator(wsgi_app(registry))(environ, start_response)
    assert LINE in b"".join(body).decode()
    body.close()
    assert started == ["200 OK"]


def test_asgi_mount(registry: CollectorRegistry) -> None:
    """The ASGI application answers a request with the metrics."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": []}
    asyncio.run(asgi_app(registry)(scope, receive, send))
    assert sent[0]["status"] == 200
    assert LINE in sent[1]["body"].decode()


def test_aiohttp_mount(registry: CollectorRegistry) -> None:
    """The aiohttp handler serves the metrics and applies ``name[]``."""
    from aiohttp import ClientSession, web  # noqa: PLC0415 - only this test needs it

    async def scenario() -> tuple[str, str, str]:
        application = web.Application()
        application.router.add_get("/metrics", aiohttp_handler(registry))
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
        async with ClientSession() as session, session.get(url) as response:
            body = await response.text()
        async with (
            ClientSession() as session,
            session.get(url, params={"name[]": "sqlalchemy_pool_size"}) as response,
        ):
            filtered = await response.text()
        await runner.cleanup()
        return response.headers["Content-Type"], body, filtered

    content_type, body, filtered = asyncio.run(scenario())
    assert content_type.startswith("text/plain; version=")
    assert LINE in body
    assert "checkouts" not in filtered
    assert "sqlalchemy_pool_size" in filtered
