# SPDX-License-Identifier: Apache-2.0
"""What the recorder stores in its block. The recorder takes only rows, so these tests need no SQLAlchemy."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

from sqlalchemy_pool_exporter.metrics import BUCKETS, CLOSE_REASONS
from sqlalchemy_pool_exporter.recording.checkout_cy import connect_hook
from sqlalchemy_pool_exporter.recording.connection_events import ERROR, GC
from sqlalchemy_pool_exporter.recording.connection_row_cy import row_of
from sqlalchemy_pool_exporter.recording.connection_table import ConnectionTable
from sqlalchemy_pool_exporter.recording.recorder import Recorder
from sqlalchemy_pool_exporter.segment.block import (
    DISPOSED,
    EMPTY,
    FIRST_COUNTER,
    HAS_OVERFLOW,
    MAX_OVERFLOW,
    NOT_APPLICABLE,
    OTHER_SITES,
    PRE_PING,
    RECYCLE,
    ROWS,
    SIZE,
    TIMEOUT,
    UNTRACKED,
    WAITERS,
)
from sqlalchemy_pool_exporter.segment.entries import LEAKED
from sqlalchemy_pool_exporter.segment.identity import Identity
from sqlalchemy_pool_exporter.segment.page import ROWS_PER_PAGE
from sqlalchemy_pool_exporter.segment.snapshot import Histogram
from sqlalchemy_pool_exporter.segment.store import BlockStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_pool_exporter.recording.connection_row_cy import ConnectionRow


class Record:
    """A stand-in for SQLAlchemy's connection record."""


class Clock:
    """A clock that moves only when a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A recorder with a block in memory, and the records that it made; ``size`` is the size of the pool."""

    def __init__(self, *, size: float = 1.0) -> None:
        self.clock = Clock()
        self.recorder = Recorder(
            Identity("bench"),
            info={},
            configuration={
                SIZE: size,
                MAX_OVERFLOW: 2.0,
                TIMEOUT: 30.0,
                RECYCLE: NOT_APPLICABLE,
                PRE_PING: 0.0,
                HAS_OVERFLOW: 1.0,
            },
            store=BlockStore(),
            clock=self.clock,
        )
        self.records: list[Record] = []
        self.connections: list[object] = []

    def connect(self) -> ConnectionRow:
        """Open a connection in a new record and return the record's row."""
        record = Record()
        self.records.append(record)
        self.recorder.connected(record, self.connection(), self.clock.now)
        row = row_of(record)
        assert row is not None
        return row

    def connection(self) -> object:
        """Return a new connection with an id() that no other has."""
        self.connections.append(object())
        return self.connections[-1]

    def value(self, key: str, label: str | None = None) -> Any:
        """Return a metric's value, as the block's reader sees it."""
        value: Any = dict(self.recorder.values())[key]
        return value[label] if label is not None and isinstance(value, dict) else value

    def count(self, key: str) -> float:
        """Return the number of observations of a histogram."""
        histogram = self.value(key)
        assert isinstance(histogram, Histogram)
        return histogram.count

    def closes(self) -> dict[str, float]:
        """Return the closes by reason, without zeros."""
        return {reason: count for reason, count in self.value("closes_total").items() if count}


