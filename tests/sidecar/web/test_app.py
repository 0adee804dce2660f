# SPDX-License-Identifier: Apache-2.0
"""The sidecar's pages: what a scraper, a browser and a probe of Kubernetes get, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import re

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sqlalchemy_pool_exporter.errors import ConfigError
from tests.support.scrapers import PROMETHEUS_3
from tests.support.wire import Numbers, ask, parsed, serving, settings, talk

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


# ------------------------------------------------------------------- formats


def test_text_is_the_default() -> None:
    """A client without an Accept header gets the registry's metrics in the text format 0.0.4."""

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
    """The gzipped response has the same content as the plain one; `Vary` names the request header."""

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
    """HEAD answers with the status, type and length of GET, and without a body."""

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
    """``name[]`` keeps the families and samples of that name; an unknown name gives a valid, empty exposition."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            reply = await ask(
                endpoint, f"/metrics{query}", headers={"Accept": "application/openmetrics-text"}
            )
        found = {s.name for f in parse_openmetrics(reply.body.decode()) for s in f.samples}
        assert expected == found

    asyncio.run(scenario())


# --------------------------------------------------------------------- pages


def test_page() -> None:
    """The page links every path of the endpoint, and its own files are served."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            reply = await ask(endpoint, "/")
            text = reply.body.decode()
            files = re.findall(r'(?:href|src)="(assets/[^"]+)"', text)
            served = [await ask(endpoint, f"/{path}") for path in files]
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert reply.headers["content-security-policy"].startswith("default-src 'none'")
        for href in ("metrics", "api/v1/pools", "-/healthy", "-/ready"):
            assert f'<a href="{href}"' in text
        assert ["image/svg+xml", "text/css; charset=utf-8", "text/javascript; charset=utf-8"] == [
            one.headers["content-type"] for one in served
        ]
        assert {200} == {one.status for one in served}

    asyncio.run(scenario())


def test_telemetry_path() -> None:
    """The metrics are served at the configured path, which the landing page links."""

    async def scenario() -> None:
        async with serving(Numbers(), settings(telemetry_path="/pool/metrics")) as endpoint:
            assert (await ask(endpoint, "/pool/metrics")).status == 200
            assert (await ask(endpoint, "/metrics")).status == 404
            assert b'href="pool/metrics"' in (await ask(endpoint, "/")).body

    asyncio.run(scenario())


def test_health_and_readiness() -> None:
    """`/-/healthy` and `/-/ready` answer 200 while the exporter runs."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            for path, text in (("/-/healthy", b"healthy\n"), ("/-/ready", b"ready\n")):
                reply = await ask(endpoint, path)
                assert (200, text) == (reply.status, reply.body)

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_reload(method: str) -> None:
    """If it is enabled, POST and PUT each reload once."""
    reloads: list[str] = []

    async def reload() -> None:
        reloads.append(method)

    async def scenario() -> None:
        async with serving(Numbers(), settings(enable_lifecycle=True), reload=reload) as endpoint:
            assert (await ask(endpoint, "/-/reload", method=method)).status == 200

    asyncio.run(scenario())
    assert reloads == [method]


def test_reload_is_off_unless_enabled() -> None:
    """By default a reload over HTTP is refused with 403."""

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
    """An unknown path gets 404, a wrong method 405 with the allowed ones; neither answer repeats the path."""

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
    """No answer, even to a malformed request, names Python or aiohttp."""

    async def scenario() -> None:
        async with serving(Numbers()) as endpoint:
            raw = await talk(endpoint, sent)
        assert b"aiohttp" not in raw
        assert b"Python" not in raw
        assert parsed(raw).headers.get("server", "sqlalchemy-pool-exporter") == "sqlalchemy-pool-exporter"

    asyncio.run(scenario())
