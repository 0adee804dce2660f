# SPDX-License-Identifier: Apache-2.0
"""Negotiation: a scrape's headers decide the format and the encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.negotiation import Wanted, accepts_gzip, choose_format
from tests.support.scrapers import PROMETHEUS_2_42, PROMETHEUS_3, PROMETHEUS_TEXT_1, PROMETHEUS_TEXT_FIRST

TEXT = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1 = "text/plain; version=1.0.0; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
UTF8 = "; escaping=allow-utf-8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text"),
        ("*/*", "text"),
        ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "text"),
        (PROMETHEUS_2_42, "openmetrics"),
        (PROMETHEUS_3, "openmetrics"),
        (PROMETHEUS_TEXT_FIRST, "text"),
        (PROMETHEUS_TEXT_1, "text"),
        ("application/openmetrics-text", "openmetrics"),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0", "openmetrics"),
        ('application/openmetrics-text; version="1.0.0"', "openmetrics"),
        ("application/*", "openmetrics"),
        ("text/*;q=0.5, application/*;q=0.6", "openmetrics"),
        ("application/openmetrics-text, */*", "openmetrics"),
        ("text/plain, application/openmetrics-text", "text"),
        ("application/openmetrics-text;q=0", "text"),
        ("application/openmetrics-text;version=0.0.1", "text"),
        ("application/openmetrics-text;version=2.0.0,*/*;q=0.1", "text"),
        ("text/plain;q=0, application/openmetrics-text;q=0.001", "openmetrics"),
        (
            "text/plain;version=0.0.4;q=0.2, text/plain;q=0.9, application/openmetrics-text;q=0.5",
            "openmetrics",
        ),
        ("application/openmetrics-text;q=nan, text/plain;q=0.1", "text"),
        ("application/openmetrics-text;q=7, text/plain;q=0.1", "text"),
        ("image/png", "text"),
        (";;;,,=;q", "text"),
    ],
)
def test_format_follows_accept(accept: str, expected: str) -> None:
    """The highest q wins, then the most specific media range; text is the fallback, never a 406."""
    assert expected == choose_format(accept).kind


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("identity, gzip;q=0.5", False),
        ("identity;q=0.5, gzip", True),
        ("identity", False),
        ("br", False),
        ("gzip;q=x", False),
    ],
)
def test_gzip_follows_accept_encoding(accept_encoding: str, *, expected: bool) -> None:
    """Gzip is used if the client accepts it with a q not below that of identity."""
    assert expected is accepts_gzip(accept_encoding)


@given(st.text())
def test_any_accept_is_understood_somehow(header: str) -> None:
    """No header value, however malformed, makes negotiation fail."""
    assert choose_format(header).kind in ("text", "openmetrics")
    assert accepts_gzip(header) in (True, False)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("text/plain", TEXT),
        ("text/plain;version=1.0.0", TEXT_1),
        ("text/plain;version=1.0.0;q=0.5, text/plain;version=0.0.4;q=0.5", TEXT),
        ("text/plain;version=0.0.4;escaping=allow-utf-8", TEXT),
        (PROMETHEUS_TEXT_1, TEXT_1 + UTF8),
        ("text/plain;version=1.0.0;escaping=dots", TEXT_1),
        (PROMETHEUS_2_42, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS + UTF8),
        ("application/openmetrics-text;version=1.0.0;escaping=underscores", OPENMETRICS),
    ],
)
def test_content_type(accept: str, expected: str) -> None:
    """The content type names the version; it has ``escaping=allow-utf-8`` only if the client asked for that."""
    assert expected == choose_format(accept).content_type


def test_headers_of_the_answer() -> None:
    """The response headers name the format and the encoding, and Vary lists Accept and Accept-Encoding."""
    vary = {"Vary": "Accept, Accept-Encoding"}
    assert {"Content-Type": TEXT, **vary} == Wanted.of("", "").headers
    assert {"Content-Type": TEXT, "Content-Encoding": "gzip", **vary} == Wanted.of("", "gzip").headers


def test_names() -> None:
    """Names form a set; an empty name, as in ``?name[]=``, selects nothing, so all families are shown."""
    assert Wanted.of("", "", ["a", "b", "a"]) == Wanted.of("", "", ["b", "a"])
    assert Wanted.of("", "", [""]) == Wanted.of("", "")
