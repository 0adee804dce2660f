# SPDX-License-Identifier: Apache-2.0
"""Runs a real Prometheus on real pools with incidents, and checks that the dashboards' queries find data."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import psycopg

from tests.support import grafana
from tests.support.paths import ROOT
from tests.support.prometheus import Prometheus, scraping
from tests.support.sidecar import Sidecar, run
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from tests.support.pg import Server

INTERVAL = 1  # seconds between two scrapes
RATE_INTERVAL = f"{4 * INTERVAL}s"  # Grafana's $__rate_interval for steps of up to three scrapes
SIDECAR, IN_APP = "shop", "kiosk"  # the jobs: workers behind a sidecar, and a worker with its own endpoint
OF_SHOP, OF_KIOSK = "orders,reports,mail", "tickets,visits,news"  # their pools
# These alerts must fire within a minute, so that the tables of alerts have rows. Other tests cover the rules.
THRESHOLDS = {
    "leaked_for": "0s",
    "starvation_window": "10s",
    "starvation_for": "0s",
    "starvation_timeout_for": "0s",
}


class Run(NamedTuple):
    """A Prometheus that has scraped the pools, the Unix times of the start and the end, and how its targets end."""

    prometheus: Prometheus
    start: float
    end: float
    lose_targets: Callable[[], None]


class Worker:
    """A process of ``tests.support.board_worker``."""

    def __init__(self, url: str, directory: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.board_worker", url, *arguments],
            cwd=ROOT,
            env={**os.environ, "SQLALCHEMY_POOL_EXPORTER_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # SQLAlchemy reports each leak with a stack
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def watched(server: Server, directory: Path, seconds: float) -> Iterator[Run]:
    """Run three workers behind a sidecar and one with its own endpoint for ``seconds``, then yield the run."""
    url = server.url("postgresql+psycopg", application_name="NAME").replace("NAME", "%s")
    shared, own = directory / "shared", directory / "own"
    for path in (shared, own):
        path.mkdir(parents=True)
    _limit_idle_sessions(server)
    with ExitStack() as stack:
        targets = stack.enter_context(ExitStack())
        config = directory / "exporter.yaml"
        config.write_text(json.dumps(_config(server, shared)))
        sidecar = targets.enter_context(Sidecar("--config", config))
        first = targets.enter_context(Worker(url, shared, OF_SHOP))
        targets.enter_context(Worker(url, shared, OF_SHOP, "--calm"))
        lost = targets.enter_context(Worker(url, shared, OF_SHOP, "--calm"))
        alone = targets.enter_context(Worker(url, own, OF_KIOSK, "--serve"))
        done = run(
            "rules", "--out", directory, *(f"--set={name}={value}" for name, value in THRESHOLDS.items())
        )
        assert done.returncode == 0, done.stderr
        of_sidecar, of_application = sidecar.url.removeprefix("http://"), f"127.0.0.1:{alone.port}"
        scrapes = scraping(
            {SIDECAR: [of_sidecar], IN_APP: [of_application]},
            interval=f"{INTERVAL}s",
            rules=[Path(line) for line in done.stdout.splitlines()],
            instances={of_sidecar: f"{SIDECAR}-1", of_application: f"{IN_APP}-1"},
        )
        prometheus = stack.enter_context(Prometheus(scrapes, directory / "prometheus"))
        assert eventually(lambda: len(prometheus.query("sqlalchemy_pool_exporter_build_info")) == 2)
        start = time.time()
        time.sleep(seconds - 5)
        lost.kill()
        time.sleep(5)
        assert first.port == 0
        yield Run(prometheus, start, time.time(), targets.close)


def _limit_idle_sessions(server: Server) -> None:
    """Set the server's idle timeouts, longer than a run, because the dashboards show their metrics."""
    with psycopg.connect(server.dsn("the administrator"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET idle_session_timeout = '10min'")
        connection.execute("ALTER SYSTEM SET idle_in_transaction_session_timeout = '2min'")
        connection.execute("SELECT pg_reload_conf()")


def _config(server: Server, shared: Path) -> dict[str, object]:
    return {
        "segments": {"directory": str(shared)},
        "databases": [
            {
                "name": "main",
                "dsn": server.dsn("the probe"),
                "pools": ["orders", "reports", "tickets", "visits"],
                "interval_seconds": 3,
                "timeout_seconds": 3,  # the machine may be busy
            }
        ],
    }


def check_panels(
    prometheus: Prometheus,
    start: float,
    end: float,
    *,
    chosen: Mapping[str, str | list[str]] | None = None,
    names: Collection[str] = grafana.NAMES,
    step: float = INTERVAL,
    rate_interval: str = RATE_INTERVAL,
) -> list[str]:
    """Return the queries of the dashboards' panels, variables and annotations that find no number in a time range.

    ``chosen`` has the values of the variables that are not at All; ``rate_interval`` must be at least four times the
    scrape interval.
    """
    silent = []
    for name in names:
        board = grafana.load(name)
        values = grafana.with_options(
            board,
            chosen or {},
            lambda expr: [one.labels for one in prometheus.query(expr, time=end)],
            rate_interval=rate_interval,
            span=f"{end - start:.0f}s",
        )
        asked = [(str(target), target.expr, target.is_instant) for target in grafana.targets(board)]
        asked += [(one["name"], one["expr"], False) for one in board["annotations"]["list"]]
        for title, template, is_instant in asked:
            expr = grafana.interpolated(template, values, board, rate_interval=rate_interval)
            # One number in the range is enough, because the series of an occasional event is absent at other times.
            numbers = (
                [sample.value for sample in prometheus.query(expr, time=end)]
                if is_instant
                else [
                    value for one in prometheus.query_range(expr, start, end, step) for _, value in one.points
                ]
            )
            if all(map(math.isnan, numbers)):
                silent.append(f"{name}: {title}: {expr}")
        for one in grafana.variables(board):
            if grafana.is_hidden(one):
                continue
            selector, label = grafana.variable_selector(one["query"])
            selector = grafana.interpolated(selector, values, board, rate_interval=rate_interval)
            if not any(labels.get(label) for labels in prometheus.series(selector, start, end)):
                silent.append(f"{name}: ${one['name']}: {one['query']}")
    return silent
