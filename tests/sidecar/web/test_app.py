# SPDX-License-Identifier: Apache-2.0
"""The sidecar's pages: what a scraper, a browser and a probe of Kubernetes get, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import Web
from sqlalchemy_pool_exporter.sidecar.sources import Address
from sqlalchemy_pool_exporter.sidecar.web import app as web
from tests.support.scrapers import PROMETHEUS_3
from tests.support.wire import HANG, Gated, Numbers, ask, dial, parsed, rest, serving, settings, talk, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from prometheus_client.metrics_core import Metric

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


# ------------------------------------------------------------------- formats


def test_text_is_the_default() -> None:
    """A client without an Accept header gets the text format 0.0.4, and what the registry holds."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            reply = await ask(endpoint)
        assert (reply.status, reply.headers["content-type"]) == (200, TEXT)
        values = {s.name: s.value for f in parse_text(reply.body.decode()) for s in f.samples}
        assert values["things_total"] == 1

    asyncio.run(scenario())


def test_openmetrics_is_complete() -> None:
    """The OpenMetrics exposition parses as OpenMetrics and ends with `# EOF`."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            reply = await ask(endpoint, headers={"Accept": PROMETHEUS_3})
        assert (reply.status, reply.headers["content-type"]) == (200, OPENMETRICS + "; escaping=allow-utf-8")
        assert {family.name for family in parse_openmetrics(reply.body.decode())} == {"things", "level_ratio"}
        assert reply.body.endswith(b"# EOF\n")

    asyncio.run(scenario())


def test_a_real_registry_is_served() -> None:
    """A CollectorRegistry of prometheus_client is served as it is."""
    registry = CollectorRegistry()
    Counter("seen", "Seen.", registry=registry).inc(3)

    async def scenario() -> bytes:
        async with serving(registry) as endpoint:
            return (await ask(endpoint)).body

    assert b"\nseen_total 3.0\n" in asyncio.run(scenario())


def test_gzip_is_the_same_text() -> None:
    """The gzipped response has the same content as the plain one; `Vary` names the header."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            packed = await ask(endpoint, headers={"Accept-Encoding": "gzip"})
            plain = await ask(endpoint)
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.headers["vary"] == plain.headers["vary"] == "Accept, Accept-Encoding"
        assert gzip.decompress(packed.body).replace(b"1.0", b"2.0") == plain.body

    asyncio.run(scenario())


def test_head_is_get_without_body() -> None:
    """HEAD answers as GET does, length included, and sends nothing of it."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            for path in ("/metrics", "/", "/-/healthy", "/-/ready"):
                head, get = await ask(endpoint, path, method="HEAD"), await ask(endpoint, path)
                assert (head.status, head.body) == (200, b"")
                assert head.headers["content-length"] == str(len(get.body))
                assert head.headers["content-type"] == get.headers["content-type"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"things_total", "level_ratio"}),
        ("?name[]=things", {"things_total"}),
        ("?name[]=things_total", {"things_total"}),
        ("?name%5B%5D=level_ratio", {"level_ratio"}),
        ("?name[]=things_total&name[]=level_ratio", {"things_total", "level_ratio"}),
        ("?name[]=other", set()),
        ("?other=things", {"things_total", "level_ratio"}),
    ],
)
def test_name_filters(query: str, expected: set[str]) -> None:
    """``name[]`` keeps families and samples of that name; what there is none of leaves a valid, empty exposition."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            reply = await ask(
                endpoint, f"/metrics{query}", headers={"Accept": "application/openmetrics-text"}
            )
        found = {s.name for f in parse_openmetrics(reply.body.decode()) for s in f.samples}
        assert expected == found

    asyncio.run(scenario())


# ------------------------------------------------------- collecting and time


@asynccontextmanager
async def scrapes(gated: Gated, options: Web | None = None) -> AsyncIterator[Any]:
    """Serve ``gated`` and let it go at the end, so that nothing is left behind."""
    try:
        async with serving(gated, options) as endpoint:
            yield endpoint
    finally:
        gated.gate.set()


def test_collecting_leaves_the_event_loop_alone() -> None:
    """While a collection takes its time other pages answer; it runs in a thread of its own."""

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
    """A scrape that would run past the timeout Prometheus sent gets 503; the next one is whole again."""

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
    """The timeout sent, less the offset, never more than configured, never nothing; nonsense is ignored."""
    assert expected == web.scrape_timeout(header, Web())


def test_scrapes_share_and_are_never_stale() -> None:
    """Twenty scrapes that arrive during a collection share the next one, so none shows what was before it."""

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
    """A scraper that times out or goes away does not take the shared collection with it."""

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
    """Filters by the hundred while a collection hangs are answered 503, not kept."""

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
    """A failing collector is a 500 that says nothing of it, an error in the log that does; the server goes on."""

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


# --------------------------------------------------------------------- pages


