# SPDX-License-Identifier: Apache-2.0
"""The sidecar's metrics of the workers: sums, labels and versions."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from sqlalchemy_pool_exporter.about import hot_path, package_version
from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.format import FACTS_AT, HEADER_BYTES
from tests.support.segments import (
    NOW,
    QUEUE,
    Process,
    Scraper,
    by_worker,
    new_block,
    processes,
    workers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.samples import Exposition


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that makes processes, which are killed at the end."""
    with processes(tmp_path) as make:
        yield make


def test_counters_are_summed_and_states_are_not(tmp_path: Path, process: Callable[..., Process]) -> None:
    """By default counters and histograms have one series per pool, and states one per worker."""
    one, two = process(), process()
    one.count(3, faults=1)
    two.count(4, faults=2)
    one.hold(NOW - 5)
    exposition = Scraper(tmp_path).scrape()
    assert exposition.value("checkouts_total", "orders") == 7
    assert exposition.value("checkout_wait_seconds_count", "orders") == 7
    assert exposition.value("checkout_wait_seconds_sum", "orders") == 7 / 4
    assert exposition.value("exporter_recording_faults_total", "orders") == 3
    assert by_worker(exposition, "connections", state="in_use") == {"000": 1, "001": 0}
    assert by_worker(exposition, "longest_held_seconds") == {"000": 5, "001": 0}
    assert by_worker(exposition, "size") == {"000": 2, "001": 2}
    assert workers(exposition) == {"live": 2, "parent": 0, "gone": 0}


