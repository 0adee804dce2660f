# SPDX-License-Identifier: Apache-2.0
"""What the tests of the recipes share: their database's URL, and requests that follow no redirect."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.samples import key, read_samples
from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from tests.support.pg import Server
    from tests.support.samples import Samples

NAME = "orders"  # of the pool and of the application in each recipe
METRICS = "-- metrics --\n"
PRINT_METRICS = f"""
import prometheus_client
print({METRICS!r} + prometheus_client.generate_latest().decode(), end="")
"""


def database_url(server: Server, driver: str) -> str:
    """Return a URL without an application name, which a recipe sets by itself."""
    return f"postgresql+{driver}://{server.user}@{server.host}:{server.port}/{server.database}"


def get(url: str) -> tuple[int, str]:
    """Return status and body of the first answer; a redirect is one."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=SECONDS)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(url: str) -> Samples:
    """Return the samples of an application's /metrics."""
    status, body = get(f"{url}/metrics")
    assert 200 == status, body
    return read_samples(body)


def checkouts(samples: Samples, pool: str = NAME) -> float:
    """Return how many connections of a pool were handed out; 0 if the pool is not shown."""
    return samples.get(key("checkouts_total", pool=pool), 0.0)


def run_recipe(program: str, **environment: str) -> tuple[str, Samples]:
    """Run a program that imports a recipe, in a process of its own; return its output and its metrics at the end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{textwrap.dedent(program)}\n{PRINT_METRICS}"],
        capture_output=True,
        check=False,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )
    assert 0 == done.returncode, done.stderr
    said, _, metrics = done.stdout.partition(METRICS)
    return said, read_samples(metrics)
