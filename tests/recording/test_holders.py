# SPDX-License-Identifier: Apache-2.0
"""Who holds a connection: thread or task and label; nested checkouts, and pools that wait for themselves."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, exc
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from sqlalchemy_pool_exporter import instrument, label
from sqlalchemy_pool_exporter.recording import checkout_cy
from sqlalchemy_pool_exporter.recording import holders_cy as recorded
from sqlalchemy_pool_exporter.recording.connection_row_cy import row_of
from sqlalchemy_pool_exporter.segment import texts
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.entries import texts_of
from sqlalchemy_pool_exporter.segment.held import held
from sqlalchemy_pool_exporter.segment.page import TEXTS, TEXTS_PER_PAGE
from sqlalchemy_pool_exporter.segment.pages import Pages
from tests.support.samples import RegistrySamples
from tests.support.timeouts import Timeouts
from tests.support.wait import SECONDS, eventually, eventually_async
from tests.support.witness import assert_sites_add_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.usefixtures("leave_nothing")

POOL = "orders"


@pytest.fixture
def own_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without texts: labels are never removed."""
    monkeypatch.setattr(texts, "_texts", texts._Texts())
    fresh = ContextVar[Any]("holder", default=None)
    for module in (recorded, checkout_cy):
        monkeypatch.setattr(module, "holder_of_call", fresh)


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> Timeouts:
    return Timeouts(monkeypatch)


