# SPDX-License-Identifier: Apache-2.0
"""Whatever pool, and whatever happens to its connections, the sums over the sites are its totals."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sqlalchemy_pool_exporter import instrument
from tests.support.database import Database
from tests.support.diary import PACKAGE
from tests.support.pool_incidents import POOLS
from tests.support.samples import RegistrySamples
from tests.support.segments import FORKS
from tests.support.witness import assert_sites_add_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool

pytestmark = [
    pytest.mark.usefixtures("little_to_collect"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning"),
]

# More than a pool has entries for.
SITES = 45


def _made(number: int) -> Callable[[Engine], Any]:
    names: dict[str, Any] = {"__name__": f"shop.part_{number}"}
    exec("def use(engine): return engine.raw_connection()", names)  # noqa: S102 - as many places
    use: Callable[[Engine], Any] = names["use"]
    return use


PLACES = [_made(number) for number in range(SITES)]


def act(engine: Engine, dice: random.Random, handed: list[Any]) -> None:
    """Check out somewhere, and let the connection end in some way, also by another thread."""
    connection = dice.choice(PLACES)(engine)
    how = dice.randrange(8)
    if how == 0:
        connection.invalidate()
    elif how == 1:
        connection.invalidate(soft=True)
    elif how == 2:
        connection.detach()
    elif how == 3:
        return  # forgotten: the garbage collector returns it
    elif how == 4:
        handed.append(connection)
        return
    with suppress(exc.InvalidRequestError):
        connection.close()


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(PACKAGE)


@pytest.fixture
def switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("in_directory", [False, True])
@pytest.mark.parametrize("poolclass", POOLS)
def test_five_threads(poolclass: type[Pool], tmp_path: Path, in_directory: bool) -> None:
    """Five threads that use 45 places, on engines of one name, of which one had a connection out when it began."""
    registry = CollectorRegistry()
    engines = [Database().engine(poolclass=poolclass) for _ in range(2)]
    early = engines[0].raw_connection()
    directory = tmp_path if in_directory else None
    handles = [instrument(one, name="shop", registry=registry, directory=directory) for one in engines]
    handed: list[Any] = []
    faults: list[traceback.FrameSummary] = []

    def work(number: int) -> None:
        dice = random.Random(number)  # noqa: S311 - the same acts in each run
        for turn in range(60):
            engine = engines[number % 2]
            try:
                act(engine, dice, handed)
                if handed and dice.random() < 0.7:
                    handed.pop().close()
                if number == 0 and turn % 20 == 10:
                    engine.dispose()
            except Exception as error:  # noqa: BLE001 - some of these pools are not made for threads, or are full
                faults.extend(filter(_is_ours, traceback.extract_tb(error.__traceback__)[-1:]))

    threads = [threading.Thread(target=work, args=[number]) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert faults == []
    assert_sites_add_up(RegistrySamples(registry), "shop")
    for connection in (*handed, early):
        with suppress(exc.InvalidRequestError):
            connection.close()
    handed.clear()
    del connection, early
    gc.collect()
    samples = RegistrySamples(registry)
    assert_sites_add_up(samples, "shop")
    assert samples.value("exporter_recording_faults_total", "shop") == 0
    engines.pop().dispose()
    gc.collect()
    assert_sites_add_up(RegistrySamples(registry), "shop")
    for handle in handles:
        handle.close()
    engines.pop().dispose()


def test_tasks_that_are_cancelled(tmp_path: Path) -> None:
    """Tasks that are cancelled while they wait, connect, hold or return; connections that go from task to task."""
    registry = CollectorRegistry()

    async def run() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'db'}",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=2,
            max_overflow=1,
            pool_timeout=0.02,
        )
        instrument(engine, name="shop", registry=registry)
        dice = random.Random(7)  # noqa: S311 - the same acts in each run
        handed: asyncio.Queue[Any] = asyncio.Queue()

        async def work(seconds: float, hands: bool) -> None:
            with suppress(exc.TimeoutError):
                connection = await engine.connect()
                try:
                    await asyncio.sleep(seconds)
                finally:
                    if hands:
                        handed.put_nowait(connection)
                    else:
                        await connection.close()

        for _ in range(20):
            tasks = [asyncio.create_task(work(dice.random() / 100, dice.random() < 0.2)) for _ in range(6)]
            await asyncio.sleep(dice.random() / 100)
            for task in tasks:
                if dice.random() < 0.5:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while not handed.empty():
                await handed.get_nowait().close()
            assert_sites_add_up(RegistrySamples(registry), "shop")
        await engine.dispose()

    asyncio.run(run())
    samples = RegistrySamples(registry)
    assert_sites_add_up(samples, "shop")
    assert samples.value("exporter_recording_faults_total", "shop") == 0


@FORKS
@pytest.mark.parametrize("in_directory", [False, True])
def test_forked_children(tmp_path: Path, in_directory: bool) -> None:
    """Children that are forked with a connection out, and that end without a word, in memory and in a directory."""
    registry = CollectorRegistry()
    engine = Database().engine(pool_size=3)
    instrument(engine, name="shop", registry=registry, directory=tmp_path if in_directory else None)
    for number in range(3):
        out = PLACES[number](engine)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                own = PLACES[number + 10](engine)
                PLACES[number + 20](engine).close()
                assert_sites_add_up(RegistrySamples(registry), "shop")
                own.close()
                assert_sites_add_up(RegistrySamples(registry), "shop")
                status = 0
            except AssertionError as error:
                os.write(2, f"{error}".encode())
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert_sites_add_up(RegistrySamples(registry), "shop")
        out.close()
    assert_sites_add_up(RegistrySamples(registry), "shop")
    engine.dispose()
