# SPDX-License-Identifier: Apache-2.0
"""Where the advice comes from: an endpoint or a directory, watched for some time."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from prometheus_client.parser import text_string_to_metric_families

from sqlalchemy_pool_exporter.errors import BoardError
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.metrics import PREFIX
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.top.client import Client, explained
from sqlalchemy_pool_exporter.top.where import check_directory

from .observation import Observation, Server, observations, servers
from .table import Table, growth, table_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy_pool_exporter.top.client import Credentials

_METRICS: Final = "/metrics"
_SUFFIXES: Final = ("/api/v1/pools", _METRICS, "/")
_PROGRESS_SECONDS: Final = 10.0


class Watched(NamedTuple):
    """What is known of all pools, and of the servers behind them."""

    observations: list[Observation]
    servers: list[Server]
    how: str  # where from and over what time, in words


class Scrapes(Protocol):
    """What can be scraped."""

    name: str

    def scrape(self) -> Table:
        """Return all samples now.

        Raises:
            BoardError: they cannot be read.
        """


class Endpoint:
    """A sidecar, or an application that calls ``serve()`` or has a route for its metrics.

    Args:
        url: of the page or the metrics, such as ``http://localhost:10079``.
        credentials: for the endpoint.

    Raises:
        BoardError: it is no such URL, or a file of the credentials cannot be used.
    """

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._client = Client(url, credentials, suffixes=_SUFFIXES)
        self.name = self._client.name

    def scrape(self) -> Table:
        """Return all samples now."""
        status, body = self._client.get(_METRICS, "text/plain")
        if status != HTTPStatus.OK:
            raise BoardError(f"{self.name}{_METRICS} answers {status} {explained(status)}")
        text = body.decode("utf-8", "replace")
        try:
            return table_of(text_string_to_metric_families(text))
        except (ValueError, KeyError, IndexError) as error:
            raise BoardError(f"{self.name}{_METRICS} answers with something else than metrics") from error


class Directory:
    """A directory that applications share, on this machine.

    Raises:
        BoardError: it is no directory, or cannot be looked at.
    """

    def __init__(self, directory: Path) -> None:
        check_directory(directory)
        self.name = str(directory)
        self._collector = FleetCollector(Reader(directory), worker_label=True, counters_per_worker=True)

    def scrape(self) -> Table:
        """Return all samples now."""
        return table_of(self._collector.collect())


def watch(
    source: Scrapes,
    seconds: float,
    *,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Watched:
    """Read twice, and return what happened in between. It says on the standard error stream what it waits for.

    Args:
        source: what to read.
        seconds: how long to wait in between.
        wait: waits.
        clock: seconds that only grow.

    Raises:
        BoardError: it cannot be read.
    """
    before = _with_pools(source)
    began = clock()
    while (left := began + seconds - clock()) > 0.0:
        _say(f"watching {source.name}: {left:.0f} s left\n")
        wait(min(left, _PROGRESS_SECONDS))
    passed = clock() - began
    after = _with_pools(source)
    found = observations(growth(before, after, source.name), after, seconds=passed, at=time.time())
    return Watched(list(found), list(servers(after)), f"{source.name}, watched for {passed:.0f} s")


def _say(progress: str) -> None:
    """Write progress to the standard error stream; the advice is worth the wait without it."""
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(progress)
            sys.stderr.flush()


def since_start(source: Scrapes) -> Watched:
    """Read once, and return what happened since the processes were started.

    Raises:
        BoardError: it cannot be read, or does not say since when it counts.
    """
    now, at = _with_pools(source), time.time()
    seconds = at - _began(now, source)
    if seconds <= 0.0:
        raise BoardError(
            f"{source.name}: its processes were started later than now by this machine's clock; leave out --since-start"
        )
    found = observations(growth(Table(), now, source.name), now, seconds=seconds, at=at)
    how = f"{source.name}, the mean of {seconds:.0f} s since the first of its processes was started"
    if now.get("exporter_workers"):
        how += "; what processes that have ended did before counts, too"
    return Watched(list(found), list(servers(now)), how)


def _with_pools(source: Scrapes) -> Table:
    table = source.scrape()
    if not table.get("instances"):
        raise BoardError(
            f"{source.name}: no live process has a pool, or these are no metrics of this exporter; of a Prometheus "
            "server, give its URL to --prometheus"
        )
    return table


def _began(now: Table, source: Scrapes) -> float:
    """Return the Unix time at which the first process of those that run was started."""
    starts = [sample.labels.get("started", "") for sample in now.samples("exporter_worker_info")]
    try:
        return min(datetime.fromisoformat(start).timestamp() for start in starts)
    except ValueError as error:
        raise BoardError(
            f"{source.name} does not say since when it counts ({PREFIX}exporter_worker_info): leave out --since-start"
        ) from error