@pytest.fixture
def engine(registry: CollectorRegistry, tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(
        "sqlite://",
        poolclass=QueuePool,
        pool_size=2,
        max_overflow=0,
        pool_timeout=SECONDS,
        connect_args={"check_same_thread": False},
    )
    instrument(engine, name=POOL, registry=registry, directory=tmp_path)
    yield engine
    engine.dispose()


def an_async_engine(registry: CollectorRegistry, tmp_path: Path) -> AsyncEngine:
    engine = create_async_engine(
        "sqlite+aiosqlite://",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=2,
        max_overflow=0,
        pool_timeout=SECONDS,
    )
    instrument(engine, name=POOL, registry=registry, directory=tmp_path)
    return engine


def holders(tmp_path: Path) -> list[tuple[str, str]]:
    """Return the holder and the label of each connection that is checked out, as a sidecar reads them."""
    return sorted(
        (worker.texts.holder(one.holder), worker.texts.label(one.label))
        for worker in Reader(tmp_path).read().live
        for pool in worker.pools
        for one in held(pool.snapshot)
    )


def nested(registry: CollectorRegistry) -> float:
    """Return how many nested checkouts were counted."""
    samples = RegistrySamples(registry).samples
    return sum(v for (name, _), v in samples.items() if name == "sqlalchemy_pool_nested_checkouts_total")


def deadlocked(registry: CollectorRegistry) -> float:
    return sum(
        v
        for (name, _), v in RegistrySamples(registry).samples.items()
        if name == "sqlalchemy_pool_self_deadlocked"
    )


def is_pending(registry: CollectorRegistry) -> bool:
    """Return whether one caller waits."""
    return RegistrySamples(registry).value("pending_checkouts", POOL, worker="000") == 1.0


@asynccontextmanager
async def manager(engine: AsyncEngine) -> AsyncIterator[None]:
    async with engine.connect():
        yield


async def two(engine: AsyncEngine) -> None:
    first, second = await engine.connect(), await engine.connect()
    await asyncio.wait_for(second.close(), 60)
    await asyncio.gather(first.close())


# -- names


def test_threads_and_labels(engine: Engine, tmp_path: Path) -> None:
    """The name of the thread and what the application says that it is doing are in the segment."""
    checked_out, finish = threading.Event(), threading.Event()

    def work() -> None:
        with label("GET /pay"), engine.connect():
            checked_out.set()
            finish.wait()

    thread = threading.Thread(target=work, name="payments-1")
    thread.start()
    checked_out.wait()
    with engine.connect():
        assert holders(tmp_path) == [("MainThread", ""), ("payments-1", "GET /pay")]
    finish.set()
    thread.join()
    assert holders(tmp_path) == []


def test_tasks(registry: CollectorRegistry, tmp_path: Path) -> None:
    """A task is known by its name, whether asyncio or the application gave it."""

    async def run() -> None:
        engine = an_async_engine(registry, tmp_path)

        async def work(ready: asyncio.Event, finish: asyncio.Event) -> None:
            with label("job"):
                async with engine.connect():
                    ready.set()
                    await finish.wait()

        finish = asyncio.Event()
        tasks = []
        for name in ("refund", "Task-7"):
            ready = asyncio.Event()
            tasks.append(asyncio.create_task(work(ready, finish), name=name))
            await ready.wait()
        assert holders(tmp_path) == [("Task-7", "job"), ("refund", "job")]
        finish.set()
        await asyncio.gather(*tasks)
        await engine.dispose()

    asyncio.run(run())


def test_a_thread_for_each_request(engine: Engine, tmp_path: Path) -> None:
    """Threads without a name of their own are known by their number, however many there are."""
    seen: list[tuple[str, str]] = []

    def handle_request() -> None:
        with engine.connect():
            seen.extend(holders(tmp_path))

    expected = []
    for number in range(200):
        thread = threading.Thread(target=handle_request)
        if number % 50 == 0:
            thread.name = f"worker-{number}"
        expected.append((thread.name.partition(" (")[0], ""))
        thread.start()
        thread.join()
    assert expected == seen


def test_labels_nest(engine: Engine, tmp_path: Path) -> None:
    """An inner label counts, and the outer one again after it."""
    with label("outer"):
        with label("inner"), engine.connect():
            assert holders(tmp_path) == [("MainThread", "inner")]
        with engine.connect():
            assert holders(tmp_path) == [("MainThread", "outer")]


def test_names_make_room(
    own_texts: None, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads with ever-new names are all named, also to a reader in another process; those that live stay named."""
    monkeypatch.setattr(texts, "_SECONDS", 0.0)
    reader, go_on, holds = Reader(tmp_path), threading.Event(), threading.Event()

    def names() -> set[str]:
        (worker,) = reader.read().live
        return {
            worker.texts.holder(one.holder)
            for pool in worker.pools
            for one in held(pool.snapshot)
            if one.since
        }

    def stay() -> None:
        with engine.connect():
            holds.set()
            go_on.wait()

    seen: set[str] = set()

    def use() -> None:
        with engine.connect():
            seen.update(names())

    stays = threading.Thread(target=stay, name="stays")
    stays.start()
    holds.wait()
    for at in range(400):
        thread = threading.Thread(target=use, name=f"job-{at}")
        thread.start()
        thread.join()
    go_on.set()
    stays.join()
    assert seen == {"stays", *(f"job-{at}" for at in range(400))}
    assert len(texts.own().holders) <= TEXTS_PER_PAGE


def test_pages_that_come_later(own_texts: None, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are made when names have gone get the names that there are, by their numbers."""
    monkeypatch.setattr(
        texts, "_SECONDS", SECONDS
    )  # so that the second look is within that time of the first
    kept = [texts.name_of(f"first-{at}") for at in range(TEXTS_PER_PAGE)]
    assert texts.name_of("more") is None
    del kept[60:]
    later = Pages()
    again = texts.name_of("again")
    assert again is None  # at most one look a second
    monkeypatch.setattr(texts, "_SECONDS", 0.0)
    again = texts.name_of("again")
    texts.write_into(later)
    others = [texts.name_of(f"other-{at}") for at in range(TEXTS_PER_PAGE - 61)]
    assert again is not None
    assert None not in others
    text_page = next(
        later.page(at) for at in range(1, len(later) + 1) if later.page(at).cast("Q")[0] == TEXTS
    )
    for pages in (texts_of(text_page), texts.own().holders):
        assert pages[0] == "first-0"
        assert pages[59] == "first-59"
        assert pages[again.number - 1] == "again"
        assert sorted(pages[60:]) == sorted(["again", *(f"other-{at}" for at in range(TEXTS_PER_PAGE - 61))])


def test_more_texts_than_there_is_room_for(own_texts: None, engine: Engine, tmp_path: Path) -> None:
    """Further labels are not shown, and harm nothing."""
    for number in range(1000):
        with label("é" * 100 + f" request {number}"), engine.connect():
            pass
    with label("one more"), engine.connect():
        assert holders(tmp_path) == [("MainThread", "")]


class Odd:
    """An object that is no text and says nothing."""

    def __str__(self) -> str:
        raise LookupError("no text")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (404, "404"),
        (None, ""),
        ("", ""),
        (Odd(), ""),
        (["GET"], "['GET']"),
        ("GET /a\n2026-01-01 ERROR forged", "GET /a\ufffd2026-01-01 ERROR forged"),
        ("\ud800<b>\u202e", "\ufffd<b>\ufffd"),
        ("é" * 100_000, "…" + "é" * 30),
    ],
    ids=["int", "none", "empty", "raises", "list", "newline", "surrogate", "long"],
)
def test_labels_of_any_kind(own_texts: None, engine: Engine, tmp_path: Path, text: Any, shown: str) -> None:
    """What is no text is shown as one, without characters that could forge a line of a log; none is kept whole."""
    for _ in range(2):
        with label(text), engine.connect():
            assert holders(tmp_path) == [("MainThread", shown)]
    assert all(len(one) <= 64 for one in texts.own().labels)


