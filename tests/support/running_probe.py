# SPDX-License-Identifier: Apache-2.0
"""A probe that runs step by step: the test ends each delay between two probes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sqlalchemy_pool_exporter.sidecar.config import Database
from sqlalchemy_pool_exporter.sidecar.probe.any_dsn import parse_dsn
from sqlalchemy_pool_exporter.sidecar.probe.families import families
from sqlalchemy_pool_exporter.sidecar.probe.probe import Probe, ProbeStatus
from tests.support.probed_server import HANG, opened_connections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from sqlalchemy_pool_exporter.sidecar.probe.server_state import ServerState


class ManualSleep:
    """Replaces asyncio.sleep: each sleep lasts until the test finishes it; the delays asked for are kept."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self._started = asyncio.Semaphore(0)
        self._finished = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self._started.release()
        await self._finished.acquire()

    async def started(self) -> None:
        await self._started.acquire()

    def finish(self) -> None:
        self._finished.release()


class RunningProbe:
    """A probe that waits for the test before each further probe."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self.sleep = ManualSleep()
        self.probe = Probe(database, clock=clock, sleep=self.sleep.sleep, uniform=lambda _low, high: high)

    async def probe_again(self) -> ProbeStatus:
        """Finish the sleep, and return the status after the next probe."""
        self.sleep.finish()
        await self.sleep.started()
        return self.probe.status

    @property
    def server(self) -> ServerState:
        assert self.probe.status.is_up, self.probe.status
        assert self.probe.status.server is not None
        return self.probe.status.server


@contextlib.asynccontextmanager
async def running(
    database: Database, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[RunningProbe]:
    """Run a probe, which has probed once when the block begins, and cancel it at the end of the block."""
    runner = RunningProbe(database, clock)
    task = asyncio.create_task(runner.probe.run())
    try:
        async with asyncio.timeout(HANG):
            await runner.sleep.started()
            yield runner
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def target(dsn: str, **options: Any) -> Database:
    """Return a database whose timeout is long enough for a slow machine."""
    return Database(name="orders", dsn=parse_dsn(dsn), **{"timeout_seconds": 15.0} | options)


def database_of_file(path: Path, dsn: str) -> Database:
    """Return a database whose DSN, which may be malformed, is written to a file and read at each connect."""
    path.write_text(dsn)
    return Database(name="orders", dsn_file=path, timeout_seconds=15.0)


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, and close the connections that it opened."""

    async def closing(*args: Any, **kwargs: Any) -> None:
        try:
            await test(*args, **kwargs)
        finally:
            for connection in opened_connections:
                connection.terminate()
            opened_connections.clear()
            await asyncio.sleep(0)  # the event loop closes the sockets

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(closing(*args, **kwargs))

    return run


def exposition(*statuses: ProbeStatus, now: float = 0.0) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the samples by name without prefix and by label values without the database's."""
    return {
        (
            sample.name.removeprefix("sqlalchemy_pool_database_"),
            tuple(sample.labels.values())[1:],
        ): sample.value
        for family in families(statuses, now)
        for sample in family.samples
    }


def exposition_text(*statuses: ProbeStatus, now: float = 0.0) -> str:
    registry = CollectorRegistry()
    registry.register(_Fixed(statuses, now))
    return str(openmetrics(registry).decode())


def parse(text: str) -> list[Any]:
    return list(text_string_to_metric_families(text))


@dataclasses.dataclass(eq=False)
class _Fixed(Collector):
    statuses: tuple[ProbeStatus, ...]
    now: float

    def collect(self) -> Iterator[Any]:
        return families(self.statuses, self.now)
