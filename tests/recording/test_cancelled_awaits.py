# SPDX-License-Identifier: Apache-2.0
"""The metrics stay correct if a task is cancelled at any of its awaits."""

from __future__ import annotations

import asyncio
import gc
import warnings
from itertools import count
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AsyncAdaptedQueuePool,
)
from sqlalchemy.util import await_only, greenlet_spawn

from sqlalchemy_pool_exporter import instrument
from tests.support.database import Database, Link
from tests.support.pool_incidents import CANCELLED
from tests.support.samples import Exposition, RegistrySamples

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.skipif(not CANCELLED, reason="SQLAlchemy itself loses a cancelled return")
def test_cancelled_at_every_await() -> None:
    """A task cancelled at any await of connecting, pinging, resetting or closing leaves nothing in use or pending."""

    async def live() -> None:
        for moment in count(1):
            if not await _cancelled_at(moment):
                assert moment > 4
                return

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(live())


class Canceller:
    """Cancels the current task at the n-th await that its connections make."""

    def __init__(self, moment: int) -> None:
        self.remaining = moment
        self.database = Database()

    async def _step(self) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0)

    def step(self) -> None:
        if self.remaining > 0:
            await_only(self._step())

    def connect(self) -> Any:
        self.step()
        return Remote(self)


class Remote(Link):
    """A connection that awaits in rollback and close."""

    def __init__(self, canceller: Canceller) -> None:
        super().__init__(canceller.database, next(canceller.database.serials))
        self.canceller = canceller

    def rollback(self) -> None:
        self.canceller.step()
        super().rollback()

    def close(self) -> None:
        self.canceller.step()
        super().close()


async def _cancelled_at(moment: int) -> bool:
    canceller = Canceller(moment)
    pool = AsyncAdaptedQueuePool(canceller.connect, pool_size=1, max_overflow=1)
    registry = CollectorRegistry()
    name = instrument(pool, registry=registry).name
    held: list[Any] = []  # not a local of work(): the exception's traceback would keep the connections alive

    def work() -> None:
        held.extend([pool.connect(), pool.connect()])
        while held:
            held.pop().close()
        pool.connect().close()

    try:
        await greenlet_spawn(work)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
    cancelled = canceller.remaining <= 0
    held.clear()
    gc.collect()
    numbers = RegistrySamples(registry)
    kept = numbers.value("connections", name, state="idle") + numbers.value("empty_slots", name)
    assert (0, 0, pool.checkedin()) == (
        numbers.value("pending_checkouts", name),
        numbers.value("connections", name, state="in_use"),
        kept,
    ), moment
    assert not numbers.get("exporter_recording_faults_total", name), moment
    return cancelled


def test_cancelled_while_queueing() -> None:
    """A task cancelled in the queue of an asyncio pool counts as a cancelled checkout and is no longer pending."""

    async def live() -> None:
        engine = create_async_engine(
            "sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0
        )
        registry = CollectorRegistry()
        handle = instrument(engine, registry=registry)
        async with engine.connect():
            tasks = [asyncio.create_task(_checkout(engine)) for _ in range(5)]
            while Exposition(registry).value("pending_checkouts", handle.name) < 5:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [asyncio.CancelledError] * 5 == [type(outcome) for outcome in outcomes]
            exposition = Exposition(registry)
            assert exposition.value("pending_checkouts", handle.name) == 0
            assert exposition.value("checkout_errors_total", handle.name, reason="cancelled") == 5
        await engine.dispose()

    async def _checkout(engine: Any) -> None:
        async with engine.connect():
            pass

    asyncio.run(live())
