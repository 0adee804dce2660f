# SPDX-License-Identifier: Apache-2.0
"""Accepting, the limit of connections, closing and listening, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.errors import EndpointError
from sqlalchemy_pool_exporter.sidecar.config import Web
from sqlalchemy_pool_exporter.sidecar.sources import Address
from sqlalchemy_pool_exporter.sidecar.web import server as listener
from tests.support.wire import (
    HANG,
    Gated,
    Large,
    Numbers,
    ask,
    dial,
    parsed,
    rest,
    serving,
    settings,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 0.1  # seconds a test configures as the limit it waits to run out
REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: test\r\n\r\n"
LAST_REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


<<<<<<< HEAD
=======
# ------------------------------------------------------------ slow clients


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /metrics HTTP/1.1\r\nHost: test\r\nX-Slow: ",
        REQUEST + b"GET /metr",
    ],
)
def test_an_unfinished_request_is_cut_off(sent: bytes) -> None:
    """An incomplete request past the deadline closes the connection, for first and later requests."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=SOON)) as endpoint:
            received = await talk(endpoint, sent)
            assert received.count(b"HTTP/1.1 200") == sent.count(REQUEST)
            await emptied(endpoint)

    asyncio.run(scenario())


def test_an_unfinished_request_after_idle_time_is_cut_off() -> None:
    """On a connection that was kept the clock starts with the first byte of the next request."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=SOON)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(REQUEST)
            assert (await reader.readuntil(b"healthy\n")).startswith(b"HTTP/1.1 200")
            writer.write(b"GET /metr")
            assert await rest(reader, writer) == b""

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", [LAST_REQUEST, REQUEST, REQUEST * 3])
def test_a_client_that_has_sent_everything(sent: bytes) -> None:
    """A client that closes its half after the request gets the response; then the connection closes."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(sent)
            writer.write_eof()
            received = await rest(reader, writer)
            assert received.count(b"healthy\n") == sent.count(b"GET")
            await emptied(endpoint)

    asyncio.run(scenario())


def test_a_client_that_has_sent_everything_waits_for_a_scrape() -> None:
    """A scrape that takes its time is answered too, though the client's half was closed meanwhile."""

    async def scenario() -> None:
        gated = Gated()
        async with serving(gated) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
            await gated.has_begun()
            writer.write_eof()
            gated.gate.set()
            assert (await rest(reader, writer)).startswith(b"HTTP/1.1 200")
            await emptied(endpoint)

    asyncio.run(scenario())


def test_a_client_that_sends_nothing_or_half_a_request_and_goes() -> None:
    """A client that closes before a request gets no response, and its connection closes at once."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            for sent in (b"", b"GET /met"):
                reader, writer = await dial(endpoint)
                writer.write(sent)
                await until(lambda: endpoint.connections == 1)
                writer.write_eof()
                assert await rest(reader, writer) == b""
                await emptied(endpoint)

    asyncio.run(scenario())


def test_dripping_does_not_prolong_the_deadline() -> None:
    """A byte now and then does not keep an unfinished request alive."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=SOON)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(b"GET /metrics HTTP/1.1\r\n")

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        writer.write(b"X-Drip: 1\r\n")
                        await writer.drain()
                        await asyncio.sleep(SOON / 10)

            dripping = asyncio.create_task(drip())
            assert await rest(reader, writer) == b""
            dripping.cancel()

    asyncio.run(scenario())