def test_a_label_that_is_left_in_another_context(engine: Engine) -> None:
    """A framework may enter and leave a generator in different contexts; the label ends with the first."""

    def dependency() -> Generator[None]:
        with label("dependency"):
            yield

    generator = dependency()
    copy_context().run(next, generator)
    copy_context().run(next, generator, None)
    with label("outer"):
        generator = dependency()
        copy_context().run(next, generator)
        with pytest.raises(LookupError, match="the application's"):
            copy_context().run(generator.throw, LookupError("the application's"))


class OddThread(threading.Thread):
    """A thread whose name raises what recording never raises."""

    @property
    def name(self) -> str:
        raise ZeroDivisionError

    @name.setter
    def name(self, _name: str) -> None:
        pass


class OddTask(asyncio.Task[Any]):
    """A task whose name is no text."""

    def get_name(self) -> Any:
        return 42 if self.get_loop().get_debug() else 1 / 0


class OddName(str):
    """A text of another class, which a task of asyncio takes as its name."""

    __slots__ = ()

    def __str__(self) -> str:
        return self


def test_a_name_of_another_class(registry: CollectorRegistry, tmp_path: Path) -> None:
    """A task whose name is no plain text is recorded, with an empty name."""

    async def run() -> None:
        engine = an_async_engine(registry, tmp_path)

        async def work() -> None:
            async with engine.connect():
                assert holders(tmp_path) == [("", "")]

        task = asyncio.create_task(work())
        task.set_name(OddName("Task-7"))
        assert type(task.get_name()) is OddName
        await task
        await engine.dispose()

    asyncio.run(run())
    assert_sums(registry, checkouts=1.0)


