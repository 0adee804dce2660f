# SPDX-License-Identifier: Apache-2.0
"""Which sites are shown: no counter ever decreases, and every sum is the total."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.segment.block import SITE_COUNTS
from sqlalchemy_pool_exporter.segment.entries import CHECKOUTS, HELD_SECONDS, OTHER
from sqlalchemy_pool_exporter.segment.page import SITES_PER_PAGE
from sqlalchemy_pool_exporter.segment.sites import ShownSites
from tests.support.segments import Process, Scraper

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

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
