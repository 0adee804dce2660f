# SPDX-License-Identifier: Apache-2.0
"""The lag of the event loops that asyncio engines run in: seen while a loop is blocked, and harmless otherwise."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from sqlalchemy_pool_exporter import instrument, uninstrument
from sqlalchemy_pool_exporter.errors import TargetError
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.recording import event_loops
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.segment.block import HELD_SINCE, LOOP_DUE, LOOP_PEAK, LOOPS
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.event_loop import lag_now
from tests.support.programs import run
from tests.support.samples import key, read_samples
from tests.support.wait import eventually, eventually_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot

LAG = key("event_loop_lag_seconds")
LATER = 1e6  # seconds after which a loop that seems to be blocked surely is late
EARLIER: weakref.WeakSet[Any] = weakref.WeakSet()  # the recorders that other tests left


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let timers run often, and let no loop of an earlier test have a place."""
    monkeypatch.setattr(event_loops, "INTERVAL_SECONDS", 0.005)
    gc.collect()
    EARLIER.update(INSTRUMENTED.recorders)
    yield
    gc.collect()


@contextmanager
def pool(registry: CollectorRegistry, path: Path, **options: Any) -> Iterator[AsyncEngine]:
    """Make an instrumented engine."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path / 'db'}", poolclass=NullPool)
    with instrument(engine, name="p", registry=registry, **options):
        yield engine


async def use(engine: AsyncEngine) -> None:
    async with engine.connect():
        pass


def lag(registry: CollectorRegistry) -> float | None:
    return read_samples(registry).get(LAG)


def blocks() -> list[Snapshot]:
    """Return what is recorded of all pools of a test."""
    return [one.snapshot() for one in recorders()]


def recorders() -> list[Any]:
    return [one for one in INSTRUMENTED.recorders if not one.is_ended and one not in EARLIER]


def dues() -> set[float]:
    return {due for one in blocks() for due in one.fields[LOOP_DUE : LOOP_DUE + LOOPS]}


@contextmanager
def blocked_loop(engine: AsyncEngine) -> Iterator[None]:
    """Run a loop in a thread that uses the engine, and is blocked in the body."""
    is_blocked, go_on, ends = threading.Event(), threading.Event(), threading.Event()

    async def live() -> None:
        await use(engine)
        await asyncio.sleep(0.02)
        is_blocked.set()
        go_on.wait()
        while not ends.is_set():
            await asyncio.sleep(0.001)

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    is_blocked.wait()
    try:
        yield
        go_on.set()
        assert eventually(lambda: max(one.fields[LOOP_PEAK] for one in blocks()) > 0.05)
    finally:
        go_on.set()
        ends.set()
        thread.join()


def test_a_blocked_loop_is_seen_while_it_is_blocked(registry: CollectorRegistry, tmp_path: Path) -> None:
    """The lag grows while a call blocks the loop, and the most of it is still shown afterwards."""
    with pool(registry, tmp_path) as engine:
        with blocked_loop(engine):
            assert eventually(lambda: (lag(registry) or 0.0) > 0.1)
            seen = lag(registry) or 0.0
            assert eventually(lambda: (lag(registry) or 0.0) > seen + 0.1)
        assert (lag(registry) or 0.0) > seen


def test_the_sidecar_sees_it_for_each_worker(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Another process sees the loop of each worker, and the application's own endpoint shows the same."""
    directory = tmp_path / "pools"
    directory.mkdir()
    sidecar = FleetCollector(Reader(directory), worker_label=False, counters_per_worker=False)
    of_worker = key("event_loop_lag_seconds", worker="000")
    with pool(registry, tmp_path, directory=directory) as engine, blocked_loop(engine):
        assert eventually(lambda: read_samples(sidecar.collect()).get(of_worker, 0.0) > 0.1)
        assert eventually(lambda: read_samples(registry).get(of_worker, 0.0) > 0.1)
        assert lag(registry) is None


def test_beside_a_directory_the_process_is_named(registry: CollectorRegistry, tmp_path: Path) -> None:
    """A pool in memory beside pools in a directory: its loop is that of this process."""
    directory = tmp_path / "pools"
    directory.mkdir()

    async def live() -> None:
        with pool(registry, tmp_path, directory=directory) as shared:
            other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'db'}", poolclass=NullPool)
            with instrument(other, name="q", registry=registry):
                await use(shared)
                await use(other)
                await asyncio.sleep(0.02)
                found = {
                    dict(labels).get("worker", "")[:3]
                    for name, labels in read_samples(registry)
                    if name == "sqlalchemy_pool_event_loop_lag_seconds"
                }
                assert found == {"000", "pid"}

    asyncio.run(live())


