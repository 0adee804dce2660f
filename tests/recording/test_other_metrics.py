# SPDX-License-Identifier: Apache-2.0
"""Beside the application's own metrics: of the same names, and in prometheus_client's multiprocess mode."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import connect
from tests.support.logs import messages_of_this_test
from tests.support.samples import Exposition

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.metrics import MetricWrapperBase


@pytest.mark.parametrize("first", ["theirs", "ours"])
@pytest.mark.parametrize(
    ("kind", "name", "missing"),
    [
        (Gauge, "sqlalchemy_pool_size", "size"),
        (Gauge, "sqlalchemy_pool_checkouts_total", "checkouts_total"),
        (Counter, "sqlalchemy_pool_checkouts", "checkouts_total"),
        (Histogram, "sqlalchemy_pool_hold_seconds", "hold_seconds_count"),
        (Gauge, "sqlalchemy_pool_hold_seconds_sum", "hold_seconds_count"),
    ],
)
def test_a_metric_of_the_applications_own(
    kind: type[MetricWrapperBase], name: str, missing: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever comes first, nothing raises; theirs stays, ours of that name is left out, and the log says so once."""
    registry = CollectorRegistry()
    pool = QueuePool(connect, pool_size=3)
    with caplog.at_level(logging.WARNING):
        if first == "theirs":
            kind(name, "Its own.", registry=registry)
        with instrument(pool, name="p", registry=registry):
            if first == "ours":
                kind(name, "Its own.", registry=registry)
            for _ in range(2):
                exposition = Exposition(registry)
            assert exposition.get(missing, "p") is None
            assert exposition.value("max_overflow", "p") == 10
            types = [line for line in exposition.text.splitlines() if line.startswith("# TYPE")]
            assert len(types) == len(set(types))
            assert "Its own." in exposition.text
    (message,) = messages_of_this_test(caplog.records)
    assert "instrument(engine, registry=…)" in message
    own = CollectorRegistry()
    with instrument(pool, name="p", registry=own):
        assert Exposition(own).get(missing, "p") is not None


# An application as prometheus_client's documentation has it: for each scrape a new registry of all processes.
MULTIPROCESS = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from prometheus_client import CollectorRegistry, Counter, generate_latest, multiprocess
from sqlalchemy.pool import QueuePool
from sqlalchemy_pool_exporter import instrument, wsgi_app
from tests.support.fakes import connect

Counter("requests", "Of the application.").inc()
pools = [QueuePool(connect) for _ in range(2)]
"""


def multiprocess(tmp_path: Path, program: str) -> str:
    """Return what a program in multiprocess mode prints."""
    return subprocess.run(
        [sys.executable, "-c", MULTIPROCESS + program],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    ).stdout


def test_multiprocess_mode(tmp_path: Path) -> None:
    """The log says once that the application's page does not show pools, and how to get them; the mount shows them."""
    said = multiprocess(
        tmp_path,
        """
for number, pool in enumerate(pools):
    instrument(pool, name=f"p{number}")
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
page = generate_latest(registry).decode()
assert "requests_total 1.0" in page and "sqlalchemy_pool" not in page, page
environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/pools"}
body = b"".join(wsgi_app()(environ, lambda *_: None)).decode()
assert 'sqlalchemy_pool_checkouts_total{pool="p1"} 0.0' in body
""",
    )
    assert said.count("does not show pools") == 1
    assert said.count("\n") == 1
    for remedy in ("wsgi_app()", "serve()", "SQLALCHEMY_POOL_EXPORTER_DIR", "instrument(engine, registry=…)"):
        assert remedy in said


def test_multiprocess_mode_with_the_registry_of_the_page(tmp_path: Path) -> None:
    """An application that passes the registry of its page sees its pools there, and nothing is said."""
    said = multiprocess(
        tmp_path,
        """
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
instrument(pools[0], name="p", registry=registry)
page = generate_latest(registry).decode()
assert "requests_total 1.0" in page and 'sqlalchemy_pool_checkouts_total{pool="p"} 0.0' in page, page
""",
    )
    assert said == ""
