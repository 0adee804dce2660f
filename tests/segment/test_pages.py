# SPDX-License-Identifier: Apache-2.0
"""The counts of pools that are gone: right after a kill at any moment, and for a reader at any moment."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter.fleet_collector import FleetCollector
from sqlalchemy_pool_exporter.segment import pages as pages_module
from sqlalchemy_pool_exporter.segment import room
from sqlalchemy_pool_exporter.segment.block import ACTIVE, FIRST_COUNTER, HAS_OVERFLOW, PAGE_BYTES, WAIT
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.format import FIRST_EXTENT
from sqlalchemy_pool_exporter.segment.identity import Identity, Variant, written
from sqlalchemy_pool_exporter.segment.page import ROW_PAGES, Commit, added
from sqlalchemy_pool_exporter.segment.pages import MOST_ENDED, RETENTION_SECONDS, Pages
from sqlalchemy_pool_exporter.segment.room import Space
from tests.support.moments import Intruder, OutOfTime, strike
from tests.support.segments import INFO, Scraper, new_block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy_pool_exporter.segment.file import Lease
    from sqlalchemy_pool_exporter.segment.pool_block import PoolBlock

LONG = RETENTION_SECONDS + 1


def text(name: str) -> bytes:
    return written(Identity(name), INFO, has_overflow=True)


def a_pool(lease: Lease, name: str, checkouts: float = 1.0) -> PoolBlock:
    """Return the block of a live pool that has counted."""
    block = new_block(lease, name)
    block.doubles[ACTIVE] = block.doubles[HAS_OVERFLOW] = 1.0
    block.doubles[WAIT] = checkouts
    return block


def end(block: PoolBlock) -> None:
    """Fold the counts of a pool, as after its garbage collection."""
    block.doubles[ACTIVE] = 0.0
    assert block.pages.fold(block)


def checkouts(reader: Reader) -> dict[str, float]:
    """Return the checkouts by label."""
    at = WAIT - FIRST_COUNTER
    return {label: counts[at] for (label, *_), counts in reader.read().counts.items()}


# -- moments


@pytest.mark.parametrize("act", ["fold", "fold again", "drop", "take over"])
def test_a_kill_at_any_line(directory: Path, tmp_path: Path, leases: Callable[..., Lease], act: str) -> None:
    """If a process is killed at any line of the writer, no count is lost or counted twice, also for its successor."""
    lease = leases(directory)
    a_pool(lease, "orders", 1.0)
    going = a_pool(lease, "orders", 2.0)
    going.more_rows()
    expected = {"orders": 3.0}
    if act != "fold":
        end(a_pool(lease, "orders", 4.0))
        expected = {"orders": 7.0}
    if act == "drop":
        end(a_pool(lease, "gone", 8.0))
    moments: set[bytes] = set()

    def run() -> None:
        if act == "drop":
            lease.pages.drop(text("gone"))
        elif act == "take over":
            lease.close()
            leases(directory)
        else:
            end(going)

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename in {pages_module.__file__, room.__file__}:
            moments.add(lease.path.read_bytes())
            return trace
        return trace if event == "call" else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    assert len(moments) > 3
    for number, moment in enumerate(moments):
        killed = tmp_path / f"killed {number}"
        killed.mkdir()
        (killed / "worker-000").write_bytes(moment)
        seen = checkouts(Reader(killed))
        assert {"orders": seen.pop("orders")} == expected
        assert seen in ({}, {"gone": 8.0})
        successor = leases(killed)
        assert successor.number == 0
        assert checkouts(Reader(killed))["orders"] == expected["orders"]
        end(a_pool(successor, "orders"))
        assert checkouts(Reader(killed))["orders"] == expected["orders"] + 1


def test_a_reader_at_any_moment(directory: Path, leases: Callable[..., Lease]) -> None:
    """While pools come and go, no counter that a reader shows ever decreases, and nothing is counted twice."""
    lease = leases(directory)
    made, stop = [0], threading.Event()

    def churn() -> None:
        while not stop.is_set():
            block = a_pool(lease, "orders")
            made[0] += 1
            end(block)

    scraper = Scraper(directory, worker_label=False)
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(150):
            before = made[0]
            shown = scraper.scrape().get("checkouts_total", "orders") or 0.0
            # A reader that finds the writer in the middle of a change each time shows what it knew before.
            assert shown <= made[0] + 1
            assert before >= 0
    finally:
        stop.set()
        churning.join()
        sys.setswitchinterval(switching)
    assert scraper.scrape().value("checkouts_total", "orders") == made[0]
    assert lease.path.stat().st_size == FIRST_EXTENT


def test_a_writer_that_stopped_in_a_change(directory: Path, leases: Callable[..., Lease]) -> None:
    """While a live writer is in the middle of a change, a reader shows what it knew; of a dead one, what is there."""
    lease = leases(directory)
    a_pool(lease, "orders")
    reader = Reader(directory)
    assert checkouts(reader) == {"orders": 1.0}
    with lease.pages.changing():
        a_pool(lease, "orders")
        assert checkouts(reader) == {"orders": 1.0}
        lease.close()
        assert checkouts(reader) == {"orders": 2.0}


# -- space


def test_the_place_of_a_pool_goes_to_the_next(directory: Path, leases: Callable[..., Lease]) -> None:
    """Pools one after the other, of any name, with any number of rows, take the place of one pool and its totals."""
    lease = leases(directory)
    for number in range(10 * MOST_ENDED):
        block = a_pool(lease, f"tenant {number}")
        assert block.more_rows() is not None
        end(block)
        assert len(lease.pages) <= MOST_ENDED + 1
    assert lease.path.stat().st_size <= 2 * (MOST_ENDED + 4) * PAGE_BYTES


def test_rows_of_one_pool_are_bounded(directory: Path, leases: Callable[..., Lease]) -> None:
    """A pool gets so many pages of rows, and gives all of them back."""
    lease = leases(directory)
    block = a_pool(lease, "orders")
    assert [block.more_rows() is not None for _ in range(ROW_PAGES + 1)] == [True] * ROW_PAGES + [False]
    assert len(lease.pages) == 1 + ROW_PAGES
    end(block)
    assert len(lease.pages) == 1


@pytest.mark.parametrize("act", ["more_rows", "pool"])
def test_a_time_limit_while_room_is_made(act: str) -> None:
    """After a time limit anywhere in a call that makes room, the next one makes room."""
    for moment in count(1):
        pages = Pages()
        block = pages.pool(text("a"))

        def make_room(block: PoolBlock = block) -> None:
            if act == "pool":
                block.pages.pool(text("b"))  # type: ignore[attr-defined]
            else:
                block.more_rows()

        intruder = Intruder(moment, strike)
        with contextlib.suppress(OutOfTime), intruder:
            make_room()
        if intruder.where is None:
            break
        assert block.more_rows() is not None, intruder.where
        pages.pool(text("c"))
    assert moment > 12


def test_threads_make_room_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread makes room, one that opens a connection gets none at once, and another one waits for it."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Space):
        def grow(self, pages: int) -> list[memoryview]:
            if pages == 2:
                begun.set()
                go_on.wait()
            return super().grow(pages)

    pages = Pages(Slow())
    block = pages.pool(text("a"))
    slow = threading.Thread(target=block.more_rows)
    slow.start()
    begun.wait()
    assert block.more_rows() is None

    def sleep(_: float) -> None:
        go_on.set()
        slow.join()

    monkeypatch.setattr(time, "sleep", sleep)
    assert pages.pool(text("b")).page not in {block.page, *block.rows}
    assert len(block.rows) == 1


def test_no_room_for_totals(
    directory: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is no room for totals, the counts stay where they are until there is."""
    lease = leases(directory)
    monkeypatch.setattr("sqlalchemy_pool_exporter.segment.file.FILE_BYTES", FIRST_EXTENT)
    blocks = [a_pool(lease, f"pool {number}") for number in range(FIRST_EXTENT // PAGE_BYTES - 1)]
    assert not lease.pages.fold(blocks[0])
    assert checkouts(Reader(directory))["pool 0"] == 1.0
    monkeypatch.undo()
    end(blocks[0])
    assert checkouts(Reader(directory))["pool 0"] == 1.0


# -- retention


class Clock:
    """Unix time, which moves only when a test moves it."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def test_a_name_that_is_gone_for_long() -> None:
    """A writer drops the totals of a name that no live pool has had for the time of retention, and no other."""
    clock = Clock()
    pages = Pages(wall=clock)
    live, idle = pages.pool(text("live")), pages.pool(text("idle"))
    pages.fold(pages.pool(text("live")))
    pages.fold(idle)
    assert {totals.text for totals in pages.totals()} == {text("live"), text("idle")}
    clock.now += LONG
    pages.drop_old()
    assert {totals.text for totals in pages.totals()} == {text("live")}
    pages.fold(live)
    assert {totals.text for totals in pages.totals()} == {text("live")}


def test_names_of_a_process_that_was_killed(directory: Path, leases: Callable[..., Lease]) -> None:
    """However many pools a process had when it was killed, its successor keeps their counts."""
    lease = leases(directory)
    names = [f"pool {number}" for number in range(2 * MOST_ENDED)]
    for name in names:
        a_pool(lease, name)
    lease.close()
    successor = leases(directory)
    reader = Reader(directory)
    assert checkouts(reader) == dict.fromkeys(names, 1.0)
    for name in names:
        a_pool(successor, name)
        assert checkouts(reader).keys() == set(names)
    assert checkouts(reader) == dict.fromkeys(names, 2.0)


def test_a_reader_forgets_a_name(directory: Path, leases: Callable[..., Lease]) -> None:
    """A reader leaves out a name that no live pool has had for the time of retention, and all that it knew of it."""
    clock, lease = Clock(), leases(directory)
    lease.pages._wall = clock
    end(a_pool(lease, "gone"))
    a_pool(lease, "live")
    reader = Reader(directory, wall=clock)
    assert checkouts(reader) == {"gone": 1.0, "live": 1.0}
    clock.now += LONG
    fleet = reader.read()
    assert fleet.infos.keys() == fleet.with_overflow == {"live"}
    assert checkouts(reader) == {"live": 1.0}
    # Another reader agrees.
    assert checkouts(Reader(directory, wall=clock)) == {"live": 1.0}
    a_pool(lease, "gone", 0.0)
    assert checkouts(reader) == {"gone": 1.0, "live": 1.0}


def test_tenants_one_after_the_other(directory: Path, leases: Callable[..., Lease]) -> None:
    """What a reader shows and remembers is bounded by the live names, however many there were."""
    lease = leases(directory)
    reader = Reader(directory)
    for number in range(5 * MOST_ENDED):
        end(a_pool(lease, f"tenant {number}"))
        assert len(checkouts(reader)) <= MOST_ENDED + 1
    ledger = reader.ledger
    for remembered in (ledger._kept, ledger._last_live, ledger._infos, ledger._with_overflow):
        assert len(remembered) <= 2 * MOST_ENDED


def test_a_part_that_a_file_drops(directory: Path, leases: Callable[..., Lease]) -> None:
    """If a worker drops its part of a name that another worker still has, what a reader shows does not decrease."""
    clock = Clock()
    one, two = leases(directory), leases(directory)
    one.pages._wall = two.pages._wall = clock
    end(a_pool(one, "orders", 5.0))
    a_pool(two, "orders", 2.0)
    reader = Reader(directory, wall=clock)
    assert checkouts(reader) == {"orders": 7.0}
    clock.now += LONG
    one.pages.drop_old()
    assert not list(one.pages.totals())
    assert checkouts(reader) == {"orders": 7.0}
    a_pool(one, "orders", 1.0)
    assert checkouts(reader) == {"orders": 8.0}


# -- labels over processes


def test_two_workers_in_another_order(directory: Path, leases: Callable[..., Lease]) -> None:
    """Two workers that make the same two pools in another order are summed pool by pool."""
    queue = Variant("QueuePool", 5.0, 10.0, 30.0, None, pre_ping=False)
    null = Variant("NullPool", None, None, None, None, pre_ping=False)
    for order in ((queue, null), (null, queue)):
        lease = leases(directory)
        for variant in order:
            block = new_block(lease, "orders@db", INFO, variant)
            block.doubles[WAIT] = 10.0 if variant is queue else 1.0
            block.doubles[ACTIVE] = 1.0
    registry = CollectorRegistry()
    collector = FleetCollector(Reader(directory), worker_label=True, counters_per_worker=False)
    registry.register(collector)
    assert checkouts(Reader(directory)) == {"orders@db-QueuePool": 20.0, "orders@db-NullPool": 2.0}
    instances = {"pool": "orders@db-NullPool", "worker": "001"}
    assert registry.get_sample_value("sqlalchemy_pool_instances", instances) == 1.0
    assert collector.labels_by_name == {"orders@db": ["orders@db-NullPool", "orders@db-QueuePool"]}


# -- arithmetic


def test_a_commit_word() -> None:
    """A commit word holds the copy, the page and the birth."""
    commit = Commit(1, 8191, 2**40)
    assert Commit.of(commit.word) == commit
    assert commit.word < 2**64


def test_sums_are_rounded_up() -> None:
    """A sum of counts in a file is exact or rounded up, so that an exact sum over files never decreases."""
    assert list(added([0.0, 1.0, 2.0**53], [3.0, 2.0, 1.0])) == [3.0, 3.0, 2.0**53 + 2]
    assert added([0.1], [0.2])[0] >= 0.1 + 0.2


def test_a_full_file_that_is_taken_over(directory: Path, leases: Callable[..., Lease]) -> None:
    """A successor that needs more pages for the totals than the file has makes the file larger, and loses nothing."""
    names = [f"pool {number}" for number in range(FIRST_EXTENT // PAGE_BYTES - 1)]
    lease = leases(directory)
    for name in names:
        a_pool(lease, name)
    lease.close()
    leases(directory)
    assert checkouts(Reader(directory)) == dict.fromkeys(names, 1.0)
