# SPDX-License-Identifier: Apache-2.0
"""Runs scenarios with a real pool of any driver, and compares the metrics with pool, log, server and a tally.

Every scenario is written once, in the synchronous style, and runs with every driver; with an asyncio engine it runs in
a greenlet, as SQLAlchemy's own code does.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_pool_exporter import instrument
from tests.support.drivers import ASYNC, WITH_SERVER
from tests.support.samples import Exposition
from tests.support.wait import eventually
from tests.support.witness import (
    PoolLog,
    assert_errors_agree,
    assert_log_agrees,
    assert_sites_add_up,
    metric_state,
    pool_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.engine import Connection, Engine

    from tests.support.pg import Server


@dataclass
class Case:
    """One engine under test, with its server, registry and pool log."""

    driver: str
    server: Server
    directory: Path
    name: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    options: dict[str, Any] = field(default_factory=dict)  # of instrument()
    log: PoolLog = field(init=False)
    engine: Engine = field(init=False)
    _async_engine: Any = None

    def __post_init__(self) -> None:
        self.log = PoolLog(self.name)

    @property
    def is_async(self) -> bool:
        return self.driver in ASYNC

    @property
    def has_server(self) -> bool:
        return self.driver in (*WITH_SERVER, "psycopg2")

    def start(self, **options: Any) -> Engine:
        """Make an instrumented engine with a pool of one connection and one overflow, unless told otherwise."""
        if options.get("poolclass") is not NullPool:
            options = {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.05} | options
        options.setdefault("pool_logging_name", self.name)
        if self.is_async:
            options.setdefault("poolclass", AsyncAdaptedQueuePool)
            self._async_engine = create_async_engine(self._url(), **options)
            self.engine = self._async_engine.sync_engine
        else:
            options.setdefault("poolclass", QueuePool)
            self.engine = create_engine(self._url(), **options)
        instrument(self.engine, registry=self.registry, **self.options)
        return self.engine

    def _url(self) -> str:
        if not self.has_server:
            scheme = "sqlite+aiosqlite" if self.is_async else "sqlite"
            return f"{scheme}:///{self.directory / 'db'}"
        return self.server.url(f"postgresql+{self.driver}", application_name=self.name)

    def now(self) -> Exposition:
        return Exposition(self.registry)

    def kill(self) -> None:
        """Make the server end the connections of this engine, as a restart or a firewall does."""
        self.server.terminate(self.name)

    def assert_true(self, **expected: float) -> None:
        """Assert that the gauges equal the pool and the server, and the counters equal the log and exactly this tally.

        The counts of histograms are compared only if they are given.
        """
        exposition = self.now()
        if isinstance(self.engine.pool, QueuePool):
            assert metric_state(exposition, self.name) == pool_state(self.engine.pool)
        assert exposition.value("pending_checkouts", self.name) == 0
        assert_log_agrees(exposition, self.name, self.log)
        self.assert_server_agrees()
        tally = {key.replace("__", "."): value for key, value in expected.items()}
        counted = exposition.counters(self.name)
        assert tally == {
            key: value for key, value in counted.items() if not key.endswith("_seconds_count") or key in tally
        }

    def assert_server_agrees(self, detached: int = 0) -> None:
        """Assert that the gauges and the server have the same number of connections."""
        if not self.has_server:
            return

        def agrees() -> bool:
            return self.server.count(self.name) == self.open() + detached

        assert eventually(agrees), f"server has {self.server.count(self.name)}, we say {self.open()}"

    def assert_adds_up(self) -> None:
        """Assert the sums that docs/metrics.md states."""
        exposition = self.now()
        counted = Counter(exposition.counters(self.name))
        in_use = exposition.value("connections", self.name, state="in_use")
        assert counted["checkouts"] == counted["checkins"] + counted["detaches"] + in_use
        errors = sum(value for key, value in counted.items() if key.startswith("checkout_errors."))
        calls = counted["checkouts"] + counted["checkout_timeouts"] + errors
        assert calls == counted["checkout_wait_seconds_count"]
        assert counted["connects"] + counted["connect_errors"] == counted["connect_seconds_count"]
        assert_errors_agree(exposition, self.name)
        assert_sites_add_up(exposition, self.name)
        phases = sum(exposition.value(f"{phase}_seconds_sum", self.name) for phase in ("connect", "ping"))
        assert exposition.value("checkout_wait_seconds_sum", self.name) >= phases

    def open(self) -> float:
        exposition = self.now()
        return sum(exposition.value("connections", self.name, state=state) for state in ("in_use", "idle"))

    def run(self, scenario: Callable[[Case], None]) -> None:
        with self.log:
            if not self.is_async:
                self._run_and_dispose(scenario)
            else:
                asyncio.run(self._run_async(scenario))

    async def _run_async(self, scenario: Callable[[Case], None]) -> None:
        await greenlet_spawn(self._run_and_dispose, scenario)

    def _run_and_dispose(self, scenario: Callable[[Case], None]) -> None:
        try:
            scenario(self)
            faults = self.now().get("exporter_recording_faults_total", self.name)
            assert not faults
            self.assert_adds_up()
        finally:
            self.engine.dispose()


def age(connection: Connection, seconds: float) -> None:
    """Move the start of a connection into the past."""
    record: Any = connection.connection._connection_record
    record.starttime -= seconds