@pytest.mark.parametrize("debug", [False, True])
def test_names_that_raise(registry: CollectorRegistry, tmp_path: Path, debug: bool) -> None:
    """A task whose name raises or is no text checks out as ever; each number is right, and its name is empty."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(debug)
        engine = an_async_engine(registry, tmp_path)

        async def work() -> None:
            async with engine.connect(), engine.connect():
                assert holders(tmp_path) == [("", ""), ("", "")]

        for _ in range(2):
            await OddTask(work(), loop=loop)
        await engine.dispose()

    asyncio.run(run())
    assert nested(registry) == 2.0
    assert_sums(registry, checkouts=4.0)


def test_a_thread_whose_name_raises(engine: Engine, registry: CollectorRegistry, tmp_path: Path) -> None:
    """So does a thread."""
    seen: list[object] = []

    def work() -> None:
        for _ in range(2):
            with engine.connect():
                seen.append(holders(tmp_path))

    thread = OddThread(target=work)
    thread.start()
    thread.join()
    assert seen == [[("", "")]] * 2
    assert_sums(registry, checkouts=2.0)


def assert_sums(registry: CollectorRegistry, *, checkouts: float) -> None:
    """Assert that so many checkouts were recorded, with sites, without faults, and that none waited for long."""
    samples = RegistrySamples(registry)
    assert samples.value("checkouts_total", POOL) == checkouts
    assert samples.value("exporter_recording_faults_total", POOL) == 0.0
    assert samples.value("checkout_wait_seconds_sum", POOL) < 60
    assert_sites_add_up(samples, POOL)


# -- nested checkouts


def test_nested_checkouts_cost_no_memory(engine: Engine, registry: CollectorRegistry) -> None:
    """A thread that holds one connection for ever, and checks out others meanwhile, grows by nothing."""
    with engine.connect() as connection:
        engine.connect().close()
        row: Any = row_of(connection.connection._connection_record)
        before = len(row.nesting.inner)
        for _ in range(100):
            engine.connect().close()
        assert len(row.nesting.inner) <= before + 1
    assert nested(registry) == 101.0


def test_a_holder_of_many_that_waits_for_itself(
    registry: CollectorRegistry, tmp_path: Path, timeouts: Timeouts
) -> None:
    """A thread that holds all 40 connections of a pool, and waits for another one, is a deadlock."""
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, pool_size=40, max_overflow=0, pool_timeout=SECONDS
    )
    instrument(engine, name=POOL, registry=registry, directory=tmp_path)
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(engine.connect())
        assert timeouts.time_out(engine, lambda: eventually(lambda: deadlocked(registry) == 1.0))
    engine.dispose()


def test_a_nested_checkout(engine: Engine, registry: CollectorRegistry) -> None:
    """A second connection of the same pool counts once both are returned; two after each other do not."""
    with engine.connect():
        pass
    with engine.connect():
        pass
    assert nested(registry) == 0.0
    with engine.connect():
        with engine.connect():
            pass
        with engine.connect():
            pass
    assert nested(registry) == 2.0


def test_another_pool_is_not_nested(engine: Engine, registry: CollectorRegistry) -> None:
    """A connection of one pool beside one of another cannot deadlock by itself."""
    other = create_engine("sqlite://", poolclass=QueuePool)
    instrument(other, name="users", registry=registry)
    with engine.connect(), other.connect():
        pass
    assert nested(registry) == 0.0
    other.dispose()


def test_a_self_deadlock_is_named_while_it_lasts(
    engine: Engine, registry: CollectorRegistry, timeouts: Timeouts
) -> None:
    """If all holders wait for another connection of the full pool, the gauge says so; the timeouts are counted."""
    ready = threading.Barrier(2)
    errors: queue.Queue[Exception] = queue.Queue()

    def work() -> None:
        with engine.connect():
            ready.wait()
            try:
                engine.connect()
            except exc.TimeoutError as error:
                errors.put(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: deadlocked(registry) == 1.0)
    timeouts.strike(engine.pool, waiting=2)
    for thread in threads:
        thread.join()
    assert deadlocked(registry) == 0.0
    # One of the two got the connection that the other one returned, if it waited a moment longer.
    assert nested(registry) == 2.0
    assert errors.qsize() in {1, 2}


def test_a_full_pool_that_others_wait_for_is_no_deadlock(
    engine: Engine, registry: CollectorRegistry, timeouts: Timeouts
) -> None:
    """A thread that holds nothing waits for holders that can go on."""

    def wait() -> None:
        with pytest.raises(exc.TimeoutError):
            engine.connect()

    waits = threading.Thread(target=wait)
    with engine.connect(), engine.connect():
        waits.start()
        assert eventually(lambda: is_pending(registry))
        assert deadlocked(registry) == 0.0
        timeouts.strike(engine.pool)
        waits.join()


def test_connections_that_threads_hand_on(engine: Engine, registry: CollectorRegistry) -> None:
    """A thread whose connection another one returns did not nest, however many it checks out meanwhile."""
    handed: queue.Queue[Any] = queue.Queue()

    def consume() -> None:
        while (connection := handed.get()) is not None:
            connection.close()

    consumer = threading.Thread(target=consume)
    consumer.start()
    for _ in range(50):
        handed.put(engine.connect())
    handed.put(None)
    consumer.join()
    assert nested(registry) == 0.0


def test_a_thread_that_hands_on_does_not_wait_for_itself(
    engine: Engine, registry: CollectorRegistry, timeouts: Timeouts
) -> None:
    """A thread whose connections others return has none, although it is the one that checked all of the pool out.

    Once it nests itself, it is named again.
    """
    connections = [engine.connect() for _ in range(2)]
    with ThreadPoolExecutor(1) as other:
        list(other.map(lambda connection: connection.close(), connections))
    connections = [engine.connect() for _ in range(2)]
    seen: list[tuple[bool, float]] = []

    def look_and_return() -> None:
        seen.append((eventually(lambda: is_pending(registry)), deadlocked(registry)))
        for connection in connections:
            connection.close()

    watcher = threading.Thread(target=look_and_return)
    watcher.start()
    engine.connect().close()
    watcher.join()
    assert seen == [(True, 0.0)]
    connections = [engine.connect() for _ in range(2)]
    timeouts.time_out(engine, lambda: True)
    assert nested(registry) == 0.0
    for connection in reversed(connections):
        connection.close()
    assert nested(registry) == 1.0
    connections = [engine.connect() for _ in range(2)]
    timeouts.time_out(engine, lambda: True)
    assert nested(registry) == 2.0
    for connection in connections:
        connection.close()


def test_connections_that_a_task_hands_on_and_waits_for(registry: CollectorRegistry, tmp_path: Path) -> None:
    """So it is if the task that handed them on waits for the one that returns them, the oldest first."""

    async def run() -> None:
        engine = an_async_engine(registry, tmp_path)
        handed: asyncio.Queue[Any] = asyncio.Queue()

        async def consume() -> None:
            for _ in range(20):
                await (await handed.get()).close()

        consumer = asyncio.create_task(consume())
        for _ in range(20):
            await handed.put(await engine.connect())
        await consumer
        await engine.dispose()

    asyncio.run(run())
    assert nested(registry) == 0.0


def test_connections_that_tasks_hand_on(registry: CollectorRegistry, tmp_path: Path) -> None:
    """So it is with tasks, also if the first task checks out again while the second one holds its connection."""

    async def run() -> None:
        engine = an_async_engine(registry, tmp_path)
        handed: asyncio.Queue[Any] = asyncio.Queue()

        async def consume() -> None:
            while (connection := await handed.get()) is not None:
                await asyncio.sleep(0)
                await connection.close()

        consumer = asyncio.create_task(consume())
        for _ in range(20):
            await handed.put(await engine.connect())
        async with engine.connect():
            pass
        await handed.put(None)
        while held_by(engine):  # a task that waits for another one could be said to act through it
            await asyncio.sleep(0.001)
        await consumer
        await engine.dispose()

    asyncio.run(run())
    assert nested(registry) == 0.0


def test_tasks_that_share_a_thread(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Two tasks of one thread that hold connections at once do not nest; one task that holds two does."""

    async def run() -> None:
        engine = an_async_engine(registry, tmp_path)

        async def work() -> None:
            async with engine.connect():
                await asyncio.sleep(0.01)

        await asyncio.gather(work(), work())
        assert nested(registry) == 0.0
        async with engine.connect(), engine.connect():
            pass
        assert nested(registry) == 1.0
        async with manager(engine), manager(engine):
            pass
        assert nested(registry) == 2.0
        await asyncio.wait_for(two(engine), 60)
        assert nested(registry) == 3.0
        await engine.dispose()

    asyncio.run(run())


