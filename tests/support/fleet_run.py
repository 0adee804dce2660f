# SPDX-License-Identifier: Apache-2.0
"""Processes with many pools behind a sidecar, before a real Prometheus: healthy, or with some that are stuck."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.board_run import INTERVAL, THRESHOLDS, Run
from tests.support.paths import ROOT
from tests.support.prometheus import Prometheus, scraping
from tests.support.sidecar import Sidecar, run
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.pg import Server

JOB = "shop"
WORDS = ("orders", "payments", "search", "reports", "mail", "stock", "prices", "users")


def names(number: int) -> list[str]:
    """Return names of so many pools."""
    return [
        WORDS[at % len(WORDS)] + (f"-{at // len(WORDS):02}" if number > len(WORDS) else "")
        for at in range(number)
    ]


@contextmanager
def fleet(
    server: Server,
    directory: Path,
    pools: Sequence[str],
    seconds: float,
    *,
    stuck: Sequence[str] = (),
    interval: int = INTERVAL,
) -> Iterator[Run]:
    """Run the pools for so many seconds, each in two processes, then yield the run.

    Prometheus scrapes every ``interval`` seconds, which is the time that a scrape may take, too.
    """
    shared = directory / "shared"
    shared.mkdir(parents=True)
    config = directory / "exporter.yaml"
    config.write_text(json.dumps(_config(server, shared, pools)))
    done = run("rules", "--out", directory, *(f"--set={name}={value}" for name, value in THRESHOLDS.items()))
    assert done.returncode == 0, done.stderr
    # A server has not enough connections for hundreds of pools.
    url = (
        server.url("postgresql+psycopg", application_name="NAME") if len(pools) <= len(WORDS) else "sqlite://"
    )
    with ExitStack() as stack:
        targets = stack.enter_context(ExitStack())
        sidecar = targets.enter_context(Sidecar("--config", config))
        for _ in range(2):
            targets.enter_context(_process(shared, url, pools, stuck))
        address = sidecar.url.removeprefix("http://")
        scrapes = scraping(
            {JOB: [address]},
            interval=f"{interval}s",
            rules=[Path(line) for line in done.stdout.splitlines()],
            instances={address: f"{JOB}-1"},
        )
        prometheus = stack.enter_context(Prometheus(scrapes, directory / "prometheus"))
        count = "count(count by (pool) (sqlalchemy_pool_info))"
        assert eventually(lambda: [len(pools)] == [one.value for one in prometheus.query(count)], seconds=60)
        start = time.time()
        time.sleep(seconds)
        yield Run(prometheus, start, time.time(), targets.close)


@contextmanager
def _process(directory: Path, url: str, pools: Sequence[str], stuck: Sequence[str]) -> Iterator[None]:
    arguments = [url, ",".join(pools), *(["--stuck", ",".join(stuck)] if stuck else [])]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.fleet_worker", *arguments],
        cwd=ROOT,
        env={**os.environ, "SQLALCHEMY_POOL_EXPORTER_DIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the package reports each pool that is exhausted
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def _config(server: Server, shared: Path, pools: Sequence[str]) -> dict[str, object]:
    return {
        "segments": {"directory": str(shared)},
        "databases": [
            {
                "name": "main",
                "dsn": server.dsn("the probe"),
                "pools": list(pools[: len(WORDS)]),
                "interval_seconds": 3,
                "timeout_seconds": 3,
            }
        ],
    }
