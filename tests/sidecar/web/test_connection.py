# SPDX-License-Identifier: Apache-2.0
"""Limits of a connection with a slow or hostile client, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.sidecar.web.config import WebConfig
from tests.support.logs import messages_of_this_test
from tests.support.wire import (
    HANG,
    LAST_REQUEST,
    LATE,
    REQUEST,
    SOON,
    Gated,
    Large,
    Numbers,
    ask,
    dial,
    emptied,
    parsed,
    rest,
    run,
    serving,
    settings,
    skip,
    talk,
    until,
)

if TYPE_CHECKING:
    from tests.support.web_files import Files


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
    """A client that does not complete a request in time is disconnected, at the first request and at later ones."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=LATE)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(sent)
            for _ in range(sent.count(REQUEST)):
                assert (await reader.readuntil(b"healthy\n")).startswith(b"HTTP/1.1 200")
            await until(lambda: endpoint.connections == 1)
            await asyncio.sleep(SOON)  # what was sent arrives
            await skip(LATE)
            assert await rest(reader, writer) == b""
            await emptied(endpoint)

    run(scenario())


def test_an_unfinished_request_after_idle_time_is_cut_off() -> None:
    """On a kept-alive connection the deadline of a request counts from its first byte."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=LATE)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(REQUEST)
            assert (await reader.readuntil(b"healthy\n")).startswith(b"HTTP/1.1 200")
            writer.write(b"GET /metr")
            await asyncio.sleep(SOON)  # it arrives
            await skip(LATE)
            assert await rest(reader, writer) == b""

    run(scenario())


@pytest.mark.parametrize("sent", [LAST_REQUEST, REQUEST, REQUEST * 3])
def test_a_client_that_has_sent_everything(sent: bytes) -> None:
    """A client that shuts down its sending side after a request gets the answer; then the connection is closed."""

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
    """A slow scrape is answered even if the client shuts down its sending side meanwhile."""

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
    """A client that shuts down before its request is complete is disconnected at once, without an answer."""

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
    """Further lines of a request, sent slowly, do not prolong its deadline."""

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
    """A kept-alive connection is closed if no further request comes before the keep-alive timeout."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(keepalive_timeout_seconds=SOON)) as endpoint:
            received = await talk(endpoint, REQUEST)
            assert parsed(received).body == b"healthy\n"
            await emptied(endpoint)

    asyncio.run(scenario())


def test_idle_time_is_not_request_time() -> None:
    """A connection may be idle for longer than a request may take to arrive."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(header_timeout_seconds=LATE)) as endpoint:
            reader, writer = await dial(endpoint)
            writer.write(REQUEST)
            assert (await reader.readuntil(b"healthy\n")).startswith(b"HTTP/1.1 200")
            await skip(3 * LATE)
            writer.write(LAST_REQUEST)
            assert (await rest(reader, writer)).endswith(b"healthy\n")

    run(scenario())


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_does_not_read_is_cut_off(files: Files, tls: bool) -> None:
    """A client that does not read its answer is disconnected after the write timeout."""

    async def scenario() -> None:
        options = settings(write_timeout_seconds=SOON)
        web_config = WebConfig(files.with_tls()) if tls else None
        async with serving(Large(), options, web_config=web_config) as endpoint:
            _, writer = await dial(endpoint, tls=files.client() if tls else None)
            await until(lambda: endpoint.connections > 0)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
            await asyncio.wait_for(emptied(endpoint), HANG)
            writer.transport.abort()

    asyncio.run(scenario())


@pytest.mark.parametrize("tls", [False, True])
def test_unread_answers_are_bounded(files: Files, tls: bool) -> None:
    """Of three clients that do not read an answer of 32 MB, the first is disconnected: 64 MiB are the limit."""

    async def scenario() -> None:
        web_config = WebConfig(files.with_tls()) if tls else None
        async with serving(
            Large(), settings(shutdown_timeout_seconds=SOON), web_config=web_config
        ) as endpoint:
            crowd = [await dial(endpoint, tls=files.client() if tls else None) for _ in range(3)]
            await until(lambda: endpoint.connections >= 3)
            for _, writer in crowd:
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
            await until(lambda: endpoint.connections == 2)
            for _, writer in crowd:
                writer.transport.abort()

    asyncio.run(scenario())


def test_a_slow_reader_that_reads_is_served() -> None:
    """The write timeout limits a stall, not the whole transfer: a client that keeps reading gets a large answer."""

    async def scenario() -> None:
        async with serving(Large(), settings(write_timeout_seconds=5)) as endpoint:
            reply = await ask(endpoint)
            assert reply.headers["content-length"] == str(len(reply.body))

    asyncio.run(scenario())


# ------------------------------------------------------------ any bytes at all

_LINES = st.sampled_from(
    [
        b"GET /metrics HTTP/1.1\r\n",
        b"HEAD / HTTP/1.0\r\n",
        b"POST /-/reload HTTP/1.1\r\n",
        b"GET http://user:secret@other/metrics HTTP/1.1\r\n",
        b"CONNECT other:443 HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics?name[]=%ff%zz&name[]=%00 HTTP/1.1\r\n",
        b"Host: test\r\n",
        b"Host: \xff\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: close\r\n",
        b"Accept: \xff\xfe;q=\xfd\r\n",
        b"Accept-Encoding: gzip;q=1e400\r\n",
        b"Authorization: Basic ====\r\n",
        b"X-Prometheus-Scrape-Timeout-Seconds: 1e-400\r\n",
        b" folded\r\n",
        b": nameless\r\n",
        b"\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\xff\n\r",
    ]
)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(_LINES | st.binary(max_size=40), max_size=8).map(b"".join), min_size=30, max_size=30)
)
@example([b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + b"x" * 999_999])
@example([b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\n"] * 2)
@example([b"OPTIONS * HTTP/1.1\r\n\r\n", b"CONNECT a HTTP/1.1\r\n\r\n", b"GET //[ HTTP/1.1\r\n\r\n"])
def test_any_bytes_at_all(streams: list[bytes]) -> None:
    """Any bytes cause no logged error, no hang and no leftover connection, and the next scrape succeeds."""
    records: list[logging.LogRecord] = []
    lost: list[dict[str, Any]] = []

    class Recording(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Recording(logging.WARNING)

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: lost.append(context))
        seconds = HANG / 6
        options = settings(header_timeout_seconds=seconds, keepalive_timeout_seconds=seconds)
        async with serving(Numbers(), options) as endpoint:
            talks = [asyncio.create_task(talk(endpoint, stream)) for stream in streams]
            for busy in (SOON, 1.0, 1.0):
                _, talking = await asyncio.wait(talks, timeout=busy)
                if talking:
                    await skip(seconds)
            await asyncio.gather(*talks)
            reply = await ask(endpoint)
            assert (reply.status, b"things_total" in reply.body) == (200, True)
            await emptied(endpoint)

    logging.getLogger().addHandler(handler)
    try:
        run(scenario())
    finally:
        logging.getLogger().removeHandler(handler)
    assert messages_of_this_test(records) == []
    assert lost == []
