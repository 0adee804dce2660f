# SPDX-License-Identifier: Apache-2.0
"""Measure what a second thread adds: the throughput of two threads against that of one, with recording and without.

With the GIL a second thread adds nothing. So this says most on an interpreter without it::

    python3.14t -m benchmarks --only threads
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from statistics import median
from threading import Barrier, Event, Thread
from time import perf_counter
from typing import TYPE_CHECKING

from . import fake
from .measure import confidence
from .report import Table
from .watchers import Watcher, nothing, this_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

_THREADS = 2
_COMPARED = (Watcher("nothing", nothing), Watcher("sqlalchemy-pool-exporter", this_project))


def run(*, quick: bool) -> Iterator[Table]:
    """Yield one table, two rows for each watcher: a pool of its own for each thread, and one pool."""
    rounds, seconds = (2, 0.02) if quick else (61, 0.2)
    yield Table(
        title="Throughput of two threads",
        note=(
            "`pool.connect().close()` without a pause, on pools of 4 whose connections do nothing, and the throughput "
            f"of {_THREADS} threads divided by that of one: the median of {rounds} neighbouring turns of {seconds:g} s "
            "each, with its 95 % confidence interval. With the GIL it is at most 1."
        ),
        columns=("pools", "instrumentation", "a thread, per second", "two threads, per second", "ratio"),
        rows=tuple(
            (
                "one for each thread" if are_own else "one for both",
                watcher.name,
                *_row(watcher, rounds, seconds, are_own=are_own),
            )
            for are_own in (True, False)
            for watcher in _COMPARED
        ),
        names=2,
    )


def _row(watcher: Watcher, rounds: int, seconds: float, *, are_own: bool) -> tuple[str, ...]:
    with ExitStack() as stack:
        engines = [fake.engine(pool_size=4, max_overflow=0) for _ in range(_THREADS if are_own else 1)]
        for engine in engines:
            stack.callback(engine.dispose)
            stack.enter_context(watcher.attach(engine))
        connects = [engines[at % len(engines)].pool.connect for at in range(_THREADS)]
        _throughput(connects, seconds)  # warm up: open the connections, let the interpreter specialise
        turns = [(_throughput(connects[:1], seconds), _throughput(connects, seconds)) for _ in range(rounds)]
    ratio = confidence([two / one for one, two in turns])
    return (*(f"{median(each):,.0f}" for each in zip(*turns, strict=True)), f"{ratio:.2f}")


def _throughput(connects: Sequence[Callable[[], Any]], seconds: float) -> float:
    """Return how many cycles a second all threads do together, one thread for each function."""
    start, end = Barrier(len(connects) + 1), Event()
    done: list[int] = []

    def work(connect: Callable[[], Any]) -> None:
        start.wait()
        for cycles in count(1):
            connect().close()
            if end.is_set():
                done.append(cycles)
                return

    threads = [Thread(target=work, args=(connect,)) for connect in connects]
    for thread in threads:
        thread.start()
    start.wait()
    began = perf_counter()
    end.wait(seconds)
    end.set()
    elapsed = perf_counter() - began
    for thread in threads:
        thread.join()
    return sum(done) / elapsed
