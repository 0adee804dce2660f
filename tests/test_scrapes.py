# SPDX-License-Identifier: Apache-2.0
"""A scrape shows what a first scrape would show, and as prometheus_client would write it, whatever was kept before.

What did not change since the last scrape is not read, added up or written again. So the scrapes of one collector,
between which anything can happen, are compared with those of collectors that have nothing from before.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.page import ENTRIES_AT, HOLDERS, SITE_COPIES_AT, SITE_DOUBLES
from tests.support.segments import QUEUE, Process, new_block

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_pool_exporter.exposition import Family
    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock

NAMES = ("orders", 'odd %s "name"\\{é}', "billing")
SITES = ("orders.api:pay:88", "orders.api:list:12", "jobs:run:7")
CHOICES = st.integers(0, 1000)
SECONDS = st.floats(0.0, 100.0)


class Clock:
    """Seconds that tests set."""

    now = 10_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1.7e9


class Given:
    """A registry that returns the families of one scrape."""

    def __init__(self, families: Iterable[Family]) -> None:
        self.families = list(families)

    def collect(self) -> Iterable[Family]:
        return self.families


def written_by_prometheus_client(families: Iterable[Family]) -> tuple[bytes, bytes]:
    registry: Any = Given(families)
    written: bytes = openmetrics.generate_latest(registry)
    return generate_latest(registry), written


class Scrapes(RuleBasedStateMachine):
    """Processes come, work and go in a directory that one collector reads again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.clock = Clock()
        self.running: list[Process] = []
        self.further: list[PoolBlock] = []  # pools of running processes, beside the one that each has

    @initialize(worker_label=st.booleans(), counters_per_worker=st.booleans())
    def begin(self, worker_label: bool, counters_per_worker: bool) -> None:
        self.worker_label, self.counters_per_worker = worker_label, counters_per_worker
        self.collector = self.fresh()

    def fresh(self) -> FleetCollector:
        return FleetCollector(
            Reader(self.directory),
            worker_label=self.worker_label,
            counters_per_worker=self.counters_per_worker,
            monotonic=self.clock.monotonic,
            wall=self.clock.wall,
        )

    def teardown(self) -> None:
        for process in self.running:
            process.kill()
        self.stack.close()

    @rule(name=st.sampled_from(NAMES), size=st.integers(0, 3))
    def start(self, name: str, size: int) -> None:
        if len(self.running) < 5:
            self.running.append(Process(self.directory, name, size=float(size)))

    @precondition(lambda self: self.running)
    @rule(which=CHOICES)
    def kill(self, which: int) -> None:
        process = self.running.pop(which % len(self.running))
        self.further = [one for one in self.further if one.pages is not process.lease.pages]
        process.kill()

    @precondition(lambda self: self.running)
    @rule(which=CHOICES, name=st.sampled_from(NAMES))
    def another_pool(self, which: int, name: str) -> None:
        storage = new_block(self.of(which).lease, name, QUEUE)
        storage.doubles[layout.ACTIVE] = storage.doubles[layout.HAS_OVERFLOW] = 1.0
        self.further.append(storage)

    @precondition(lambda self: self.further)
    @rule(which=CHOICES)
    def fold(self, which: int) -> None:
        storage = self.further.pop(which % len(self.further))
        storage.pages.fold(storage)

    @precondition(lambda self: self.running)
    @rule(which=CHOICES, checkouts=st.integers(0, 10**7), detaches=st.integers(0, 2))
    def count(self, which: int, checkouts: int, detaches: int) -> None:
        self.of(which).count(checkouts, detaches)

    @precondition(lambda self: self.further)
    @rule(which=CHOICES, at=CHOICES, amount=st.integers(1, 10**9))
    def count_elsewhere(self, which: int, at: int, amount: int) -> None:
        block = self.further[which % len(self.further)].doubles
        first = layout.OTHER_SITES + layout.SITE_COUNTS * 2
        block[first + at % (layout.FIELDS - first)] += float(amount)

    @precondition(lambda self: self.running)
    @rule(which=CHOICES, row=st.integers(0, 7), ago=SECONDS, site=st.sampled_from(("", *SITES)))
    def hold(self, which: int, row: int, ago: float, site: str) -> None:
        self.of(which).hold(self.clock.now - ago, row, site=site)

    @precondition(lambda self: self.running)
    @rule(which=CHOICES, row=st.integers(0, 7), ago=SECONDS)
    def give_back(self, which: int, row: int, ago: float) -> None:
        block, at = self.of(which).block, layout.CONNECTIONS_AT + layout.ROW * row
        block[at], block[at + layout.HELD_SINCE] = self.clock.now - ago, 0.0
        block[layout.LAST_CHECKIN] = self.clock.now

    @precondition(lambda self: self.running)
    @rule(which=CHOICES, site=st.sampled_from(SITES), checkouts=st.integers(1, 1000))
    def count_site(self, which: int, site: str, checkouts: int) -> None:
        process = self.of(which)
        known = [one.text for one in process.storage.sites()]
        if site not in known:
            assert process.storage.site(site) is not None
            known.append(site)
        page: memoryview[float] = process.storage.pages.page(process.storage.sites_page).cast("d")
        page[ENTRIES_AT + known.index(site) * SITE_DOUBLES + SITE_COPIES_AT[0]] += float(checkouts)

    @precondition(lambda self: self.running)
    @rule(which=CHOICES, slot=st.integers(0, 7), ago=SECONDS)
    def wait(self, which: int, slot: int, ago: float) -> None:
        self.of(which).wait(self.clock.now - ago, slot)

    @precondition(lambda self: self.running)
    @rule(which=CHOICES)
    def label(self, which: int) -> None:
        self.of(which).lease.pages.write_texts(HOLDERS, ["a thread", "another"])

    @precondition(lambda self: self.running)
    @rule(which=CHOICES, seconds=SECONDS)
    def replaced(self, which: int, seconds: float) -> None:
        block = self.of(which).block
        block[layout.ACTIVE] = layout.REPLACED
        block[layout.LEAK_AFTER] = seconds

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    def of(self, which: int) -> Process:
        return self.running[which % len(self.running)]

    @invariant()
    def nothing_is_stale(self) -> None:
        if not hasattr(self, "collector"):
            return
        families = list(self.collector.collect())
        ours = exposition.text(families), exposition.openmetrics(families)
        assert lines(ours[0]) == lines(exposition.text(self.fresh().collect()))
        assert written_by_prometheus_client(families) == ours


def lines(text: bytes) -> list[bytes]:
    """Return the lines but that of the duration; sites that were shown before stand before others."""
    return sorted(line for line in text.splitlines() if b"exporter_scrape_duration" not in line)


TestScrapes = Scrapes.TestCase
TestScrapes.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
