# SPDX-License-Identifier: Apache-2.0
"""Measure a scrape in the application: its processor time, and how long it makes the application's own work wait."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import asgi_app, exposition, instrument, pausing
from sqlalchemy_pool_exporter.negotiation import Wanted

from . import fake
from .report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

# (pools, whether they are in a directory)
CASES = ((1, False), (100, False), (500, False), (500, True), (2_000, False))
DATABASE_SECONDS = 0.001
_SETTLE_SECONDS = 0.02
_NOTHING_SECONDS = 0.1
_HEADERS = [(b"accept-encoding", b"gzip")]


class Case(NamedTuple):
    """Instrumented pools in a registry."""

    registry: CollectorRegistry
    engine: Engine  # one of them

    def scrape(self) -> None:
        """Make the answer that Prometheus asks for."""
        exposition.write(self.registry.collect(), Wanted.of("", "gzip"))

    def scrape_as_endpoint(self) -> None:
        """Make it as the endpoints of the application do."""
        with pausing.pausing():
            self.scrape()


class Waits(NamedTuple):
    """How long the application's work waited, in seconds, and how long the scrapes took."""

    every: list[float]
    scrapes: list[float]


def run(*, quick: bool) -> Iterator[Table]:
    """Yield two tables: the processor's time, and the waits."""
    cases, rounds = (((1, False), (20, True)), 1) if quick else (CASES, 7)
    cost, waits = [], []
    for pools, shared in cases:
        name = f"{pools:,}{' in a directory' if shared else ''}"
        with _case(pools, shared=shared) as case:
            cost.append((name, f"{_processor(case, rounds) * 1e3:.1f}"))
            waits += [(name, *row) for row in _rows(case, rounds)]
    yield Table(
        title="A scrape in the application",
        note=(
            f"Processor time of the thread, the median of {rounds}: reading, making families, and writing the text "
            "with gzip."
        ),
        columns=("pools", "ms"),
        rows=tuple(cost),
    )
    yield Table(
        title="What waits for a scrape in the application",
        note=(
            "How much later than without a GIL something went on: a checkout in a loop without any waiting; a "
            "checkout in a loop that waits 1 ms for a database each time; and a task that sleeps 1 ms in an event "
            f"loop whose asgi_app() is scraped. {rounds} scrapes of each, and as often 0.1 s without one. Without "
            "pauses: Python takes the GIL from the scrape only after its switch interval, 5 ms. A loop without any "
            "waiting takes as much from the scrape, so its longest pause is 5 ms in both; the last column is how long "
            "the scrape took beside it, the median."
        ),
        columns=("pools", "what waits", "for", "99 % ms", "longest ms", "scrape ms"),
        rows=tuple(waits),
        names=3,
    )


@contextmanager
def _case(pools: int, *, shared: bool) -> Iterator[Case]:
    registry = CollectorRegistry()
    with ExitStack() as stack:
        directory = tempfile.mkdtemp() if shared else None
        if directory is not None:
            stack.callback(shutil.rmtree, directory)
        engines = [fake.engine() for _ in range(pools)]
        for number, engine in enumerate(engines):
            stack.enter_context(
                instrument(engine, name=f"pool {number}", registry=registry, directory=directory)
            )
            engine.raw_connection().close()
        case = Case(registry, engines[0])
        case.scrape()  # what happens only once
        yield case


def _processor(case: Case, rounds: int) -> float:
    def once() -> float:
        began = time.thread_time()
        case.scrape_as_endpoint()
        return time.thread_time() - began

    return statistics.median([once() for _ in range(rounds)])


def _rows(case: Case, rounds: int) -> Iterator[tuple[str, ...]]:
    neighbours: dict[str, Callable[[Callable[[], None] | None], Waits]] = {
        "checkouts": lambda act: _beside_thread(case, act, 0.0),
        "checkouts and a database": lambda act: _beside_thread(case, act, DATABASE_SECONDS),
        "an event loop": lambda act: asyncio.run(_beside_task(case, is_scraped=act is not None)),
    }
    for what, measure in neighbours.items():
        kinds: dict[str, list[Waits]] = {"nothing": [], "a scrape without pauses": [], "a scrape": []}
        for _ in range(rounds):  # in turn, because the machine is not always equally busy
            kinds["nothing"].append(measure(None))
            with _without_pauses():
                kinds["a scrape without pauses"].append(measure(case.scrape_as_endpoint))
            kinds["a scrape"].append(measure(case.scrape_as_endpoint))
        for kind, several in kinds.items():
            every = sorted(chain.from_iterable(waits.every for waits in several))
            took = statistics.median(chain.from_iterable(waits.scrapes for waits in several))
            figures = (every[int(len(every) * 0.99)], every[-1])
            yield (
                what,
                kind,
                *(f"{figure * 1e3:.2f}" for figure in figures),
                "" if kind == "nothing" else f"{took * 1e3:.1f}",
            )


@contextmanager
def _without_pauses() -> Iterator[None]:
    before = pausing._WORK_SECONDS  # noqa: SLF001 - only this benchmark turns pauses off
    pausing._WORK_SECONDS = inf  # type: ignore[misc]  # noqa: SLF001
    try:
        yield
    finally:
        pausing._WORK_SECONDS = before  # type: ignore[misc]  # noqa: SLF001


def _beside_thread(case: Case, act: Callable[[], None] | None, seconds: float) -> Waits:
    """Run a scrape, or nothing, beside a thread that checks out and waits for so long, again and again."""
    stopped, waits = threading.Event(), [0.0]

    def work() -> None:
        while not stopped.is_set():
            began = time.perf_counter()
            case.engine.raw_connection().close()
            if seconds:
                time.sleep(seconds)
            waits.append(time.perf_counter() - began - seconds)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(_SETTLE_SECONDS)
    first, began = len(waits), time.perf_counter()
    (act or _nothing)()
    took = time.perf_counter() - began
    time.sleep(_SETTLE_SECONDS)  # the last wait ends after the scrape
    found = waits[first:]
    stopped.set()
    thread.join()
    return Waits(found or waits, [took])


async def _beside_task(case: Case, *, is_scraped: bool) -> Waits:
    """Scrape ``asgi_app()``, or nothing, in an event loop in which a task sleeps for so long, again and again."""
    waits, application = [0.0], asgi_app(case.registry)

    async def work() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(DATABASE_SECONDS)
            waits.append(time.perf_counter() - began - DATABASE_SECONDS)

    async def send(_message: object) -> None: ...

    task = asyncio.create_task(work())
    await asyncio.sleep(_SETTLE_SECONDS)
    first, began = len(waits), time.perf_counter()
    if is_scraped:
        await application({"type": "http", "method": "GET", "headers": _HEADERS}, None, send)
    else:
        await asyncio.sleep(_NOTHING_SECONDS)
    took = time.perf_counter() - began
    await asyncio.sleep(_SETTLE_SECONDS)
    task.cancel()
    return Waits(waits[first:] or waits, [took])


def _nothing() -> None:
    time.sleep(_NOTHING_SECONDS)
