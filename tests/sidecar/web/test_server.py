# SPDX-License-Identifier: Apache-2.0
"""Accepting, the connection limit, listening, the handle and closing, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import socket
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.errors import EndpointError
from sqlalchemy_pool_exporter.sidecar.config import Web
from sqlalchemy_pool_exporter.sidecar.web import server as listener
from tests.support.logs import messages_of_this_test
from tests.support.wire import (
    HANG,
    LAST_REQUEST,
    SOON,
    Gated,
    Large,
    Numbers,
    ask,
    dial,
    parsed,
    rest,
    scrapes,
    serving,
    settings,
    talk,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable


# ------------------------------------------------ the limit of connections


def test_a_crowd_that_waits_does_not_stop_a_scrape() -> None:
    """At the limit a new connection closes only the one that has waited longest without a complete request."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(max_connections_in_flight=3)) as endpoint:
            crowd = [await dial(endpoint) for _ in range(3)]
            for _, writer in crowd:
                writer.write(b"GET /metrics HTTP/1.1\r\n")  # never completed
            await until(lambda: endpoint.connections >= 3)
            assert (await ask(endpoint)).status == 200
            reader, writer = crowd[0]
            assert await rest(reader, writer) == b""  # the longest waiting connection
            for reader, writer in crowd[1:]:
                writer.write(b"Host: test\r\nConnection: close\r\n\r\n")
                assert parsed(await rest(reader, writer)).status == 200

    asyncio.run(scenario())


def test_connections_are_bounded() -> None:
    """However many clients connect, no more connections than the limit are open."""

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
    """A new connection waits while all others have a request in progress; then all of them are answered."""

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
    """Without a free descriptor the server closes the longest waiting connection, and answers a new client."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=3600)) as endpoint:
            crowd = [await dial(endpoint) for _ in range(4)]
            await until(lambda: endpoint.connections >= 4)
            gc.collect()  # what other tests left open would free a descriptor if it were found later
            sock = socket.socket()  # the test's own, before the limit is reached
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


@pytest.mark.parametrize(
    ("files", "most"),
    [(resource.RLIM_INFINITY, 128), (1024, 128), (160, 128), (159, 127), (64, 32), (20, 1)],
)
def test_clients_leave_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, files: int, most: int
) -> None:
    """If the process may open few files, fewer connections are allowed than the settings say, with a warning."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert listener.most_connections(settings(max_connections_in_flight=128)) == most
    warning = [f"at most {most} connections, because this process may open only {files} files"]
    assert messages_of_this_test(caplog.records) == (warning if most < 128 else [])


def test_clients_that_come_back_do_not_stop_a_scrape() -> None:
    """Clients that reconnect whenever they are disconnected leave a scraper time to send its request."""

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


def test_closing_does_not_wait_for_who_does_not_read() -> None:
    """`close` waits no longer than the shutdown timeout for a client that does not read its answer."""

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
    """An address of another machine, or a name without an address, is an EndpointError."""
    with pytest.raises(EndpointError, match="cannot listen on"):
        listener.bind(Address(host, 0))


def test_a_name_is_listened_on_by_ipv4() -> None:
    """For a name with IPv4 and IPv6 addresses the server uses IPv4, as Go does, since scrapers try IPv4 first."""
    with listener.bind(Address("localhost", 0)) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def _refusing(*families: int) -> Callable[..., socket.socket]:
    """Return a ``create_server`` that refuses ``families``, as a machine without them, and uses loopback only."""

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
    """``:10079`` listens on IPv6 and IPv4 with one socket, and on IPv4 alone if the machine has no IPv6."""
    calls.clear()
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: True)
    monkeypatch.setattr(socket, "create_server", _refusing(*without))
    listener.bind(Address("", 0)).close()
    assert expected == calls


# --------------------------------------------------- the handle, and closing


def test_the_handle() -> None:
    """Port 0 becomes a free port; the handle has the port, the URL and the numbers of connections and requests."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            assert endpoint.port > 0
            assert endpoint.url == f"http://127.0.0.1:{endpoint.port}"
            assert repr(endpoint) == f"<Listener {endpoint.url} connections=0 requests=0>"
        assert repr(endpoint) == f"<Listener {endpoint.url} closed>"

    asyncio.run(scenario())


def test_closing_finishes_what_is_under_way() -> None:
    """`close` answers the scrape under way, accepts no new connection, and does not wait for idle ones."""

    async def scenario() -> None:
        gated = Gated()
        async with scrapes(gated) as endpoint:
            idle = await dial(endpoint)
            scrape = asyncio.create_task(ask(endpoint))
            await gated.has_begun()
            closing = asyncio.create_task(endpoint.close())
            await asyncio.sleep(0)
            while True:  # the listening socket is closed within two turns of the loop
                try:
                    _, writer = await dial(endpoint)
                except ConnectionRefusedError:
                    break
                writer.transport.abort()
            gated.gate.set()
            assert (await scrape).status == 200
            await closing
            assert await rest(*idle) == b""
            assert endpoint.connections == 0

    asyncio.run(scenario())


def test_closing_does_not_wait_for_ever() -> None:
    """`close` aborts a collection that hangs after the shutdown timeout; a second `close` does nothing."""

    async def scenario() -> None:
        gated = Gated()
        try:
            async with serving(gated, settings(shutdown_timeout_seconds=0.1)) as endpoint:
                scrape = asyncio.create_task(talk(endpoint, b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"))
                await gated.has_begun()
                await endpoint.close()
                assert await scrape == b""
                assert endpoint.connections == 0
        finally:
            gated.gate.set()

    asyncio.run(scenario())


def test_the_port_is_free_after_closing() -> None:
    """After `close` another server can listen on the same port at once."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            assert (await ask(endpoint)).status == 200
        again = Web(listen_address=Address("127.0.0.1", endpoint.port))
        async with serving(Numbers(), again) as second:
            assert (await ask(second)).status == 200

    asyncio.run(scenario())
