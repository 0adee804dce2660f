# SPDX-License-Identifier: Apache-2.0
"""A scrape in the application lets the application's other threads run; the sidecar's need not."""

from __future__ import annotations

import gc
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import exposition, instrument, pausing, wsgi_app
from sqlalchemy_pool_exporter.exposition import Family
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.metrics import Metric
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.series_cy import Samples, Series
from tests.support.fakes import connect
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy_pool_exporter.segment.directory import Fleet

POOLS = 40


@pytest.fixture
def turns() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Return a function that counts how often another thread runs during a call.

    That thread wants the GIL every 0.1 ms, and Python takes the GIL away from no thread.
    """
    # A connection or a file that an earlier test left, and the garbage collector closed, would give the GIL away.
    gc.collect()
    gc.disable()
    stopped, count = threading.Event(), [0]

    def run() -> None:
        while not stopped.is_set():
            time.sleep(0.0001)
            count[0] += 1

    def turns_during(act: Callable[[], object]) -> int:
        before = count[0]
        act()
        return count[0] - before

    interval, thread = sys.getswitchinterval(), threading.Thread(target=run)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        yield turns_during
    finally:
        sys.setswitchinterval(interval)
        gc.enable()
        stopped.set()
        thread.join()


class Big(Collector):
    """Collects one family of many lines."""

    def __init__(self) -> None:
        self.family = Family("big", "A help.", "gauge")
        metric = Metric("big", "gauge", "A help.")
        self._series = [Series(metric, {"number": str(number)}) for number in range(20_000)]

    def collect(self) -> Iterator[Family]:
        """Yield the family, with values whose text is not written yet."""
        self.family.groups = [Samples(series, (1.5,)) for series in self._series]
        yield self.family


class Read:
    """Reads a directory once only, so that nothing but the work on it takes time."""

    def __init__(self, directory: Path) -> None:
        self._fleet = Reader(directory).read()

    def read(self, **_options: object) -> Fleet:
        """Return what was read."""
        return self._fleet


@pytest.fixture
def scrapes(tmp_path: Path) -> Iterator[dict[str, Callable[[], object]]]:
    """Return parts of a scrape by name; none of them does any input or output."""
    registry, shared = CollectorRegistry(), CollectorRegistry()
    big = CollectorRegistry()
    big.register(Big())
    pools = [QueuePool(connect) for _ in range(2 * POOLS)]
    with ExitStack() as stack:
        for number, pool in enumerate(pools):
            where, directory = ((registry, None), (shared, tmp_path))[number % 2]
            stack.enter_context(instrument(pool, name=f"{number}", registry=where, directory=directory))
        collector = FleetCollector(Read(tmp_path), worker_label=True, counters_per_worker=False)
        environ = {"REQUEST_METHOD": "GET"}
        answer = wsgi_app(big)
        list(registry.collect()), list(collector.collect())  # once: reads versions from files
        yield {
            "pools in memory": lambda: list(registry.collect()),
            "pools of a directory": lambda: list(collector.collect()),
            "writing": lambda: exposition.text(big.collect()),
            "an answer": lambda: answer(environ, lambda *_: None),
        }
        assert len(pools) == 2 * POOLS  # they live until here


@pytest.mark.parametrize("what", ["pools in memory", "pools of a directory", "writing", "an answer"])
def test_another_thread_runs_during_a_scrape(
    what: str,
    turns: Callable[[Callable[[], object]], int],
    scrapes: dict[str, Callable[[], object]],
) -> None:
    """A thread that wants the GIL now and then gets it in the midst of each part of a scrape."""

    def is_given_turns() -> bool:
        with pausing.pausing():
            return turns(scrapes[what]) > 0

    assert eventually(is_given_turns, poll_seconds=0.0)


@pytest.mark.parametrize("what", ["pools of a directory", "writing"])
def test_the_sidecar_does_not_pause(
    what: str,
    turns: Callable[[Callable[[], object]], int],
    scrapes: dict[str, Callable[[], object]],
) -> None:
    """The same work without ``pausing()`` gives nothing away."""
    assert 0 == turns(scrapes[what])


@pytest.mark.parametrize("what", ["pools in memory", "an answer"])
def test_an_application_pauses_without_being_asked(
    what: str,
    turns: Callable[[Callable[[], object]], int],
    scrapes: dict[str, Callable[[], object]],
) -> None:
    """The collector of an application's registry pauses whoever calls it, and its endpoints while they write."""
    assert eventually(lambda: turns(scrapes[what]) > 0, poll_seconds=0.0)


class Clock:
    """A clock and a thread that computes all the time: each pause lasts as long as Python's switch interval."""

    def __init__(self) -> None:
        self.now = self.paused = 0.0

    def perf_counter(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, _seconds: float) -> None:
        """Pause."""
        self.now += 0.005
        self.paused += 0.005


def test_pauses_take_no_longer_than_the_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a thread that never waits, the pauses of a scrape of 1 s take 1 s and not 5 ms for each of 2,000 pools."""
    clock = Clock()
    monkeypatch.setattr(pausing, "time", clock)
    with pausing.pausing():
        for _ in range(2000):
            clock.now += 0.0005
            pausing.pause()

    assert 0.9 < clock.paused <= 1.0


def test_no_pause_is_due_after_the_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block within another one leaves the other one in force; after the last, ``pause()`` does nothing."""
    clock = Clock()
    monkeypatch.setattr(pausing, "time", clock)
    with pausing.pausing():
        with pausing.pausing():
            pass
        clock.now = 10.0
        pausing.pause()
    clock.now = 20.0
    pausing.pause()

    assert 0.005 == clock.paused
