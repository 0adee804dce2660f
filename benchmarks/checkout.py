# SPDX-License-Identifier: Apache-2.0
"""Measure a checkout and its return: bare, with empty listeners, and instrumented by this project and by others."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from threading import Barrier, Thread
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any

from sqlalchemy import column, select, table

from . import fake, process
from .measure import Pairs, Turn, added, confidence, no_collections, paired, relative
from .need import MissingError
from .report import Table
from .watchers import LISTENERS, WATCHERS, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Engine

_THREADS, _CONNECTIONS = 8, 4
# How often all processes are started anew: the memory of each is laid out by chance, and code that lies badly stays so.
_GENERATIONS = 6
_WATCHED = "watched"
_ORDERS = table("orders", column("id"), column("customer"), column("total"))


@dataclass(frozen=True, slots=True)
class _Variant:
    """A way to use the pool; *turn* runs one measured turn with the given ``connect()``."""

    title: str
    note: str
    engine_options: dict[str, Any]
    turn: Callable[[Callable[[], Any], int], int]
    cycles: int
    rounds: int
    quick_rounds: int
    headline: bool = False
    quiet: bool = True  # whether the noise is below a microsecond


def run(*, quick: bool) -> Iterator[Table]:
    """Yield one table for each way a pool is used."""
    for variant in _VARIANTS:
        rounds, generations = (variant.quick_rounds, 1) if quick else (variant.rounds, _GENERATIONS)
        yield _measure(variant, rounds, generations)


def _measure(variant: _Variant, rounds: int, generations: int) -> Table:
    times: dict[str, list[tuple[int, int]]] = {}
    missing: dict[str, str] = {}
    for _ in range(generations):
        for name, pairs in _one_generation(variant, rounds // generations, missing).items():
            times.setdefault(name, []).extend(pairs)
    return Table(
        title=variant.title,
        note=f"{variant.note} {rounds} rounds of {variant.cycles} cycles. {_MEANINGS[variant.quiet]}",
        columns=("instrumentation", "ns per cycle", "added ns", "middle half", _HEADS[variant.quiet]),
        rows=tuple(_row(watcher.name, times, variant) for watcher in WATCHERS),
        missing=tuple(f"{name}: {why}" for name, why in missing.items()),
        headline=variant.headline,
    )


def _one_generation(
    variant: _Variant, rounds: int, missing: dict[str, str]
) -> dict[str, list[tuple[int, int]]]:
    pairs: dict[str, tuple[Turn, Turn]] = {}
    with ExitStack() as stack:
        # Those that use the pool in the same way are compared with the same one without anything.
        bare = {
            each.through_engine: _process(variant, each, stack, is_watched=False)
            for each in {each.through_engine: each for each in WATCHERS}.values()
        }
        watched = [_process(variant, watcher, stack) for watcher in WATCHERS]
        for watcher, each in zip(WATCHERS, watched, strict=True):
            try:
                bare[watcher.through_engine].wait()
                each.wait()
            except MissingError as error:
                missing[watcher.name] = str(error)
                continue
            pairs[watcher.name] = (bare[watcher.through_engine].turn, each.turn)
        paired(2, list(pairs.values()))  # warm up: open the connections, let the interpreter specialise
        return dict(zip(pairs, paired(rounds, list(pairs.values())), strict=True))


def _process(
    variant: _Variant, watcher: Watcher, stack: ExitStack, *, is_watched: bool = True
) -> process.Process:
    which = _WATCHED if is_watched else "bare"
    started = process.Process(
        "checkout", variant.title, watcher.name, which, interpreted=watcher.interpreted and is_watched
    )
    stack.callback(started.close)
    return started


def turn(stack: ExitStack, title: str, name: str, which: str) -> Turn:
    """Return the turn of the watcher *name* for the way to use a pool that is called *title*, of this process.

    The cyclic garbage collector is off until the stack is closed.

    Raises:
        MissingError: the watcher's package is not installed.
    """
    variant = next(each for each in _VARIANTS if each.title == title)
    watcher = next(each for each in WATCHERS if each.name == name)
    engine = _engine(variant, stack)
    if which == _WATCHED:
        stack.enter_context(watcher.attach(engine))
    stack.enter_context(no_collections())
    return _turn(watcher, engine, variant)


def _engine(variant: _Variant, stack: ExitStack) -> Engine:
    engine = fake.engine(**variant.engine_options)
    stack.callback(engine.dispose)
    return engine


def _turn(watcher: Watcher, engine: Engine, variant: _Variant) -> Turn:
    # Bind it once, after attaching: the attribute lookup costs the same with and without instrumentation.
    connect: Callable[[], Any] = engine.raw_connection if watcher.through_engine else engine.pool.connect
    return lambda: variant.turn(connect, variant.cycles)


def _row(name: str, times: Mapping[str, Pairs], variant: _Variant) -> tuple[str, ...]:
    if name not in times:
        return (name, "not measured", "", "", "")
    pairs = times[name]
    more = added(pairs)
    return (
        name,
        f"{median(watched for _, watched in pairs) / variant.cycles:,.0f}",
        f"{more.median / variant.cycles:+,.0f}",
        f"{more.low / variant.cycles:+,.0f} to {more.high / variant.cycles:+,.0f}",
        _against_listeners(pairs, times[LISTENERS.name]) if variant.quiet else _against_nothing(pairs),
    )


def _against_nothing(pairs: Pairs) -> str:
    return f"{confidence([watched / base for base, watched in pairs]):.2f}"


def _against_listeners(pairs: Pairs, listeners: Pairs) -> str:
    return "1" if pairs is listeners else f"{relative(pairs, listeners):.2f}"


# Heading and meaning of the last column, by _Variant.quiet.
_HEADS = {True: "against two empty listeners", False: "against nothing"}
_MEANINGS = {
    True: (
        "Against two empty listeners: what the row adds divided by what they add, with the 95 % interval of a "
        "bootstrap over the rounds."
    ),
    False: (
        "Against nothing: the median over the rounds of the time divided by the time of the pool without anything, "
        "with its 95 % confidence interval."
    ),
}


# Ways to use a pool


def _other_work() -> None:
    orders = _ORDERS.c
    select(_ORDERS).where(orders.customer == 3, orders.total > 5).order_by(orders.id).limit(10).compile()


def _one_thread(connect: Callable[[], Any], cycles: int) -> int:
    # Processor time, not wall time: a busy machine interrupts longer turns more often, which adds to their wall time.
    start = thread_time_ns()
    for _ in repeat(None, cycles):
        connect().close()
    return thread_time_ns() - start


def _among_other_work(connect: Callable[[], Any], cycles: int) -> int:
    total = 0
    for _ in repeat(None, cycles):
        _other_work()
        start = thread_time_ns()
        connect().close()
        total += thread_time_ns() - start
    return total


def _many_threads(connect: Callable[[], Any], cycles: int) -> int:
    barrier = Barrier(_THREADS + 1)

    def work() -> None:
        barrier.wait()
        for _ in repeat(None, cycles // _THREADS):
            connection = connect()
            # Sleep while holding the connection, so that other threads have to wait for one.
            time.sleep(0)
            connection.close()

    threads = [Thread(target=work) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = perf_counter_ns()
    for thread in threads:
        thread.join()
    return perf_counter_ns() - start


_VARIANTS = (
    _Variant(
        title="Checkout and return",
        note=(
            "One thread, `pool.connect().close()` on a QueuePool whose connections do nothing; processor time of the "
            "thread (`thread_time_ns`), the cyclic garbage collector off. Each pool is in a process of its own. Each "
            "turn runs beside one of the same length on a pool without anything; added comes from the median of the "
            "ratios of the two, the middle half from their quartiles. The first row is such a pool again: the noise. "
            "sqlalchemy-collectd listens to `reset` as SQLAlchemy 1 called it; looking for whom to warn of that is "
            "part of its figure at each return."
        ),
        engine_options={},
        turn=_one_thread,
        cycles=50,
        rounds=1200,
        quick_rounds=40,
        headline=True,
    ),
    _Variant(
        title="Checkout and return among other work",
        note=(
            "As the first, but between two cycles, outside the clock, a SELECT is built and compiled. That takes the "
            "pool's code and data out of the processor's nearer caches, as what an application does between its "
            "checkouts will; everything costs several times as much then, and the differences shrink."
        ),
        engine_options={},
        turn=_among_other_work,
        cycles=20,
        rounds=150,
        quick_rounds=8,
    ),
    _Variant(
        title="Checkout and return with pre-ping",
        note=(
            "As the first, with `pool_pre_ping=True` and a ping that succeeds at once. SQLAlchemy then goes the longer "
            "way through a checkout, which a listener of the checkout makes it go, too: so two listeners add less here "
            "than in the first table, while a ping is recorded beside the checkout and the return."
        ),
        engine_options={"pool_pre_ping": True},
        turn=_one_thread,
        cycles=50,
        rounds=800,
        quick_rounds=20,
    ),
    _Variant(
        title="Checkout and return under contention",
        note=(
            f"{_THREADS} threads over {_CONNECTIONS} connections, each giving the interpreter away while it holds one; "
            "wall time divided by the cycles of all threads. Switching threads is most of it, and scatters widely."
        ),
        engine_options={"pool_size": _CONNECTIONS, "max_overflow": 0},
        turn=_many_threads,
        cycles=_THREADS * 100,
        rounds=40,
        quick_rounds=3,
        quiet=False,
    ),
)
