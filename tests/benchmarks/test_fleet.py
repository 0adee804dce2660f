# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a fleet runs with a few targets: real scrapes, every panel timed; the figures are not tested."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks.fleet.__main__ import BY_SITE, FEW_BUCKETS, RARE, sizes
from benchmarks.fleet.exposition import Exposition, Shape
from sqlalchemy_pool_exporter.metrics import BUCKETS
from tests.support.paths import ROOT
from tests.support.samples import read_samples

pytestmark = pytest.mark.newest
POOLS = 4


@pytest.mark.parametrize("is_in_trouble", [False, True])
def test_counts_grow_and_buckets_stay_cumulative(is_in_trouble: bool) -> None:
    """Counters grow from scrape to scrape, and buckets with their bounds; failures grow in trouble alone."""
    target = Exposition(Shape(workers=2, sites=1))
    earlier, later = (
        read_samples(target.text(seconds, 3.0, is_in_trouble=is_in_trouble).decode())
        for seconds in (10.0, 70.0)
    )
    failures = [key for key in earlier if key[0] == "sqlalchemy_pool_checkout_timeouts_total"]
    assert {180.0 * is_in_trouble} == {later[key] - earlier[key] for key in failures}
    assert earlier.keys() == later.keys()
    name = "sqlalchemy_pool_checkouts_total"
    of_one = [key for key in earlier if key[0] == name]
    assert POOLS == len(of_one)
    assert [pytest.approx(180.0)] * POOLS == [later[key] - earlier[key] for key in of_one]
    buckets = [
        value
        for (series, labels), value in later.items()
        if series == "sqlalchemy_pool_hold_seconds_bucket" and ("pool", "pool 1") in labels
    ]
    assert len(BUCKETS) + 1 == len(buckets)
    assert sorted(buckets) == buckets


def test_each_option_takes_what_it_says() -> None:
    """Without states of workers, sites, or most buckets a target has as many series fewer as these have."""
    every = Exposition(Shape()).series
    fewer = len(BUCKETS) - len(FEW_BUCKETS)
    assert every - Exposition(Shape(buckets=FEW_BUCKETS)).series == POOLS * 4 * fewer
    assert every - Exposition(Shape(drop=RARE)).series == POOLS * 2 * (len(BUCKETS) + 3)
    assert every - Exposition(Shape(drop=BY_SITE)).series == every - Exposition(Shape(sites=0)).series


@pytest.mark.soak
@pytest.mark.requires("prometheus")
def test_five_targets() -> None:
    """With five targets it prints what the fleet takes and the slowest panels of each dashboard."""
    options = "--targets 5 --workers 2 --sites 2 --interval 3 --evaluation 3 --minutes 0.4 --limit 60"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fleet", *options.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    for dashboard in ("overview", "pool", "database", "fleet"):
        assert re.search(rf"^  {dashboard}, .* [\d,]+ +[\d,]+$", done.stdout, re.MULTILINE)
    assert re.search(r"series scraped +[1-9]", done.stdout)
    assert re.search(r"targets missed, on average +0\.0", done.stdout)


def test_the_documentation_has_the_figures() -> None:
    """The series of one target that docs/fleet.md states are those that are counted, and so are its metrics by site."""
    text = (ROOT / "docs" / "fleet.md").read_text("utf-8")
    stated = [
        int(found.replace(",", ""))
        for found in re.findall(r"^\| .*?\| ([\d,]+) \| \d+ % \|", text, re.MULTILINE)
    ]
    assert [series for _, series in sizes()] == stated
    assert BY_SITE | RARE == set(re.findall(r"^    - (\w+)$", text, re.MULTILINE))