def test_without_worker_label(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Without the label, states and sizes are summed, and ages are the longest."""
    one, two = process(size=2.0), process(size=3.0)
    one.hold(NOW - 5)
    two.hold(NOW - 7)
    one.block[layout.LAST_CHECKIN], two.block[layout.LAST_CHECKIN] = NOW - 3, NOW - 9
    exposition = Scraper(tmp_path, worker_label=False).scrape()
    assert exposition.value("connections", "orders", state="in_use") == 2
    assert exposition.value("longest_held_seconds", "orders") == 7
    assert exposition.value("last_checkin_timestamp_seconds", "orders") == 2 * NOW - 3
    assert exposition.value("size", "orders") == 5
    assert exposition.value("max_overflow", "orders") == 2
    assert exposition.value("instances", "orders") == 2
    assert exposition.value("capacity", "orders") == 7


def test_counters_per_worker(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Each worker has its own series of a counter; the recording faults stay one series per pool."""
    process().count(3, faults=1)
    process().count(4, faults=2)
    exposition = Scraper(tmp_path, counters_per_worker=True).scrape()
    assert by_worker(exposition, "checkouts_total") == {"000": 3, "001": 4}
    assert by_worker(exposition, "checkout_wait_seconds_count") == {"000": 3, "001": 4}
    assert exposition.value("exporter_recording_faults_total", "orders") == 3


@pytest.mark.parametrize("counters_per_worker", [False, True])
@pytest.mark.parametrize("worker_label", [False, True])
def test_no_series_twice(
    tmp_path: Path, process: Callable[..., Process], *, worker_label: bool, counters_per_worker: bool
) -> None:
    """With any label options, and with two blocks of one pool in a file, no series appears twice."""
    one = process()
    new_block(one.lease, "orders", QUEUE).doubles[layout.FAULTS] = 1.0
    process("billing")
    process().kill()
    exposition = Scraper(
        tmp_path, worker_label=worker_label, counters_per_worker=counters_per_worker
    ).scrape()
    series = [line.rpartition(" ")[0] for line in exposition.text.splitlines() if not line.startswith("#")]
    assert sorted(set(series)) == sorted(series)


def test_capacity(tmp_path: Path, process: Callable[..., Process]) -> None:
    """`capacity` is the sum over the live workers, and is absent if one of them has no limit."""
    process(size=2.0, max_overflow=1.0)
    gone = process(size=5.0, max_overflow=10.0)
    gone.kill()
    scraper = Scraper(tmp_path)
    assert scraper.scrape().value("capacity", "orders") == 3
    process(size=5.0, max_overflow=10.0)
    assert scraper.scrape().value("capacity", "orders") == 18
    process(size=layout.NOT_APPLICABLE, max_overflow=layout.NOT_APPLICABLE)
    assert scraper.scrape().get("capacity", "orders") is None


def test_different_pools(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A pool has series only for the workers that have it."""
    process("orders").count(1)
    process("billing").count(2)
    exposition = Scraper(tmp_path).scrape()
    assert by_worker(exposition, "size", "orders") == {"000": 2}
    assert by_worker(exposition, "size", "billing") == {"001": 2}
    assert exposition.value("checkouts_total", "billing") == 2


def test_different_drivers(tmp_path: Path) -> None:
    """While workers of two releases run, `info` shows the drivers of both; then it shows the last worker's."""
    old = Process(tmp_path)
    new = Process(tmp_path, info={**QUEUE, "driver": "asyncpg"})
    scraper = Scraper(tmp_path)

    def drivers() -> set[str]:
        samples = scraper.scrape().samples
        return {dict(labels)["driver"] for name, labels in samples if name == "sqlalchemy_pool_info"}

    assert drivers() == {"psycopg", "asyncpg"}
    old.kill()
    assert drivers() == {"asyncpg"}
    new.kill()
    assert drivers() == {"asyncpg"}


# -- the versions of Python and SQLAlchemy


def versions(exposition: Exposition) -> list[dict[str, str]]:
    """Return the labels of the samples of ``build_info``, whose values are all 1."""
    found = {
        labels: value
        for (name, labels), value in exposition.samples.items()
        if name == "sqlalchemy_pool_exporter_build_info"
    }
    assert set(found.values()) == {1.0}
    return sorted(map(dict, found), key=lambda labels: (labels["python"], labels["hot_path"]))


def say(process: Process, facts: bytes) -> None:
    """Overwrite the facts in a process's segment."""
    with process.lease.path.open("r+b") as file:
        file.seek(FACTS_AT)
        file.write(facts.ljust(HEADER_BYTES - FACTS_AT, b"\0"))


def test_versions_are_the_applications(tmp_path: Path, process: Callable[..., Process]) -> None:
    """``build_info`` has a sample per set of the live workers' versions, and the sidecar's version of the exporter."""
    say(process(), b'{"python": "3.9.1", "sqlalchemy": "2.0.7", "version": "0.0.1"}')
    say(process(), b'{"python": "3.9.1", "sqlalchemy": "2.0.7", "version": "0.0.2"}')
    say(process(), b'{"python": "3.9.1", "sqlalchemy": "2.0.7", "hot_path": "compiled"}')
    process()
    own = {"version": package_version()}
    assert versions(Scraper(tmp_path).scrape()) == [
        {
            **own,
            "python": platform.python_version(),
            "sqlalchemy": sqlalchemy.__version__,
            "hot_path": hot_path(),
        },
        {**own, "python": "3.9.1", "sqlalchemy": "2.0.7", "hot_path": ""},
        {**own, "python": "3.9.1", "sqlalchemy": "2.0.7", "hot_path": "compiled"},
    ]


def test_versions_of_the_gone_are_not_shown(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Without a live worker ``build_info`` has one sample with empty labels, so that a query still finds the target."""
    nothing = [{"version": package_version(), "python": "", "sqlalchemy": "", "hot_path": ""}]
    scraper = Scraper(tmp_path)
    assert versions(scraper.scrape()) == nothing
    worker = process()
    assert versions(scraper.scrape()) != nothing
    worker.kill()
    assert versions(scraper.scrape()) == nothing


@pytest.mark.parametrize(
    "facts",
    [b"", b"{", b"\xff\xfe", b"[]", b"7", b"{}", b'{"python": 3}', b'{"python": "3.9", "sqlalchemy": null}',
     b'{"python": "\\ud800"}', b"[" * 4000],
)  # fmt: skip
def test_unreadable_facts_cost_the_label_alone(
    tmp_path: Path, process: Callable[..., Process], facts: bytes
) -> None:
    """Unreadable facts leave their labels empty; the segment's counts are shown, and no error is reported."""
    damaged = process()
    damaged.count(3)
    say(damaged, facts)
    scraper = Scraper(tmp_path)
    exposition = scraper.scrape()
    assert versions(exposition) == [
        {"version": package_version(), "python": "", "sqlalchemy": "", "hot_path": ""}
    ]
    assert exposition.value("checkouts_total", "orders") == 3
    assert scraper.errors() == {}


def test_facts_of_an_older_worker(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A segment of an older release, without SQLAlchemy's version and the hot path, has empty labels for these."""
    say(process(), b'{"pid": 7, "program": "app", "version": "0.0.1", "python": "3.11.2"}')
    (found,) = versions(Scraper(tmp_path).scrape())
    assert found == {"version": package_version(), "python": "3.11.2", "sqlalchemy": "", "hot_path": ""}