def test_landing_page() -> None:
    """The landing page links every page, escapes what it is given, and lets a browser load nothing from elsewhere."""
    links = [web.Link("/board?a=1&b=2", "<Board>", 'who "holds"')]

    async def scenario() -> None:
        async with serving(Numbers(), links=links, version="1.0<script>") as endpoint:
            reply = await ask(endpoint, "/")
        text = reply.body.decode()
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert reply.headers["content-security-policy"].startswith("default-src 'none'")
        assert reply.headers["x-content-type-options"] == "nosniff"
        for href in ("/metrics", "/-/healthy", "/-/ready", "/board?a=1&amp;b=2"):
            assert f'<a href="{href}">' in text
        assert "&lt;Board&gt;</a>: who &quot;holds&quot;" in text
        assert "1.0&lt;script&gt;" in text
        assert "<script" not in text

    asyncio.run(scenario())


def test_telemetry_path() -> None:
    """The metrics are where the configuration says, and the landing page knows."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(telemetry_path="/pool/metrics")) as endpoint:
            assert (await ask(endpoint, "/pool/metrics")).status == 200
            assert (await ask(endpoint, "/metrics")).status == 404
            assert b'href="/pool/metrics"' in (await ask(endpoint, "/")).body

    asyncio.run(scenario())


def test_health_and_readiness() -> None:
    """Healthy means running; ready is what the exporter says it is, at every request."""
    answers = iter([False, True])

    async def scenario() -> None:
        async with serving(Numbers(), ready=lambda: next(answers)) as endpoint:
            assert (await ask(endpoint, "/-/healthy")).body == b"healthy\n"
            assert (await ask(endpoint, "/-/ready")).status == 503
            assert (await ask(endpoint, "/-/ready")).status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_reload(method: str) -> None:
    """Where it is enabled POST and PUT reload, once each."""
    reloads: list[str] = []

    async def reload() -> None:
        reloads.append(method)

    async def scenario() -> None:
        async with serving(Numbers(), settings(enable_lifecycle=True), reload=reload) as endpoint:
            assert (await ask(endpoint, "/-/reload", method=method)).status == 200

    asyncio.run(scenario())
    assert reloads == [method]


def test_reload_is_off_unless_enabled() -> None:
    """By default a reload over HTTP is 403 and nothing happens."""

    async def reload() -> None:
        pytest.fail("reloaded")

    async def scenario() -> None:
        async with serving(Numbers(), reload=reload) as endpoint:
            assert (await ask(endpoint, "/-/reload", method="POST")).status == 403
            assert (await ask(endpoint, "/-/reload", method="PUT")).status == 403

    asyncio.run(scenario())


def test_reload_of_a_bad_configuration() -> None:
    """A reload with a wrong configuration gets a 500 that lists the faults."""

    async def reload() -> None:
        message = "exporter.yaml: 1 fault\n  line 3: web: unknown key"
        raise ConfigError(message)

    async def scenario() -> None:
        async with serving(Numbers(), settings(enable_lifecycle=True), reload=reload) as endpoint:
            reply = await ask(endpoint, "/-/reload", method="POST")
        assert (reply.status, b"line 3: web: unknown key" in reply.body) == (500, True)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/metrics", 405, {"GET", "HEAD"}),
        ("DELETE", "/", 405, {"GET", "HEAD"}),
        ("OPTIONS", "/metrics", 405, {"GET", "HEAD"}),
        ("PROPFIND", "/-/ready", 405, {"GET", "HEAD"}),
        ("GET", "/-/reload", 405, {"POST", "PUT"}),
        ("GET", "/metrics/", 404, None),
        ("GET", "//metrics", 404, None),
        ("GET", "/%2e%2e/metrics", 404, None),
        ("POST", "/nowhere", 404, None),
        ("GET", "/<script>", 404, None),
    ],
)
def test_wrong_method_or_path(method: str, path: str, status: int, allow: set[str] | None) -> None:
    """Unknown paths are 404, wrong methods 405 with those that are allowed; neither repeats what was asked."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            reply = await ask(endpoint, path, method=method)
        assert status == reply.status
        assert allow == (set(reply.headers["allow"].split(",")) if allow else None)
        assert path.encode() not in reply.body or path == "/"
        assert b"script" not in reply.body

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: test\r\nExpect: more\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"no http at all\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
def test_no_versions_are_told(sent: bytes) -> None:
    """No answer, not even to what is no request, tells which Python and which server is behind it."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            raw = await talk(endpoint, sent)
        assert b"aiohttp" not in raw
        assert b"Python" not in raw
        assert parsed(raw).headers.get("server", "sqlalchemy-pool-exporter") == "sqlalchemy-pool-exporter"

    asyncio.run(scenario())


# --------------------------------------------------------------- the handle


def test_the_handle() -> None:
    """A free port is chosen for 0; the handle tells it, its URL and what goes on."""

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
            while True:  # the socket is closed within a turn or two of the loop
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
    """Once closed, the same port can be listened on again at once."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            assert (await ask(endpoint)).status == 200
        again = Web(listen_address=Address("127.0.0.1", endpoint.port))
        async with serving(Numbers(), again) as second:
            assert (await ask(second)).status == 200

    asyncio.run(scenario())
