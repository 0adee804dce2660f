# SPDX-License-Identifier: Apache-2.0
"""Slow, simultaneous, abandoned and failing scrapes: how they share collections, and the answer to each."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.sidecar.config import Web
from sqlalchemy_pool_exporter.sidecar.web import app as web
from tests.support.wire import HANG, Gated, Numbers, ask, dial, scrapes, serving, settings, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric


def test_collecting_leaves_the_event_loop_alone() -> None:
    """A collection runs in its own thread, so other pages answer during a slow one."""

    async def scenario() -> None:
        gated = Gated()
        async with scrapes(gated) as endpoint:
            scrape = asyncio.create_task(ask(endpoint))
            await gated.has_begun()
            assert (await ask(endpoint, "/-/healthy")).status == 200
            gated.gate.set()
            assert (await scrape).status == 200
        assert threading.current_thread().name not in gated.threads

    asyncio.run(scenario())


@pytest.mark.parametrize("said", ["0.3", "1e-3"])
def test_scrape_timeout_of_prometheus(said: str) -> None:
    """A scrape that would run past the timeout Prometheus sent gets 503; the next one succeeds."""

    async def scenario() -> None:
        gated = Gated()
        async with scrapes(gated) as endpoint:
            late = await ask(endpoint, headers={"X-Prometheus-Scrape-Timeout-Seconds": said})
            assert late.status == 503
            gated.gate.set()
            assert (await ask(endpoint, headers={"X-Prometheus-Scrape-Timeout-Seconds": "60"})).status == 200

    asyncio.run(scenario())


def test_scrape_timeout_without_header() -> None:
    """Without a timeout header, the configured timeout applies."""

    async def scenario() -> None:
        options = settings(scrape_timeout_seconds=0.05, scrape_timeout_offset_seconds=0)
        async with scrapes(Gated(), options) as endpoint:
            assert (await ask(endpoint)).status == 503

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("10", 9.75),
        ("100", 30.0),
        ("0.3", 0.15),
        ("", 30.0),
        ("nonsense", 30.0),
        ("-1", 30.0),
        ("0", 30.0),
        ("nan", 30.0),
        ("inf", 30.0),
    ],
)
def test_budget_of_a_scrape(header: str, expected: float) -> None:
    """The sent timeout, less the offset, applies up to the configured one; an invalid timeout is ignored."""
    assert expected == web.scrape_timeout(header, Web())


def test_scrapes_share_and_are_never_stale() -> None:
    """Twenty scrapes that arrive during a collection share the next one, so none shows older values."""

    async def scenario() -> None:
        gated = Gated()
        async with scrapes(gated) as endpoint:
            first = asyncio.create_task(ask(endpoint))
            await gated.has_begun()
            others = [asyncio.create_task(ask(endpoint, "/metrics?name[]=things")) for _ in range(20)]
            await until(lambda: endpoint.requests >= 21)
            gated.gate.set()
            assert b"things_total 1.0" in (await first).body
            assert all(b"things_total 2.0" in reply.body for reply in await asyncio.gather(*others))
        assert gated.collections == 2

    asyncio.run(scenario())


def test_a_scrape_that_gave_up_leaves_the_others() -> None:
    """A scraper that times out or disconnects does not cancel the shared collection."""

    async def scenario() -> None:
        gated = Gated()
        async with scrapes(gated) as endpoint:
            patient = [asyncio.create_task(ask(endpoint))]
            await gated.has_begun()
            patient.append(asyncio.create_task(ask(endpoint)))
            await until(lambda: endpoint.requests >= 2)
            hurried = ask(endpoint, headers={"X-Prometheus-Scrape-Timeout-Seconds": "0.05"})
            assert (await hurried).status == 503
            _, writer = await dial(endpoint)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
            await writer.drain()
            writer.transport.abort()
            gated.gate.set()
            assert [reply.status for reply in await asyncio.gather(*patient)] == [200, 200]
            assert (await ask(endpoint)).status == 200

    asyncio.run(scenario())


def test_different_scrapes_are_bounded() -> None:
    """While a collection hangs, scrapes with different filters wait up to a bound, and the rest get 503."""

    async def scenario() -> None:
        gated = Gated()
        async with scrapes(gated) as endpoint:
            first = asyncio.create_task(ask(endpoint))
            await gated.has_begun()
            many = [asyncio.create_task(ask(endpoint, f"/metrics?name[]=n{i}")) for i in range(100)]
            done, _ = await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED, timeout=HANG)
            assert {task.result().status for task in done} == {503}
            gated.gate.set()
            statuses = sorted([(await task).status for task in many])
            assert 0 < statuses.count(200) < 100
            assert set(statuses) == {200, 503}
            assert (await first).status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ValueError, TimeoutError, StopIteration, KeyboardInterrupt])
def test_a_collector_that_fails(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """A failing collector gives a logged error and a 500 without the error's text; the next scrape succeeds."""

    class Failing(Numbers):
        def collect(self) -> Iterator[Metric]:
            if not self.collections:
                self.collections += 1
                raise error("password=hunter2")
            return super().collect()

    async def scenario() -> None:
        async with serving(Failing()) as endpoint:
            reply = await ask(endpoint)
            assert (reply.status, b"hunter2" in reply.body) == (500, False)
            assert (await ask(endpoint)).status == 200

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "GET /metrics failed" in caplog.text