def test_an_idle_connection_is_closed_in_the_end() -> None:
    """A kept-alive connection serves further requests, and is closed when none comes for long enough."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(keepalive_timeout_seconds=SOON)) as endpoint:
            received = await talk(endpoint, REQUEST)
            assert parsed(received).body == b"healthy\n"
            await emptied(endpoint)

    asyncio.run(scenario())


def test_idle_time_is_not_request_time() -> None:
    """A connection may be idle for longer than a request may take to arrive."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=SOON)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(REQUEST)
            assert (await reader.readuntil(b"healthy\n")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(3 * SOON)
            writer.write(LAST_REQUEST)
            assert (await rest(reader, writer)).endswith(b"healthy\n")

    asyncio.run(scenario())


def test_a_client_that_does_not_read_is_cut_off() -> None:
    """A client that requests much and reads nothing is disconnected, and its memory is freed."""

    async def scenario() -> None:
        async with serving(Large(), settings(write_timeout_seconds=SOON)) as endpoint:
            loop = asyncio.get_running_loop()
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await loop.sock_connect(sock, (endpoint.host, endpoint.port))
                await loop.sock_sendall(sock, b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
                await until(lambda: endpoint.connections > 0)
                await asyncio.wait_for(emptied(endpoint), HANG)

    asyncio.run(scenario())


def test_a_slow_reader_that_reads_is_served() -> None:
    """The deadline is for standing still: a large answer that is read gets through whole."""

    async def scenario() -> None:
        async with serving(Large(), settings(write_timeout_seconds=5)) as endpoint:
            reply = await ask(endpoint)
            assert reply.headers["content-length"] == str(len(reply.body))

    asyncio.run(scenario())


# ---------------------------------------------------------- greedy clients


def test_a_head_too_large_is_refused() -> None:
    """A request head beyond the limit is 431, whether it is one line or many."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(max_request_bytes=1024)) as endpoint:
            for sent in (b"GET /" + b"a" * 2000, b"GET / HTTP/1.1\r\n" + b"X-Many: 1\r\n" * 200):
                assert parsed(await talk(endpoint, sent)).status == 431
            await emptied(endpoint)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 10000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"]
)
def test_a_body_too_large_is_not_taken(framing: bytes) -> None:
    """The server reads no more of an unwanted body than a request may have bytes."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(max_request_bytes=1024)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(b"POST /-/reload HTTP/1.1\r\nHost: test\r\n" + framing)
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    writer.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
                    await writer.drain()
            await rest(reader, writer)
            await emptied(endpoint)
            assert (await ask(endpoint)).status == 200

    asyncio.run(scenario())


def test_a_small_body_does_no_harm() -> None:
    """A body that is not asked for is skipped, and the next request on the connection is answered."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            sent = b"GET /-/ready HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello"
            received = await talk(endpoint, sent + LAST_REQUEST)
        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert received.endswith(b"healthy\n")

    asyncio.run(scenario())


def test_pipelined_requests_are_answered_in_order() -> None:
    """Several requests in one go are answered one after the other, in their order."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            ready = REQUEST.replace(b"healthy", b"ready")
            received = await talk(
                endpoint, REQUEST + ready + REQUEST + LAST_REQUEST.replace(b"healthy", b"ready")
            )
        bodies = [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 ")[1:]]
        assert bodies == [b"healthy\n", b"ready\n", b"healthy\n", b"ready\n"]

    asyncio.run(scenario())


>>>>>>> words-sidecar
# ------------------------------------------------ the limit of connections


def test_a_crowd_that_waits_does_not_stop_a_scrape() -> None:
    """At the limit the client that has waited longest without a request is closed for a new one, one by one."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(max_connections_in_flight=3)) as endpoint:
            crowd = [await dial(endpoint) for _ in range(3)]
            for _, writer in crowd:
                writer.write(b"GET /metrics HTTP/1.1\r\n")  # never completed
            await until(lambda: endpoint.connections >= 3)
            assert (await ask(endpoint)).status == 200
            reader, writer = crowd[0]
            assert await rest(reader, writer) == b""  # it came first, it went first
            for reader, writer in crowd[1:]:
                writer.write(b"Host: test\r\nConnection: close\r\n\r\n")
                assert parsed(await rest(reader, writer)).status == 200

    asyncio.run(scenario())


def test_connections_are_bounded() -> None:
    """However many connect, no more than the limit are open."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(max_connections_in_flight=5)) as endpoint:
            most = 0
            crowd = []
            for _ in range(12):
                crowd.append(await dial(endpoint))
                most = max(most, endpoint.connections)
            assert (await ask(endpoint)).status == 200
            assert 1 <= max(most, endpoint.connections) <= 5
            for _, writer in crowd:
                writer.transport.abort()

    asyncio.run(scenario())


def test_requests_under_way_are_not_displaced() -> None:
    """While every connection has a request in hand a new one waits; they get their answers, then it gets its."""

    async def scenario() -> None:
        gated = Gated()
        try:
            async with serving(gated, settings(max_connections_in_flight=2)) as endpoint:
                busy = [asyncio.create_task(ask(endpoint)) for _ in range(2)]
                await until(lambda: endpoint.requests >= 2)
                newcomer = asyncio.create_task(ask(endpoint, "/-/healthy"))
                done, _ = await asyncio.wait([newcomer, *busy], timeout=3 * SOON)
                assert not done
                gated.gate.set()
                assert [reply.status for reply in await asyncio.gather(*busy)] == [200, 200]
                assert (await newcomer).status == 200
        finally:
            gated.gate.set()

    asyncio.run(scenario())


def test_running_out_of_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """Without a free descriptor the longest waiting connection makes room, and the endpoint answers again."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=3600)) as endpoint:
            crowd = [await dial(endpoint) for _ in range(4)]
            await until(lambda: endpoint.connections >= 4)
            sock = socket.socket()  # ours, before there are none left
            sock.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            in_use = max(sock.fileno(), *(w.get_extra_info("socket").fileno() for _, w in crowd))
            resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 1, hard))
            fillers = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        fillers.append(socket.socket())
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, (endpoint.host, endpoint.port))
                await loop.sock_sendall(sock, LAST_REQUEST)
                async with asyncio.timeout(HANG):
                    assert (await loop.sock_recv(sock, 65536)).startswith(b"HTTP/1.1 200")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for one in (*fillers, sock):
                    one.close()
                for _, writer in crowd:
                    writer.transport.abort()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "cannot accept a connection" in caplog.text


def test_clients_that_come_back_do_not_stop_a_scrape() -> None:
    """Many clients that reconnect whenever they are closed leave the scraper time to send its request."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(max_connections_in_flight=4)) as endpoint:

            async def insist() -> None:
                while True:
                    with contextlib.suppress(OSError):
                        reader, writer = await dial(endpoint)
                        writer.write(b"GET /metrics HTTP/1.1\r\n")
                        await rest(reader, writer)

            crowd = [asyncio.create_task(insist()) for _ in range(12)]
            await until(lambda: endpoint.connections == 4)
            for _ in range(3):
                assert (await ask(endpoint)).status == 200
            for one in crowd:
                one.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)

    asyncio.run(scenario())


<<<<<<< HEAD
=======
def test_a_flood_during_a_request_is_cut_off() -> None:
    """A client that keeps sending while its request is handled is disconnected."""

    async def scenario() -> None:
        gated = Gated()
        try:
            async with serving(gated, settings(max_request_bytes=1024)) as endpoint:
                reader, writer = await dial(endpoint)
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
                await gated.has_begun()
                writer.write(b"GET /metrics HTTP/1.1\r\n" * 1000)
                assert await rest(reader, writer) == b""
                await emptied(endpoint)
                gated.gate.set()
        finally:
            gated.gate.set()

    asyncio.run(scenario())


>>>>>>> words-sidecar
def test_closing_does_not_wait_for_who_does_not_read() -> None:
    """An answer that is on its way when the endpoint is closed has until the patience is over, no longer."""

    async def scenario() -> None:
        async with serving(Large(), settings(shutdown_timeout_seconds=SOON)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
            assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
            await endpoint.close()
            assert endpoint.connections == 0
            writer.transport.abort()

    asyncio.run(scenario())


# --------------------------------------------------------------- listening


def test_a_taken_port_is_an_error_at_once() -> None:
    """A port that is in use raises an EndpointError that names the address."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            taken = Web(listen_address=Address("127.0.0.1", endpoint.port))
            with pytest.raises(
                EndpointError, match=f"cannot listen on '127.0.0.1:{endpoint.port}': Address already"
            ):
                async with serving(Numbers(), taken):
                    pytest.fail("listens")

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 64, "x..y"])
def test_an_address_of_another_host_is_an_error(host: str) -> None:
    """An address that is not this machine's, or a name that is none, is an EndpointError."""
    with pytest.raises(EndpointError, match="cannot listen on"):
        listener.bind(Address(host, 0))


def test_a_name_is_listened_on_by_ipv4() -> None:
    """A name with addresses of both kinds is listened on by IPv4, as Go does, since scrapers look there first."""
    with listener.bind(Address("localhost", 0)) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def _refusing(*families: int) -> Callable[..., socket.socket]:
    """Return a ``create_server`` for a machine that has not all ``families``, listening on loopback only."""

    def create_server(address: tuple[Any, ...], *, family: int, **options: Any) -> socket.socket:
        calls.append((address[0], family, options.get("dualstack_ipv6", False)))
        if family in families:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(("127.0.0.1", 0))

    real = socket.create_server
    return create_server


calls: list[tuple[str, int, bool]] = []


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ((), [("", socket.AF_INET6, True)]),
        ((socket.AF_INET6,), [("", socket.AF_INET6, True), ("0.0.0.0", socket.AF_INET, False)]),  # noqa: S104
    ],
)
def test_an_empty_host_is_every_interface(
    without: tuple[int, ...], expected: list[tuple[str, int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``:10079`` is IPv6 and IPv4 on one socket, and IPv4 alone where the machine has no IPv6."""
    calls.clear()
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: True)
    monkeypatch.setattr(socket, "create_server", _refusing(*without))
    listener.bind(Address("", 0)).close()
    assert expected == calls
