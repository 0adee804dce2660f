# SPDX-License-Identifier: Apache-2.0
"""Which sites are shown: no counter ever decreases, and every sum is the total."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.segment.block import ACTIVE, SITE_COUNTS
from sqlalchemy_pool_exporter.segment.entries import CHECKOUTS, HELD_SECONDS, OTHER
from sqlalchemy_pool_exporter.segment.page import SITES_PER_PAGE
from sqlalchemy_pool_exporter.segment.sites import ShownSites
from tests.support.segments import Process, Scraper, new_block
from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import FrameType

    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock

SERIES = ("orders",)


def counts(checkouts: float) -> list[float]:
    return [checkouts if at in {CHECKOUTS, HELD_SECONDS} else 0.0 for at in range(SITE_COUNTS)]


def shown(sites: ShownSites, **checkouts: float) -> dict[str, float]:
    """Return the checkouts that are shown by site, of these that were made."""
    every = {site: counts(number) for site, number in ({OTHER: 0.0} | checkouts).items()}
    found = {site: one[CHECKOUTS] for site, one in sites.of({SERIES: every})[SERIES].items()}
    assert sum(found.values()) == pytest.approx(sum(checkouts.values()))
    return found


def test_a_site_that_moves_to_the_others() -> None:
    """Where a site's counts are found among the others, it keeps what was shown, and the others do not jump."""
    sites = ShownSites(2)
    assert shown(sites, a=500, b=10) == {"a": 500, "b": 10, OTHER: 0}
    assert shown(sites, b=10, other=500) == {"a": 500, "b": 10, OTHER: 0}
    assert shown(sites, a=7, b=11, other=500) == {"a": 500, "b": 11, OTHER: 7}
    assert shown(sites, a=507, b=11, other=500) == {"a": 507, "b": 11, OTHER: 500}


def test_counts_that_begin_anew() -> None:
    """If a pool is instrumented again, nothing is left of what was shown before."""
    sites = ShownSites(2)
    assert shown(sites, a=500, b=10) == {"a": 500, "b": 10, OTHER: 0}
    assert shown(sites, b=3) == {"b": 3, OTHER: 0}
    assert shown(sites, c=100) == {"c": 100, OTHER: 0}


def test_a_release() -> None:
    """Sites that are not used for an hour make room for those of the next release, and stay; there is an end to it."""
    now = 0.0
    sites = ShownSites(2, most_ever=5, monotonic=lambda: now)
    assert shown(sites, a1=1, b1=1) == {"a1": 1, "b1": 1, OTHER: 0}
    assert shown(sites, a1=1, b1=1, c1=1) == {"a1": 1, "b1": 1, OTHER: 1}
    now = 4000.0
    assert shown(sites, a1=1, b1=2, c1=1, a2=5) == {"a1": 1, "b1": 2, "a2": 5, OTHER: 1}
    now = 8000.0
    found = shown(sites, a1=1, b1=2, c1=1, a2=5, a3=1, b3=2, c3=3)
    assert found == {"a1": 1, "b1": 2, "a2": 5, "b3": 2, "c3": 3, OTHER: 2}
    now = 12000.0
    assert shown(sites, a1=1, b1=2, c1=1, a2=5, a3=1, b3=2, c3=3, a4=9)[OTHER] == 11


def test_the_others_are_forgotten_with_their_names() -> None:
    """A sidecar that runs for months does not collect the sites of every release."""
    sites = ShownSites(1)
    for number in range(100):
        shown(sites, **{f"first{number}": 1.0, f"second{number}": 1.0})
    assert len(sites._series[SERIES].others) <= 3


def test_processes_with_other_sites_in_one_file(tmp_path: Path) -> None:
    """Of processes that come and go with more sites than a file has room for, each sum is the total at each scrape."""

    def at(number: int) -> Iterable[str]:
        return (f"app:release_{number}:{site}" for site in range(SITES_PER_PAGE - 5))

    scraper = Scraper(tmp_path)
    total = 0.0
    for number in range(4):
        process = Process(tmp_path)
        for site in at(number):
            entry = process.storage.site(site)
            assert entry is not None
            entry.table[entry.at + CHECKOUTS] += 2.0
            process.count(2)
            total += 2.0
        for ends in (False, True):
            if ends:
                process.kill()
            samples = scraper.scrape().samples
            by_site = [
                value
                for (name, _), value in samples.items()
                if name == "sqlalchemy_pool_checkouts_by_site_total"
            ]
            assert sum(by_site) == total


class Adding:
    """A thread that adds a site and counts a checkout there, and that stops before one line of ``site()``."""

    def __init__(self, block: PoolBlock, text: str, line: int) -> None:
        self._block, self._text, self._left = block, text, line
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        sys.settrace(self._trace)
        try:
            entry = self._block.site(self._text) or self._block.other_sites
        finally:
            sys.settrace(None)
        entry.table[entry.at + CHECKOUTS] += 1.0
        self.stopped.set()

    def _trace(self, frame: FrameType, what: str, _: object) -> Any:
        if frame.f_code.co_name != "site":
            return None
        if what == "line":
            self._left -= 1
            if not self._left:
                self.stopped.set()
                assert self.go_on.wait(SECONDS)
        return self._trace


def test_threads_that_add_at_once(tmp_path: Path) -> None:
    """If a debugger stops threads between any two lines, each has an entry of its own or that of the others."""
    process = Process(tmp_path)
    lines = 20  # more than site() has
    for first_line in range(1, lines):
        for second_line in range(1, lines):
            block = new_block(process.lease, f"{first_line}.{second_line}")
            first, second = Adding(block, "a", first_line), Adding(block, "b", second_line)
            first.thread.start()
            assert first.stopped.wait(SECONDS)
            second.thread.start()
            assert second.stopped.wait(SECONDS)
            for adding in (first, second):
                adding.go_on.set()
                adding.thread.join()
            where = f"lines {first_line} and {second_line} of site()"
            others = block.other_sites.table[block.other_sites.at + CHECKOUTS]
            assert sum(counts[CHECKOUTS] for _, counts in block.sites()) + others == 2.0, where
            block.doubles[ACTIVE] = 0.0
            assert block.pages.fold(block)
    process.kill()