def test_no_sqlalchemy_is_imported() -> None:
    """The recorder and its imports work without SQLAlchemy installed."""
    program = (
        "import sys; sys.modules['sqlalchemy'] = None\nimport sqlalchemy_pool_exporter.recording.recorder\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_connection_from_opening_to_closing() -> None:
    """A row is idle once its connection is open, in use while held, empty once closed, and free when released."""
    bench = Bench()
    recorder = bench.recorder
    row = bench.connect()
    assert {"in_use": 0.0, "idle": 1.0} == bench.value("connections")
    assert bench.value("connects_total") == 1
    bench.clock.now += 2
    recorder.checked_out(row, bench.clock.now - 1)
    assert {"in_use": 1.0, "idle": 0.0} == bench.value("connections")
    assert (1, 1.0) == (bench.value("checkouts_total"), bench.value("checkout_wait_seconds").sum)
    bench.clock.now += 3
    recorder.returned(row, row.table[row.held_at], collected=False)
    assert (1, 3.0) == (bench.value("checkins_total"), bench.value("hold_seconds").sum)
    assert bench.value("hold_seconds").buckets.index(1.0) == BUCKETS.index(
        5.0
    )  # the first bound not below 3 seconds
    recorder.closed(row, ERROR, for_good=False)
    assert {"error": 1} == bench.closes()
    assert (1, False) == (bench.value("empty_slots"), row.is_released)
    recorder.connected(bench.records[0], bench.connection(), bench.clock.now)
    assert (0, 1) == (bench.value("empty_slots"), bench.value("connections", "idle"))
    recorder.closed(row, ERROR, for_good=True)
    assert row.is_released
    assert row_of(bench.records[0]) is None
    assert (0, 0) == (bench.value("empty_slots"), bench.value("connections", "idle"))
    assert recorder.connections.by_id == {}


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("happens", "reason"),
    [(None, "gc"), (Recorder.disposed, "dispose"), (Recorder.replaced, "dispose")],
    ids=["live", "disposed", "replaced"],
)
def test_a_record_that_is_collected(
    happens: Callable[[Recorder], None] | None,
    reason: str,
    held: bool,
    tracked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A collected record frees its row and counts the close; if the connection was held, it counts as leaked."""
    monkeypatch.setattr("sqlalchemy_pool_exporter.segment.pool_block.ROW_PAGES", 2)
    bench = Bench()
    if not tracked:
        bench.connections += [bench.connect().record_ref() for _ in range(ROWS + 2 * ROWS_PER_PAGE)]
        bench.records.clear()
    row = bench.connect()
    assert bench.value("untracked_connections") == (not tracked)
    if held:
        bench.recorder.checked_out(row, bench.clock.now)
    if happens is not None:
        happens(bench.recorder)
    bench.records.clear()
    gc.collect()
    assert row.is_released
    assert {reason: 1} == bench.closes()
    assert bench.value("leaked_checkouts_total") == held
    assert (0, 0) == (bench.value("untracked_connections"), bench.value("connections", "in_use"))


@pytest.mark.parametrize("has_sites", [True, False])
def test_a_held_record_that_is_collected_is_a_leak_of_its_site(has_sites: bool) -> None:
    """If a record is collected while its connection is held, that is a leak of the site, or of other sites."""
    bench = Bench()
    row = bench.connect()
    bench.recorder.checked_out(row, bench.clock.now)
    if not has_sites:
        row.site = None
    bench.records.clear()
    gc.collect()
    assert row.is_released
    snapshot = bench.recorder.snapshot()
    of_sites = [site.counts[LEAKED] for site in snapshot.sites]
    assert (of_sites, snapshot.counts[OTHER_SITES + LEAKED - FIRST_COUNTER]) == ([has_sites], not has_sites)


def test_the_backup_reference_frees_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an interrupt ends the first weakref callback at its start, the backup reference frees the row, once."""
    raised: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(unraisable.exc_value))
    bench = Bench()
    interrupts = [KeyboardInterrupt()]
    original = Recorder._record_collected

    def collected(self: Recorder, reference: Any) -> None:
        if interrupts:
            raise interrupts.pop()
        original(self, reference)

    monkeypatch.setattr(Recorder, "_record_collected", collected)
    bench = Bench()
    row = bench.connect()
    bench.records.clear()
    assert [KeyboardInterrupt] == [type(error) for error in raised]
    assert row.is_released
    assert {"gc": 1} == bench.closes()


def test_a_row_never_goes_back_to_an_earlier_state() -> None:
    """A released row stays released."""
    bench = Bench()
    row = bench.connect()
    bench.recorder.disposed()
    assert row.state == DISPOSED
    bench.recorder.release_row(row)
    bench.recorder.disposed()
    assert row.is_released
    assert repr(row).startswith("<ConnectionRow released")


def test_overflow_is_what_was_opened_beyond_the_size() -> None:
    """Connections of disposed or replaced pools do not count towards overflow, nor does a reconnect in an empty row."""
    bench = Bench(size=2)
    first = bench.connect()
    bench.connect()
    assert bench.value("overflow_opened_total") == 0
    bench.connect()
    assert (1, 1) == (bench.value("overflow_opened_total"), bench.value("overflow_connections"))
    bench.recorder.closed(first, ERROR, for_good=False)
    bench.recorder.connected(bench.records[0], bench.connection(), 1.0)
    assert bench.value("overflow_opened_total") == 1
    bench.recorder.replaced()
    bench.connect()
    assert (1, 0) == (bench.value("overflow_opened_total"), bench.value("overflow_connections"))
    bench.recorder.replaced(is_replaced=False)
    assert (1, 2) == (bench.value("overflow_opened_total"), bench.value("overflow_connections"))
    bench.recorder.disposed()
    bench.connect()
    bench.connect()
    assert (1, 0) == (bench.value("overflow_opened_total"), bench.value("overflow_connections"))
    bench.connect()
    assert (2, 1) == (bench.value("overflow_opened_total"), bench.value("overflow_connections"))


def test_a_reason_that_is_known_before_the_close() -> None:
    """A hard invalidation sets the close reason, a soft one clears it, and a failed ping's reason takes precedence."""
    bench = Bench()
    recorder, row = bench.recorder, bench.connect()
    recorder.invalidated(row, GC)
    assert row.close_reason == GC
    recorder.soft_invalidated(row)
    assert row.close_reason is None
    recorder.pinged(row, bench.clock.now, alive=False)
    recorder.invalidated(row, ERROR)
    assert row.close_reason == CLOSE_REASONS.index("ping_failed")
    recorder.closed(row, row.close_reason, for_good=False)
    assert {"ping_failed": 1} == bench.closes()
    assert {"hard": 1, "soft": 1} == bench.value("invalidations_total")
    assert (1, 1) == (bench.value("ping_failures_total"), bench.count("ping_seconds"))


