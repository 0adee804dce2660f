# SPDX-License-Identifier: Apache-2.0
"""HTTP as bytes on a socket, for the tests of the sidecar's endpoint, and registries to serve."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.sidecar.config import Web
from sqlalchemy_pool_exporter.sidecar.web import app as web
from tests.support.wait import eventually_async

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from prometheus_client.metrics_core import Metric

    from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig
    from sqlalchemy_pool_exporter.sidecar.web.server import Listener

HANG = 30.0  # seconds after which a test counts as hanging
SOON = 0.1  # seconds; a timeout that a test configures and waits for
# Seconds; a timeout within which a busy machine does what is to be done in time. Tests skip it, see `run`.
LATE = 10.0
REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: test\r\n\r\n"
LAST_REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


class Reply(NamedTuple):
    """An answer; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Numbers:
    """A registry with a gauge, and a counter of its collections."""

    def __init__(self) -> None:
        self.collections = 0

    def collect(self) -> Iterator[Metric]:
        """Yield the two families; the counter is the number of this collection."""
        self.collections += 1
        yield CounterMetricFamily("things", "Things seen.", value=self.collections)
        gauge = GaugeMetricFamily("level_ratio", "How high.", labels=["place"])
        gauge.add_metric(["here"], 0.5)
        gauge.add_metric(["there"], 0.25)
        yield gauge


class Gated(Numbers):
    """Numbers whose collection announces its start, and waits until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.threads: list[str] = []

    def collect(self) -> Iterator[Metric]:
        """Wait for the gate, then yield."""
        self.threads.append(threading.current_thread().name)
        families = list(super().collect())
        self.begun.release()
        assert self.gate.wait(HANG)
        yield from families

    async def has_begun(self) -> None:
        """Wait until one more collection has begun."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=HANG)


class Large:
    """A registry whose exposition is too large for the kernel's socket buffers."""

    def collect(self) -> Iterator[Metric]:
        """Yield 32 MB."""
        gauge = GaugeMetricFamily("large", "Large.", labels=["text"])
        for i in range(32):
            gauge.add_metric([f"{i}{'x' * 1_000_000}"], i)
        yield gauge


class _Skipping(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario that may `skip` time: it waits for no timeout, so that none need be short."""
    with asyncio.Runner(loop_factory=_Skipping) as runner:
        runner.run(scenario)


async def skip(seconds: float) -> None:
    """Put the clock of the event loop forward, and let it do what is due then."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Skipping)
    loop.skipped += seconds
    await asyncio.sleep(SOON)


def settings(**options: Any) -> Web:
    """Return settings for an endpoint on a free port of this machine."""
    return Web(listen_address=Address("127.0.0.1", 0), **options)


@asynccontextmanager
async def serving(
    registry: web.Collectable,
    options: Web | None = None,
    *,
    web_config: WebConfig | None = None,
    **application: Any,
) -> AsyncIterator[Listener]:
    """Serve ``registry`` for the duration of the block."""
    options = options or settings()
    app = web.application(registry, options, **application)
    endpoint = await web.start(app, options, web_config=web_config)
    try:
        yield endpoint
    finally:
        async with asyncio.timeout(HANG):
            await endpoint.close()


@asynccontextmanager
async def scrapes(gated: Gated, options: Web | None = None) -> AsyncIterator[Any]:
    """Serve ``gated`` and open its gate at the end, so that no collection is left waiting."""
    try:
        async with serving(gated, options) as endpoint:
            yield endpoint
    finally:
        gated.gate.set()


async def ask(
    endpoint: Listener,
    path: str = "/metrics",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """Send one request on a connection of its own and return the answer."""
    lines = [f"{name}: {value}" for name, value in (headers or {}).items()]
    head = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", *lines, "", ""]
    return parsed(await talk(endpoint, "\r\n".join(head).encode("latin-1"), tls=tls))


async def talk(endpoint: Listener, sent: bytes, *, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes and return whatever comes until the other side closes."""
    async with asyncio.timeout(HANG):
        reader, writer = await dial(endpoint, tls=tls)
        writer.write(sent)
        return await rest(reader, writer)


async def dial(
    endpoint: Listener, *, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to ``endpoint``."""
    name = "localhost" if tls is not None else None
    return await asyncio.open_connection(endpoint.host, endpoint.port, ssl=tls, server_hostname=name)


async def rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return what comes until the other side closes or cuts the connection."""
    received = bytearray()
    try:
        async with asyncio.timeout(HANG):
            while chunk := await reader.read(65536):
                received += chunk
    except (ConnectionError, BrokenPipeError):
        pass
    finally:
        writer.transport.abort()
    return bytes(received)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds, which something outside of this event loop may bring about."""
    assert await eventually_async(condition, seconds=HANG)


async def emptied(endpoint: Listener) -> None:
    """Wait until no connection is left."""
    await until(lambda: not endpoint.connections)


def parsed(raw: bytes) -> Reply:
    """Parse one answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return Reply(int(first.split(" ")[1]), {name.lower(): value for name, _, value in pairs}, body)
