# SPDX-License-Identifier: Apache-2.0
"""Segments in a directory, for the tests: simulated workers, and a sidecar that scrapes them."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.metrics import SegmentErrorKind
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.identity import Identity, Variant, written
from tests.support.fakes import FakeConnection
from tests.support.samples import Exposition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock

QUEUE = {"pool_class": "QueuePool", "dialect": "postgresql", "driver": "psycopg"}
NOW = 1000.0
INFO = {"pool_class": "QueuePool", "dialect": "", "driver": ""}  # of a pool without an engine
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
# Python warns if a process forks while it has other threads; no other thread uses the pools of these tests.
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def described(name: str, info: dict[str, str] = INFO, variant: Variant | None = None) -> bytes:
    """Return the description of a pool in a file."""
    return written(Identity(name, variant), info, has_overflow=True)


def new_block(
    lease: Lease, name: str, info: dict[str, str] = INFO, variant: Variant | None = None
) -> PoolBlock:
    """Return the block of a new pool of this name."""
    return lease.block(described(name, info, variant))


def zeros() -> memoryview[float]:
    """Return a block in which nothing is recorded yet."""
    return memoryview(bytearray(8 * layout.LENGTH)).cast("d")


class Process:
    """A simulated process with one pool: a lease, which `kill` gives up as kill -9 does, and its block."""

    def __init__(
        self,
        directory: Path,
        pool: str = "orders",
        *,
        size: float = 2.0,
        max_overflow: float = 1.0,
        info: dict[str, str] = QUEUE,
    ) -> None:
        self.lease = Lease(directory)
        self.storage = new_block(self.lease, pool, info)
        self.block = self.storage.doubles
        self.block[layout.ACTIVE] = self.block[layout.HAS_OVERFLOW] = 1.0
        self.block[layout.SIZE], self.block[layout.MAX_OVERFLOW] = size, max_overflow
        self.block[layout.RECYCLE] = math.nan  # off, as SQLAlchemy has it
        self.block[layout.CONNECTIONS_USED] = 16.0

    def count(self, checkouts: int, detaches: int = 0, faults: int = 0) -> None:
        self.block[layout.WAIT] += checkouts
        self.block[layout.WAIT + layout.SUM] += checkouts / 4
        self.block[layout.DETACHES] += detaches
        self.block[layout.FAULTS] += faults

    def hold(self, since: float, row: int = 0, *, site: str = "", **fields: float) -> None:
        """Check a connection out; ``fields`` are those of a row, by their names in lower case."""
        at = layout.CONNECTIONS_AT + layout.ROW * row
        self.block[at], self.block[at + layout.HELD_SINCE] = since, since
        if site:
            fields["site"] = self._site(site)
        for name, value in fields.items():
            self.block[at + getattr(layout, name.upper())] = value

    def _site(self, text: str) -> int:
        known = [one.text for one in self.storage.sites()]
        if text in known:
            return known.index(text) + 1
        entry = self.storage.site(text)
        assert entry is not None
        return entry.number

    def idle(self, connected: float, row: int) -> None:
        self.block[layout.CONNECTIONS_AT + layout.ROW * row] = connected

    def wait(self, since: float, slot: int = 0) -> None:
        """Begin a checkout."""
        self.block[layout.WAITERS_USED] = 16.0
        self.block[layout.WAITERS_AT + slot] = since

    def kill(self) -> None:
        self.lease.close()


@contextmanager
def processes(directory: Path) -> Iterator[Callable[..., Process]]:
    """Make processes that are killed at the end."""
    with ExitStack() as stack:

        def make(pool: str = "orders", **options: Any) -> Process:
            process = Process(directory, pool, **options)
            stack.callback(process.kill)
            return process

        yield make


@contextmanager
def leasing() -> Iterator[Callable[..., Lease]]:
    """Make leases as separate processes do; one process can hold several, because a lock belongs to an open file."""
    with ExitStack() as stack:

        def make(directory: Path, **options: Any) -> Lease:
            lease = Lease(directory, **options)
            stack.callback(lease.close)
            return lease

        yield make


class Scraper:
    """A sidecar's registry over a directory, which compares every scrape with the one before."""

    def __init__(
        self, directory: Path, *, worker_label: bool = True, counters_per_worker: bool = False
    ) -> None:
        self.registry = CollectorRegistry()
        self.reader = Reader(directory)
        collector = FleetCollector(
            self.reader,
            worker_label=worker_label,
            counters_per_worker=counters_per_worker,
            monotonic=lambda: NOW,
            wall=lambda: 2 * NOW,
        )
        self.registry.register(collector)
        self._last: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def scrape(self) -> Exposition:
        """Return the exposition, after asserting that no counter has decreased or vanished since the last scrape."""
        exposition = Exposition(self.registry)
        grown = {
            key: value
            for key, value in exposition.samples.items()
            if key[0].endswith(("_total", "_bucket", "_count", "_sum"))
        }
        lost = {
            key: (value, grown.get(key))
            for key, value in self._last.items()
            if not grown.get(key, -1) >= value
        }
        assert lost == {}
        self._last = grown
        return exposition

    def errors(self) -> dict[str, float]:
        """Return the faults of one scrape that are not 0."""
        found = {
            dict(labels)["reason"]: value
            for (name, labels), value in self.scrape().samples.items()
            if name == "sqlalchemy_pool_exporter_segment_errors"
        }
        assert set(found) == set(get_args(SegmentErrorKind))
        return {kind: value for kind, value in found.items() if value}


def workers(exposition: Exposition) -> dict[str, float]:
    return {
        dict(labels)["state"]: value
        for (name, labels), value in exposition.samples.items()
        if name == "sqlalchemy_pool_exporter_workers"
    }


def by_worker(exposition: Exposition, key: str, pool: str = "orders", **labels: str) -> dict[str, float]:
    """Return the values of a series by its label ``worker``."""
    wanted = {"pool": pool, **labels}.items()
    return {
        dict(found)["worker"]: value
        for (name, found), value in exposition.samples.items()
        if name == f"sqlalchemy_pool_{key}" and wanted <= dict(found).items()
    }


def a_pool(size: int = 2, max_overflow: int = 1) -> QueuePool:
    return QueuePool(FakeConnection, pool_size=size, max_overflow=max_overflow)  # type: ignore[arg-type]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def live(directory: Path) -> list[str]:
    return [worker.number for worker in Reader(directory).read().live]


def counted(directory: Path, pool: str) -> dict[str, float]:
    """Return the checkouts of a pool by worker, as a new reader sees them."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(Reader(directory), worker_label=False, counters_per_worker=True))
    return {
        dict(labels)["worker"]: value
        for (name, labels), value in Exposition(registry).samples.items()
        if name == "sqlalchemy_pool_checkouts_total" and ("pool", pool) in labels
    }


@contextmanager
def as_nobody(directory: Path) -> Iterator[str]:
    """Yield the number of the lease that a child takes as another user, or why it took none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(directory)  # before setuid(), because root owns the directories above
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                said = str(Lease(Path()).number)
            except SegmentError as error:
                said = str(error)
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        yield answer.read()
    os.waitpid(pid, 0)