@pytest.mark.parametrize("is_closed_next", [True, False])
def test_a_detached_connection(is_closed_next: bool) -> None:
    """Detaching empties the row; the close counts once: at once if the proxy was collected, else when it happens."""
    bench = Bench()
    row = bench.connect()
    bench.recorder.checked_out(row, bench.clock.now)
    bench.recorder.detached(row, was_out=True, collected=is_closed_next, is_closed_next=is_closed_next)
    assert (1, row.table[row.at]) == (bench.value("detaches_total"), EMPTY)
    bench.recorder.closed_detached(bench.connections[0])
    assert {"gc" if is_closed_next else "detached": 1} == bench.closes()
    assert bench.value("leaked_checkouts_total") == is_closed_next
    bench.recorder.closed_detached(bench.connections[0])
    assert bench.closes()["detached"] == 2 - is_closed_next


def test_one_record_has_one_row() -> None:
    """Adding a record twice, as two threads can, returns the same row and uses one slot."""
    bench, record = Bench(), Record()
    connection = bench.connection()
    first = bench.recorder.add_row(record, 1.0, connection)
    assert bench.recorder.add_row(record, 1.0, connection) is first
    assert bench.value("connections", "idle") == 1
    at = first.at
    bench.recorder.release_row(first)
    again = bench.recorder.add_row(record, EMPTY, None)
    assert again.at == at
    assert bench.value("empty_slots") == 1


def test_a_row_that_is_released_while_its_record_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record gets another row, which the release of the first leaves alone; no row of another record is written."""
    bench = Bench(size=2)
    row = bench.connect()
    [record] = bench.records
    bench.recorder.closed(row, ERROR, for_good=False)
    index = ConnectionTable.index_connection

    def index_connection(table: ConnectionTable, row: ConnectionRow, connection: object) -> None:
        """Meanwhile, another thread releases the row, and a third one gets its place."""
        index(table, row, connection)
        monkeypatch.undo()
        bench.recorder.release_row(row, if_empty=True)
        bench.connect()

    monkeypatch.setattr(ConnectionTable, "index_connection", index_connection)
    bench.clock.now += 1
    bench.recorder.connected(record, bench.connection(), bench.clock.now)
    assert row.is_released
    new = row_of(record)
    assert new is not None
    assert bench.value("connections", "idle") == 2
    assert bench.recorder.connections.rows() == [row_of(bench.records[1]), new]
    assert bench.recorder.connections.find(bench.connections[1]) is new
    row.detach_from_record()
    assert row_of(record) is new
    bench.recorder.release_row(new, if_empty=True)
    assert not new.is_released, "it has a connection"


def test_waiters_beyond_the_table_are_counted() -> None:
    """Callers beyond the table of waiters still count as pending, until they are served or fail."""
    bench = Bench()
    recorder = bench.recorder
    slots = [recorder.acquire_waiter()[0] for _ in range(WAITERS + 2)]
    assert slots[-2:] == [UNTRACKED, UNTRACKED]
    assert len(set(slots)) == WAITERS + 1
    assert bench.value("pending_checkouts") == WAITERS + 2
    for error in (None, TimeoutError()):

        def wait(error: Exception | None = error) -> None:
            assert bench.value("pending_checkouts") == WAITERS + 3
            if error is not None:
                raise error

        connect = connect_hook(MagicMock(), recorder, wait, wait.__code__)
        with contextlib.suppress(TimeoutError):
            connect()
        assert bench.value("pending_checkouts") == WAITERS + 2
    recorder.waiters.free.append(slots[1])
    assert recorder.acquire_waiter()[0] == slots[1]


def test_after_stop_nothing_is_written() -> None:
    """A stopped recorder writes nothing to its block or to records, and does not fail."""
    bench = Bench()
    row = bench.connect()
    block = bench.recorder.block
    bench.recorder.stop()
    before = bytes(block)
    assert bench.recorder.stopped
    assert row.is_released
    assert vars(bench.records[0]) == {}
    late = Record()
    bench.recorder.connected(late, object(), 1.0)
    assert bench.recorder.add_row(late, 1.0, object()).is_released
    bench.recorder.fault(ValueError("odd"))
    assert vars(late) == {}
    assert bytes(block) == before


def test_after_a_fork_it_begins_again() -> None:
    """A recorder in a forked child leaves its parent's block and starts one without the parent's counts."""
    bench = Bench()
    bench.recorder.checked_out(bench.connect(), bench.clock.now)
    parent = bench.recorder.block
    bench.recorder.leave()
    bench.recorder.restart()
    assert bench.recorder.block is not parent
    assert (0, 0) == (bench.value("checkouts_total"), bench.value("connections", "in_use"))
    assert bench.value("size") == 1
    assert vars(bench.records[0]) == {}
