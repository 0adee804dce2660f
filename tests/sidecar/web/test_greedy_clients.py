# SPDX-License-Identifier: Apache-2.0
"""Limits of a connection with a client that sends or keeps too much, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
from asyncio.sslproto import SSLProtocol
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.sidecar.web import server as listener
from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig
from tests.support.logs import messages_of_this_test
from tests.support.wire import (
    LAST_REQUEST,
    REQUEST,
    SOON,
    Gated,
    Numbers,
    ask,
    dial,
    emptied,
    parsed,
    rest,
    scrapes,
    serving,
    settings,
    talk,
    until,
)

if TYPE_CHECKING:
    from tests.support.web_files import Files


def test_a_head_too_large_is_refused() -> None:
    """A request head beyond the limit gets 431, whether it has one line or many."""

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
    """The server takes no more of an unread body than a request may have."""

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
    """A body that the page does not read is skipped, and the next request on the connection is answered."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            sent = b"GET /-/ready HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello"
            received = await talk(endpoint, sent + LAST_REQUEST)
        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert received.endswith(b"healthy\n")

    asyncio.run(scenario())


def test_pipelined_requests_are_answered_in_order() -> None:
    """Pipelined requests are answered in their order."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            ready = REQUEST.replace(b"healthy", b"ready")
            received = await talk(
                endpoint, REQUEST + ready + REQUEST + LAST_REQUEST.replace(b"healthy", b"ready")
            )
        bodies = [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 ")[1:]]
        assert bodies == [b"healthy\n", b"ready\n", b"healthy\n", b"ready\n"]

    asyncio.run(scenario())


def test_a_flood_during_a_request_is_cut_off() -> None:
    """A client that sends more than the limit while its request is in progress is disconnected."""

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


def test_pipelined_requests_that_wait_are_bounded() -> None:
    """The limit of bytes holds for all requests that wait for an answer together, not for each of them."""
    request = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"
    almost_the_limit = request * (1024 // len(request))

    async def scenario() -> None:
        gated = Gated()
        async with scrapes(gated, settings(max_request_bytes=1024)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(almost_the_limit)
            await gated.has_begun()
            writer.write(almost_the_limit)
            assert await rest(reader, writer) == b""
            await emptied(endpoint)

    asyncio.run(scenario())


@pytest.mark.parametrize("head", [b"", b"Expect: nothing\r\n"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_pipelines_and_goes_is_not_logged(
    files: Files, caplog: pytest.LogCaptureFixture, head: bytes, tls: bool
) -> None:
    """A client that resets its connection before many responses are written leaves nothing in the log."""

    async def scenario() -> None:
        web_config = WebConfig(files.with_tls()) if tls else None
        async with serving(Numbers(), web_config=web_config) as endpoint:
            _, writer = await dial(endpoint, tls=files.client() if tls else None)
            await until(lambda: endpoint.connections > 0)
            writer.write(REQUEST.replace(b"\r\n", b"\r\n" + head, 1) * 200)
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
            await emptied(endpoint)

    asyncio.run(scenario())
    assert messages_of_this_test(caplog.records) == []


# ------------------------------------------------------- memory of clients


def _tls_protocols() -> int:
    """Return the number of asyncio's TLS protocols, each with 256 KiB of buffers."""
    return sum(isinstance(each, SSLProtocol) for each in gc.get_objects())


def test_a_silent_client_costs_no_tls_buffers(files: Files) -> None:
    """Clients that connect to the TLS port and send nothing cost sockets, but no TLS buffers."""

    async def scenario() -> None:
        async with serving(Numbers(), web_config=WebConfig(files.with_tls())) as endpoint:
            gc.collect()  # finds those of other tests now, and not in the meantime
            before = _tls_protocols()
            crowd = [await dial(endpoint) for _ in range(20)]
            await until(lambda: endpoint.connections == 20)
            await asyncio.sleep(SOON)
            assert _tls_protocols() <= before
            for _, writer in crowd:
                writer.transport.abort()
            await emptied(endpoint)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00", b"\x16 no TLS at all, but the first byte", b"GET / HTTP/1.1"]
)
def test_a_failed_handshake_leaves_no_tls_buffers(files: Files, sent: bytes) -> None:
    """The buffers of a handshake that fails are freed with it, not by the next run of the garbage collector."""

    async def scenario() -> None:
        options = settings(header_timeout_seconds=SOON)
        async with serving(Numbers(), options, web_config=WebConfig(files.with_tls())) as endpoint:
            gc.collect()
            before = _tls_protocols()
            gc.disable()
            try:
                await asyncio.gather(*(talk(endpoint, sent) for _ in range(20)))
                await emptied(endpoint)
                await until(lambda: _tls_protocols() <= before)  # fewer, if those of another test end
            finally:
                gc.enable()

    asyncio.run(scenario())


def test_unsent_bytes_in_the_kernel_are_bounded() -> None:
    """The kernel's buffer for an unread answer is limited to 256 KiB; by default it would grow to 4 MiB."""
    with listener.bind(Address("127.0.0.1", 0)) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 256 * 1024  # Linux doubles it