def test_a_loop_that_stopped_is_not_blocked(registry: CollectorRegistry, tmp_path: Path) -> None:
    """After asyncio.run() nothing is late, however long ago that was, although the engine lives."""
    with pool(registry, tmp_path) as engine:

        async def live() -> None:
            await use(engine)
            await asyncio.sleep(0.02)
            assert dues() != {0.0}

        asyncio.run(live())
        assert dues() == {0.0}
        assert lag_now(blocks(), LATER) == 0.0


def test_one_loop_after_the_other(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Each loop that uses the engine is watched, also after more loops than there are places."""
    with pool(registry, tmp_path) as engine:

        async def live() -> None:
            await use(engine)
            assert len(dues()) == 2

        for _ in range(3 * LOOPS):
            asyncio.run(live())
        with pytest.raises(ZeroDivisionError):
            asyncio.run(_failing(engine))
        asyncio.run(live())


async def _failing(engine: AsyncEngine) -> None:
    await use(engine)
    raise ZeroDivisionError


def test_a_loop_that_runs_again(registry: CollectorRegistry, tmp_path: Path) -> None:
    """The time in which a loop did not run is no lag, and when it runs again it is watched again."""
    with pool(registry, tmp_path) as engine, asyncio.Runner() as runner:
        (recorder,) = recorders()
        ahead = 0.0
        clock: Callable[[], float] = recorder.clock
        recorder.clock = lambda: clock() + ahead
        runner.run(use(engine))
        assert dues() == {0.0}
        ahead = LATER
        runner.run(eventually_async(lambda: dues() != {0.0}))
        (found,) = blocks()
        assert found.fields[LOOP_PEAK] < LATER / 2


def test_more_loops_than_places(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Loops beyond the places are not seen while they are blocked, and do no harm to those that have one."""
    with pool(registry, tmp_path) as engine:
        asyncio.run(use(engine))  # SQLAlchemy's lock of an engine's first connect is for one loop
        barrier = threading.Barrier(LOOPS + 2, timeout=60)
        found = []

        async def live() -> None:
            await use(engine)
            barrier.wait()
            found.append(len(dues()))
            barrier.wait()
            await asyncio.sleep(0.02)

        threads = [threading.Thread(target=lambda: asyncio.run(live())) for _ in range(LOOPS + 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {LOOPS}
        assert dues() == {0.0}


@pytest.mark.parametrize("is_off", [True, False])
def test_off(
    registry: CollectorRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_off: bool
) -> None:
    """The argument, or else the environment, switches the timers off."""
    monkeypatch.setenv("SQLALCHEMY_POOL_EXPORTER_LOOP_LAG", "off" if is_off else "on")
    with pool(registry, tmp_path, **({} if is_off else {"loop_lag": False})) as engine:

        async def live() -> None:
            await use(engine)
            await asyncio.sleep(0.02)

        asyncio.run(live())
        assert dues() == {0.0}
        assert lag(registry) is None


@pytest.mark.parametrize("value", ["off", "on", 2])
def test_a_switch_that_is_none(registry: CollectorRegistry, value: Any) -> None:
    """A text would count as true, so it is refused; the pool is not instrumented."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    with pytest.raises(TargetError, match=f"loop_lag must be True or False, got {value!r}"):
        instrument(engine, registry=registry, loop_lag=value)
    assert "connect" not in vars(engine.pool)


def test_a_synchronous_engine_has_no_loop(registry: CollectorRegistry) -> None:
    """A synchronous engine starts no timer, also if a loop runs in its thread."""

    async def live() -> None:
        engine = create_engine("sqlite://")
        with instrument(engine, name="p", registry=registry), engine.connect():
            assert dues() == {0.0}
        engine.dispose()

    asyncio.run(live())


def test_no_task_and_no_variables_stay(registry: CollectorRegistry, tmp_path: Path) -> None:
    """The timer is no task, and keeps nothing of the request in which the connection was opened."""
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")

    class Request:
        """What a request has."""

    async def request(engine: AsyncEngine) -> weakref.ref[Request]:
        one = Request()
        variable.set(one)
        await use(engine)
        return weakref.ref(one)

    async def live(engine: AsyncEngine) -> None:
        of_request = await asyncio.create_task(request(engine))
        await asyncio.sleep(0.02)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()
        assert of_request() is None

    with pool(registry, tmp_path) as engine:
        asyncio.run(live(engine))


def test_a_loop_is_collected(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Nothing keeps a loop that is gone, although its engine lives."""
    with pool(registry, tmp_path) as engine:

        async def live() -> weakref.ref[asyncio.AbstractEventLoop]:
            await use(engine)
            await asyncio.sleep(0.02)
            return weakref.ref(asyncio.get_running_loop())

        loop = asyncio.run(live())

        def is_gone() -> bool:
            gc.collect()
            return loop() is None

        # The thread in which aiosqlite closed the connection may not have ended yet: it knows the loop.
        assert eventually(is_gone)


def test_without_a_pool_the_timer_ends(registry: CollectorRegistry, tmp_path: Path) -> None:
    """When no pool of a loop is instrumented any more, its timer ends, and begins again with the next one."""

    async def live() -> None:
        loop: Any = asyncio.get_running_loop()
        with pool(registry, tmp_path) as engine:
            await use(engine)
            await asyncio.sleep(0.02)
            assert event_loops._timers[loop]._is_armed
            uninstrument(engine)
        assert await eventually_async(lambda: not event_loops._timers[loop]._is_armed)
        with pool(registry, tmp_path) as engine:
            await use(engine)
            assert len(dues()) == 2

    asyncio.run(live())


def test_a_checkout_that_timed_out_in_a_blocked_loop(
    registry: CollectorRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The report of a checkout that timed out because a call blocked the loop names that cause."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'db'}"
    engine = create_async_engine(
        url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=0.5
    )

    async def hold(go_on: asyncio.Event) -> None:
        async with engine.connect():
            await go_on.wait()

    async def live() -> None:
        go_on = asyncio.Event()
        holder = asyncio.create_task(hold(go_on))
        await eventually_async(lambda: blocks()[0].connections and blocks()[0].connections[HELD_SINCE])
        waits = asyncio.create_task(use(engine))
        await eventually_async(lambda: blocks()[0].waiters and max(blocks()[0].waiters))
        time.sleep(1.0)  # noqa: ASYNC251 - that is the mistake
        with pytest.raises(exc.TimeoutError):
            await waits
        go_on.set()
        await holder
        await engine.dispose()

    name = "pool of a blocked loop"  # reports of other tests may come late
    with instrument(engine, name=name, registry=registry):
        asyncio.run(live())
    assert eventually(
        lambda: (
            ["loop_blocked"]
            == [
                record.pool_exhaustion["cause"]
                for record in caplog.records
                if hasattr(record, "pool_exhaustion") and record.pool_exhaustion["pool"] == name
            ]
        )
    )


class TimeLimit(Exception):  # noqa: N818 - no error of this project
    """What a signal handler of the application raises."""


def test_a_time_limit_in_the_timer(
    registry: CollectorRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit of the application that strikes in the timer reaches the loop, and nothing looks blocked then."""
    raised = []

    def strike(*_: object) -> None:
        raise TimeLimit

    async def live() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: raised.append(context["exception"])
        )
        with pool(registry, tmp_path) as engine:
            await use(engine)
            with monkeypatch.context() as patch:
                patch.setattr(event_loops.LoopTimer, "_arm", strike)
                assert await eventually_async(lambda: raised)
            assert dues() == {0.0}
            await use(engine)
            assert len(dues()) == 2

    asyncio.run(live())
    assert [type(error) for error in raised] == [TimeLimit]


def test_a_forked_child_has_no_loop(tmp_path: Path) -> None:
    """A child that is forked while a loop runs shows no blocked loop, and watches the loop that it runs itself."""
    result = run(
        """
        import asyncio, os, sys
        from pathlib import Path
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy.pool import NullPool
        from sqlalchemy_pool_exporter import instrument
        from sqlalchemy_pool_exporter.segment.directory import Reader
        from sqlalchemy_pool_exporter.segment.event_loop import lag, lag_now

        directory = Path(sys.argv[1])
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=NullPool)
        instrument(engine, name="p", directory=directory)

        async def use():
            async with engine.connect():
                pass

        def of(number):
            worker = [one for one in Reader(directory).read().running if one.number == number][0]
            return [pool.snapshot for pool in worker.pools if pool.snapshot.is_active]

        async def live():
            await use()
            await asyncio.sleep(0.3)
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    assert lag(of("001"), 1e9) is None
                    asyncio._set_running_loop(None)
                    asyncio.run(use())
                    assert lag_now(of("001"), 1e9) == 0
                    status = 0
                except BaseException:
                    import traceback
                    traceback.print_exc()
                finally:
                    os._exit(status)
            assert os.waitpid(pid, 0)[1] == 0
            await asyncio.sleep(0.3)
            assert lag_now(of("000"), 1e9) > 0

        asyncio.run(live())
        assert lag_now(of("000"), 1e9) == 0
        print("done")
        """,
        str(tmp_path),
    )
    assert (result.stdout, result.stderr) == ("done\n", "")