def test_calls_of_tasks_in_one_thread(
    engine: Engine, registry: CollectorRegistry, timeouts: Timeouts
) -> None:
    """A thread that works for several tasks holds nothing for another one; nor does its wait make a deadlock."""

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        first = await asyncio.create_task(asyncio.to_thread(engine.connect))
        second = await asyncio.create_task(asyncio.to_thread(engine.connect))
        waits = asyncio.create_task(asyncio.to_thread(_times_out, engine))
        assert await eventually_async(lambda: is_pending(registry))
        assert deadlocked(registry) == 0.0
        timeouts.strike(engine.pool)
        await waits
        await asyncio.to_thread(second.close)
        await asyncio.to_thread(first.close)

    def _times_out(engine: Engine) -> None:
        with pytest.raises(exc.TimeoutError):
            engine.connect()

    asyncio.run(run())
    assert nested(registry) == 0.0


async def in_thread(function: Callable[[], object]) -> None:
    """Call a function in a thread once the task awaits that: when a new thread begins, it may not do so yet."""
    awaits = threading.Event()

    def call() -> None:
        awaits.wait()
        function()

    asyncio.get_running_loop().call_soon(awaits.set)
    await asyncio.to_thread(call)


def test_a_task_waits_for_its_thread(engine: Engine, registry: CollectorRegistry) -> None:
    """A checkout in ``asyncio.to_thread()`` nests if the task that awaits it holds a connection."""

    def inner() -> None:
        engine.connect().close()
        engine.connect().close()

    async def run() -> None:
        await in_thread(inner)
        assert nested(registry) == 0.0
        with engine.connect():
            await in_thread(inner)
            await asyncio.wait_for(in_thread(inner), 60)
        assert nested(registry) >= 2.0
        before = nested(registry)
        with engine.connect():
            # Not those of tasks that it begins, nor what it does not wait for.
            await asyncio.create_task(in_thread(inner))
            await asyncio.gather(in_thread(inner), in_thread(inner))
            call = partial(copy_context().run, inner)
            later = asyncio.get_running_loop().run_in_executor(None, call)
            while not later.done():
                await asyncio.sleep(0.001)
        assert nested(registry) == before

    asyncio.run(run())


def test_a_deadlock_with_its_thread(engine: Engine, registry: CollectorRegistry, timeouts: Timeouts) -> None:
    """A task that waits for a thread that waits for its connection is a self-deadlock."""
    seen: list[object] = []

    def inner() -> None:
        seen.append(timeouts.time_out(engine, lambda: eventually(lambda: deadlocked(registry) == 1.0)))

    async def run() -> None:
        with engine.connect(), engine.connect():
            await in_thread(inner)

    asyncio.run(run())
    assert seen == [True]


def test_a_thread_that_its_task_waits_for_no_more(engine: Engine, registry: CollectorRegistry) -> None:
    """A task that was cancelled while it waited for a thread holds nothing of it, nor does that thread of the task."""
    go_on, ended = threading.Event(), threading.Event()

    async def run() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def slow() -> None:
            with engine.connect():
                loop.call_soon_threadsafe(task.cancel)
                go_on.wait()
            engine.connect().close()
            ended.set()

        with pytest.raises(asyncio.CancelledError):
            await in_thread(slow)
        with engine.connect():
            go_on.set()
            while not ended.is_set():
                await asyncio.sleep(0.001)
        assert nested(registry) == 0.0

    asyncio.run(run())


@pytest.mark.newest
def test_calls_of_a_request_in_threads(engine: Engine, registry: CollectorRegistry) -> None:
    """Calls that one task makes in AnyIO's threads, as FastAPI does, nest; those of another task in them do not."""
    to_thread = pytest.importorskip("anyio").to_thread

    async def run() -> None:
        to_thread.current_default_thread_limiter().total_tokens = 1

        async def request(until: asyncio.Event) -> None:
            connection = await to_thread.run_sync(engine.connect)
            await until.wait()
            await to_thread.run_sync(connection.close)

        first_ends, at_once = asyncio.Event(), asyncio.Event()
        at_once.set()
        first = asyncio.create_task(request(first_ends))
        while not held_by(engine):
            await asyncio.sleep(0)
        await asyncio.create_task(request(at_once))
        first_ends.set()
        await first
        assert nested(registry) == 0.0
        outer = await to_thread.run_sync(engine.connect)
        await request(at_once)
        await to_thread.run_sync(outer.close)
        assert nested(registry) == 1.0

    asyncio.run(run())


def held_by(engine: Engine | AsyncEngine) -> int:
    pool: Any = engine.pool
    return int(pool.checkedout())


def test_a_new_thread_is_not_an_old_one(engine: Engine, registry: CollectorRegistry) -> None:
    """A thread that gets the identity of one that ended, which left a connection out, holds nothing."""
    left: list[Any] = []
    first = threading.Thread(target=lambda: left.append(engine.connect()))
    first.start()
    first.join()
    second = threading.Thread(target=lambda: engine.connect().close())
    second.start()
    second.join()
    left.pop().close()
    engine.dispose()
    assert nested(registry) == 0.0


def test_a_nested_checkout_of_dead_connections(engine: Engine, registry: CollectorRegistry) -> None:
    """A nested checkout counts, too, if its connections are found dead when they come back."""
    with engine.connect() as outer, engine.connect() as inner:
        for connection in (inner, outer):
            connection.connection.dbapi_connection.close()  # type: ignore[union-attr]
    assert nested(registry) == 1.0


@pytest.mark.parametrize("ends", ["detach", "invalidate", "collect"])
def test_what_a_holder_no_longer_holds(engine: Engine, registry: CollectorRegistry, ends: str) -> None:
    """After a detach, an invalidation or a collection the thread holds nothing."""
    with ExitStack() as stack:
        connection = engine.connect()
        if ends == "detach":
            connection.detach()
            stack.callback(connection.close)
        elif ends == "invalidate":
            connection.invalidate()
            connection.close()
        else:
            del connection
        with engine.connect():
            pass
    assert nested(registry) == 0.0
    assert RegistrySamples(registry).value("exporter_recording_faults_total", POOL) == 0.0
