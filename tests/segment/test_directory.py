# SPDX-License-Identifier: Apache-2.0
"""What a reader makes of a directory: sums, labels, faults; and that no counter ever goes backwards."""

from __future__ import annotations

import fcntl
import gc
import logging
import math
import os
import random
import shutil
import struct
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter.metrics import SEGMENT_ERRORS
from sqlalchemy_pool_exporter.segment import block as segment
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import FILES, Lease, file_name
from sqlalchemy_pool_exporter.sidecar.collector import FleetCollector
from tests.support.samples import Exposition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUEUE = {"pool_class": "QueuePool", "dialect": "postgresql", "driver": "psycopg"}
NOW = 1000.0
UNLIMITED = segment.NOT_APPLICABLE


class Process:
    """A process with one pool, written by hand: a lease that is given up as by kill -9, and its block."""

    def __init__(
        self,
        directory: Path,
        pool: str = "orders",
        *,
        size: float = 2.0,
        max_overflow: float = 1.0,
        info: dict[str, str] = QUEUE,
    ) -> None:
        self.lease = Lease(directory)
        self.block = self.lease.block(pool, info, 64)
        self.block[segment.ACTIVE] = self.block[segment.HAS_OVERFLOW] = 1.0
        self.block[segment.SIZE], self.block[segment.MAX_OVERFLOW] = size, max_overflow
        self.block[segment.CONNECTIONS_USED] = 16.0

    def count(self, checkouts: int, detaches: int = 0, faults: int = 0) -> None:
        self.block[segment.WAIT] += checkouts
        self.block[segment.WAIT + segment.SUM] += checkouts / 4
        self.block[segment.DETACHES] += detaches
        self.block[segment.FAULTS] += faults

    def hold(self, since: float, row: int = 0) -> None:
        at = segment.CONNECTIONS_AT + segment.ROW * row
        self.block[at], self.block[at + segment.HELD_SINCE] = since, since

    def kill(self) -> None:
        self.lease.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with ExitStack() as stack:

        def make(pool: str = "orders", **options: float) -> Process:
            process = Process(tmp_path, pool, **options)  # type: ignore[arg-type]
            stack.callback(process.kill)
            return process

        yield make


class Scraper:
    """A sidecar's registry over a directory, which holds every scrape against the one before."""

    def __init__(
        self, directory: Path, *, worker_label: bool = True, counters_per_worker: bool = False
    ) -> None:
        self.registry = CollectorRegistry()
        self.reader = Reader(directory)
        collector = FleetCollector(
            self.reader,
            worker_label=worker_label,
            counters_per_worker=counters_per_worker,
            monotonic=lambda: NOW,
            wall=lambda: 2 * NOW,
        )
        self.registry.register(collector)
        self._last: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def scrape(self) -> Exposition:
        """Return what is exposed now, in which no counter is less than it was, and none is missing."""
        exposition = Exposition(self.registry)
        grown = {
            key: value
            for key, value in exposition.samples.items()
            if key[0].endswith(("_total", "_bucket", "_count", "_sum"))
        }
        lost = {
            key: (value, grown.get(key))
            for key, value in self._last.items()
            if not grown.get(key, -1) >= value
        }
        assert lost == {}
        self._last = grown
        return exposition

    def errors(self) -> dict[str, float]:
        """Return the faults of one scrape that are not 0."""
        found = {
            dict(labels)["reason"]: value
            for (name, labels), value in self.scrape().samples.items()
            if name == "sqlalchemy_pool_exporter_segment_errors"
        }
        assert set(found) == set(SEGMENT_ERRORS)
        return {kind: value for kind, value in found.items() if value}


def workers(exposition: Exposition) -> dict[str, float]:
    return {
        dict(labels)["state"]: value
        for (name, labels), value in exposition.samples.items()
        if name == "sqlalchemy_pool_exporter_workers"
    }


def by_worker(exposition: Exposition, key: str, pool: str = "orders", **labels: str) -> dict[str, float]:
    """Return the values of a series by its label ``worker``."""
    wanted = {"pool": pool, **labels}.items()
    return {
        dict(found)["worker"]: value
        for (name, found), value in exposition.samples.items()
        if name == f"sqlalchemy_pool_{key}" and wanted <= dict(found).items()
    }


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# -- sums and labels


def test_counters_are_summed_and_states_are_not(tmp_path: Path, process: Callable[..., Process]) -> None:
    """By default counters and histograms are one series a pool, and states one a worker."""
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
    assert workers(exposition) == {"live": 2, "gone": 0}


def test_without_worker_label(tmp_path: Path, process: Callable[..., Process]) -> None:
    """States of all workers are summed, ages are the longest, and limits are shown where all have the same."""
    one, two = process(size=2.0), process(size=3.0)
    one.hold(NOW - 5)
    two.hold(NOW - 7)
    one.block[segment.LAST_CHECKIN], two.block[segment.LAST_CHECKIN] = NOW - 3, NOW - 9
    exposition = Scraper(tmp_path, worker_label=False).scrape()
    assert exposition.value("connections", "orders", state="in_use") == 2
    assert exposition.value("longest_held_seconds", "orders") == 7
    assert exposition.value("last_checkin_timestamp_seconds", "orders") == 2 * NOW - 3
    assert exposition.get("size", "orders") is None
    assert exposition.value("max_overflow", "orders") == 1
    assert exposition.value("capacity", "orders") == 7


def test_counters_per_worker(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Each worker's counters are its own series; the exporter's own faults and what is of no worker stay one."""
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
    """However it is shown, and with two blocks of one name in a file, no series appears twice."""
    one = process()
    one.lease.block("orders", QUEUE, 128)[segment.FAULTS] = 1.0
    process("billing")
    process().kill()
    exposition = Scraper(
        tmp_path, worker_label=worker_label, counters_per_worker=counters_per_worker
    ).scrape()
    series = [line.rpartition(" ")[0] for line in exposition.text.splitlines() if not line.startswith("#")]
    assert sorted(set(series)) == sorted(series)


def test_capacity(tmp_path: Path, process: Callable[..., Process]) -> None:
    """The ceiling is the sum over the live workers; if one of them has none, the fleet has none."""
    process(size=2.0, max_overflow=1.0)
    gone = process(size=5.0, max_overflow=10.0)
    gone.kill()
    scraper = Scraper(tmp_path)
    assert scraper.scrape().value("capacity", "orders") == 3
    process(size=5.0, max_overflow=10.0)
    assert scraper.scrape().value("capacity", "orders") == 18
    process(size=UNLIMITED, max_overflow=UNLIMITED)
    assert scraper.scrape().get("capacity", "orders") is None


def test_different_pools(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Each worker shows the pools it has."""
    process("orders").count(1)
    process("billing").count(2)
    exposition = Scraper(tmp_path).scrape()
    assert by_worker(exposition, "size", "orders") == {"000": 2}
    assert by_worker(exposition, "size", "billing") == {"001": 2}
    assert exposition.value("checkouts_total", "billing") == 2


def test_different_drivers(tmp_path: Path) -> None:
    """While two releases of an application run, both descriptions of the pool are shown; then the last one."""
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


# -- nothing goes backwards


def test_counts_of_the_gone_stay(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A worker that is gone has counts and no state; the next in its place counts on."""
    first = process()
    first.count(3)
    first.hold(NOW - 5)
    scraper = Scraper(tmp_path)
    scraper.scrape()
    first.count(2)
    first.kill()
    exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 5
    assert by_worker(exposition, "connections", state="in_use") == {}
    assert workers(exposition) == {"live": 0, "gone": 1}
    process().count(1)
    exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 6
    assert by_worker(exposition, "connections", state="in_use") == {"000": 0}
    # Another sidecar, that has seen nothing of it, says the same.
    assert Scraper(tmp_path).scrape().value("checkouts_total", "orders") == 6


def test_a_life_between_two_scrapes(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Who comes, counts and is killed between two scrapes was counted."""
    process().kill()
    scraper = Scraper(tmp_path)
    scraper.scrape()
    short = process()
    short.count(4)
    short.kill()
    assert scraper.scrape().value("checkouts_total", "orders") == 4


@pytest.mark.parametrize("counters_per_worker", [False, True])
@pytest.mark.parametrize("is_live", [False, True])
def test_deleted_and_made_again(
    tmp_path: Path, process: Callable[..., Process], *, is_live: bool, counters_per_worker: bool
) -> None:
    """What was read of a file stays when it is deleted, with its holder alive or not, and the new one's is added."""
    other = process("billing")
    other.kill()
    first = process()
    assert first.lease.number == 0
    first.count(3)
    scraper = Scraper(tmp_path, counters_per_worker=counters_per_worker)
    scraper.scrape()
    if not is_live:
        first.kill()
        scraper.scrape()
    first.lease.path.unlink()
    scraper.scrape()
    for more in (1, 2):
        process().count(more)
        scraper.scrape()
    shown = scraper.scrape()
    total = sum(v for (name, _), v in shown.samples.items() if name == "sqlalchemy_pool_checkouts_total")
    assert total == 6


def test_the_dead_cost_nothing(
    tmp_path: Path, process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead worker's file is not opened again until somebody touches it, and then at once."""
    opened: list[str] = []
    real_open, real_time = os.open, time.time_ns

    def count(path: str, *arguments: int, **options: int) -> int:
        opened.append(os.path.basename(path))  # noqa: PTH119 - of whatever is opened
        return real_open(path, *arguments, **options)

    live, dead = process(), process("billing")
    dead.count(3)
    dead.kill()
    scraper = Scraper(tmp_path)
    scraper.scrape()
    monkeypatch.setattr(os, "open", count)
    scraper.scrape()
    # A file that was changed a moment ago can be changed again without getting another time.
    assert [file_name(0), file_name(1)] == opened
    monkeypatch.setattr(time, "time_ns", lambda: real_time() + 10**10)
    scraper.scrape()
    opened.clear()
    for _ in range(3):
        assert scraper.scrape().value("checkouts_total", "billing") == 3
    assert [file_name(0)] * 3 == opened
    successor = process("billing")
    assert successor.lease.number == 1
    successor.count(2)
    shown = scraper.scrape()
    assert (5, 2) == (shown.value("checkouts_total", "billing"), workers(shown)["live"])
    live.kill()
    successor.kill()
    scraper.scrape()
    os.truncate(dead.lease.path, 5000)
    assert {"damaged": 1} == scraper.errors()
    dead.lease.path.unlink()
    assert scraper.errors() == {}
    assert scraper.scrape().value("checkouts_total", "billing") == 5


def test_the_directory_moved_away_and_back(tmp_path: Path) -> None:
    """Files that come back, under the same name or another, are counted once."""
    directory = tmp_path / "here"
    directory.mkdir()
    process = Process(directory)
    process.count(3)
    scraper = Scraper(directory)
    scraper.scrape()
    directory.rename(tmp_path / "there")
    assert scraper.errors() == {"unreadable": 1}
    directory.mkdir()
    scraper.scrape()
    (tmp_path / "there" / "worker-000").rename(directory / "worker-007")
    assert scraper.scrape().value("checkouts_total", "orders") == 3
    process.kill()


@pytest.mark.parametrize("obstacle", ["garbage", "directory", "link", "nothing readable"])
def test_unreadable_for_one_scrape(tmp_path: Path, process: Callable[..., Process], obstacle: str) -> None:
    """A file that cannot be read has its last counts, no state, and one error; later it has all again."""
    one, two = process(), process()
    one.count(3)
    two.count(4)
    scraper = Scraper(tmp_path)
    scraper.scrape()
    path, kept = one.lease.path, tmp_path / "kept"
    path.rename(kept)
    OBSTACLES[obstacle](path)
    for _ in range(2):
        exposition = scraper.scrape()
        assert exposition.value("checkouts_total", "orders") == 7
        assert by_worker(exposition, "connections", state="in_use") == {"001": 0}
        assert scraper.errors() == {"foreign": 1}
    one.count(1)
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    kept.rename(path)
    exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 8
    assert by_worker(exposition, "connections", state="in_use") == {"000": 0, "001": 0}
    assert scraper.errors() == {}


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\xa5\x0f" * 5000),
    "directory": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("kept"),
    "nothing readable": os.mkfifo,
}


def test_many_deleted_files(tmp_path: Path) -> None:
    """Where the directory is emptied at every restart, what was counted stays, however often."""
    scraper = Scraper(tmp_path)
    at_once = 16
    for _ in range(FILES // at_once + 3):
        processes = [Process(tmp_path) for _ in range(at_once)]
        for process in processes:
            process.count(1)
            process.kill()
        scraper.scrape()
        for process in processes:
            process.lease.path.unlink()
    assert scraper.scrape().value("checkouts_total", "orders") == at_once * (FILES // at_once + 3)


def test_the_next_holder_before_it_is_ready(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A file that was locked again but not yet cleared is still that of the one who is gone."""
    first = process()
    first.count(3)
    first.hold(NOW - 5)
    scraper = Scraper(tmp_path)
    scraper.scrape()
    first.kill()
    scraper.scrape()
    # What a lease does first, and no more of it.
    with first.lease.path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 3
    assert by_worker(exposition, "connections", state="in_use") == {}


# -- faults


def test_missing_directory(tmp_path: Path) -> None:
    """A directory that is not there is one error, and no reason not to answer."""
    assert Scraper(tmp_path / "missing").errors() == {"unreadable": 1}


def test_complaints_begin_and_end(
    tmp_path: Path, process: Callable[..., Process], caplog: pytest.LogCaptureFixture
) -> None:
    """What is wrong is logged once as long as it lasts, and again when it comes back."""
    process()
    scraper, other = Scraper(tmp_path), tmp_path / "worker-001"
    for _ in range(2):
        other.write_bytes(b"nothing of ours " * 8)
        assert [scraper.errors() for _ in range(3)] == [{"foreign": 1}] * 3
        other.unlink()
        assert scraper.errors() == {}
    assert ["worker-001" in record.getMessage() for record in caplog.records] == [True, True]


def test_a_file_that_shrank_after_its_worker_died(tmp_path: Path, process: Callable[..., Process]) -> None:
    """What was read of it stays in the sums, and the damage is told, though nobody writes there any more."""
    worker = process()
    worker.count(3)
    scraper = Scraper(tmp_path)
    assert scraper.errors() == {}
    worker.kill()
    assert scraper.errors() == {}
    os.truncate(worker.lease.path, 5000)
    assert scraper.errors() == {"damaged": 1}
    assert scraper.scrape().value("checkouts_total", "orders") == 3


def test_a_count_that_is_none(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A negative count, one that is no number, and one that nobody can have counted are damage; the most is not."""
    worker = process()
    scraper = Scraper(tmp_path)
    for count, errors in (
        (-1.0, {"damaged": 1}),
        (math.nan, {"damaged": 1}),
        (-math.nan, {"damaged": 1}),
        (math.inf, {"damaged": 1}),
        (2.0**49, {"damaged": 1}),
        (2.0**49 - 1, {}),
    ):
        worker.block[segment.DETACHES] = count
        assert scraper.errors() == errors
    assert scraper.scrape().value("detaches_total", "orders") == 2.0**49 - 1


def test_other_files(tmp_path: Path) -> None:
    """What is not called like a segment is none of our business."""
    for name in ("worker-1", "worker-0001", "worker-000.bak", "worker-1024", "lost+found", ".worker-000"):
        (tmp_path / name).write_text("precious")
    assert Scraper(tmp_path).errors() == {}


def test_no_right_to_read(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A file that may not be opened is unreadable."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    process().lease.path.chmod(0)
    assert Scraper(tmp_path).errors() == {"unreadable": 1}


@pytest.mark.parametrize(
    ("at", "data", "kind"),
    [
        (0, b"X", "foreign"),  # the magic
        (8, b"\x63", "version"),  # the layout
        (12, b"\x63", "version"),  # the number of fields
        (16, b"\xff" * 8, "damaged"),  # the bytes in use
        (16, b"\x00" * 8, "damaged"),
        (17, b"\xff", "damaged"),
        (4096, b"\x00" * 8, "damaged"),  # the length of a block
        (4104, b"\xff" * 8, "damaged"),  # its rows
        (4112, b"\xff", "damaged"),  # what it is
        (4112, b"[" * 1008, "damaged"),
        (4112, b'{"pool": "\\ud800", "dialect": "", "driver": "", "pool_class": ""}\0', "damaged"),
        (4112, b'{"pool": 1, "dialect": "", "driver": "", "pool_class": ""}\0', "damaged"),
        (4112, b'{"pool": "p"}\0', "damaged"),
        (5120 + 8 * segment.DETACHES, b"\xff" * 8, "damaged"),  # a counter that is NaN
        (5120 + 8 * segment.DETACHES, struct.pack("d", -1.0), "damaged"),
        (5120 + 8 * segment.DETACHES, struct.pack("d", float("inf")), "damaged"),
        (5120 + 8 * segment.WAITERS_USED, struct.pack("d", 1e9), "damaged"),
        (5120 + 8 * segment.CONNECTIONS_USED, b"\xff" * 8, "damaged"),
    ],
)
def test_damage(  # noqa: PLR0917 - fixtures and a table
    tmp_path: Path,
    process: Callable[..., Process],
    caplog: pytest.LogCaptureFixture,
    at: int,
    data: bytes,
    kind: str,
) -> None:
    """Each fault is counted by its kind, named once in the log, and costs neither the others nor what was counted."""
    one, two = process(), process()
    one.count(3)
    two.count(4)
    scraper = Scraper(tmp_path)
    scraper.scrape()
    with one.lease.path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    with caplog.at_level(logging.WARNING):
        assert [scraper.errors(), scraper.errors()] == [{kind: 1}] * 2
    assert len(caplog.records) == 1
    assert "worker-000" in caplog.text
    exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 7
    assert by_worker(exposition, "size") == {"001": 2}


@pytest.mark.parametrize("length", [1, 47, 48, 4000, 4097, 5000, 9000])
def test_truncated(tmp_path: Path, process: Callable[..., Process], length: int) -> None:
    """A file that ends before what it says is in use is damaged."""
    one = process()
    one.count(3)
    one.kill()
    scraper = Scraper(tmp_path)
    scraper.scrape()
    data = one.lease.path.read_bytes()[:length]
    one.lease.path.unlink()
    one.lease.path.write_bytes(data)
    assert Scraper(tmp_path).errors() == {"damaged": 1}
    scraper.scrape()


@pytest.mark.parametrize("copy", [shutil.copy, os.link], ids=["copy", "hard link"])
def test_a_file_twice(
    tmp_path: Path, process: Callable[..., Process], copy: Callable[[Path, Path], object]
) -> None:
    """A second file with the same content is not a second worker: what it counted would be counted twice."""
    process("billing").kill()
    (tmp_path / file_name(0)).unlink()
    process("billing")
    one = process()
    one.count(3)
    copy(one.lease.path, tmp_path / file_name(5))
    scraper = Scraper(tmp_path)
    assert scraper.errors() == {"foreign": 1}
    exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 3
    assert by_worker(exposition, "size") == {"001": 2}


# -- fuzz

_dice = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def sane(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a file with two pools in it."""
    directory = tmp_path_factory.mktemp("sane")
    process = Process(directory)
    process.count(3)
    process.lease.block("billing", QUEUE, 64)
    process.kill()
    (path,) = directory.iterdir()
    return path.read_bytes()[:40_000]


def _flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 8)):
        data[dice.choice((dice.randrange(64), dice.randrange(4096, 6200), dice.randrange(len(data))))] ^= (
            1 << dice.randrange(8)
        )


def _cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def _overwrite(data: bytearray, dice: random.Random) -> None:
    at = dice.choice((0, dice.randrange(4096), dice.randrange(4096, 6200), dice.randrange(len(data))))
    junk = dice.randbytes(dice.randint(1, 300))
    data[at : at + len(junk)] = junk


def _shift(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    data[at:at] = bytes(dice.randint(1, 64))


@pytest.mark.parametrize("damage", [_flip, _cut, _overwrite, _shift])
def test_fuzzed_files(
    tmp_path_factory: pytest.TempPathFactory, sane: bytes, damage: Callable[[bytearray, random.Random], None]
) -> None:
    """Whatever is in a file costs at most a counted error, and its neighbour shows what it always shows.

    A flipped bit that makes one plausible number of another cannot be told from that number; there is no checksum,
    since the writer stores each value alone. So what is asserted is that the answer is whole, and not that it is true.
    """
    directory = tmp_path_factory.mktemp("fuzz")
    neighbour = Process(directory, "neighbour")
    neighbour.count(5)
    registry = Scraper(directory).registry
    gc.collect()
    before = descriptors()

    @settings(max_examples=60)
    @given(_dice)
    def check(dice: random.Random) -> None:
        data = bytearray(sane)
        damage(data, dice)
        (directory / file_name(1)).write_bytes(data)
        exposition = Exposition(registry)
        assert exposition.value("checkouts_total", "neighbour") == 5
        states = workers(exposition)
        errors = sum(
            value
            for (name, _), value in exposition.samples.items()
            if name == "sqlalchemy_pool_exporter_segment_errors"
        )
        unfinished = not any(data[:8]) and len(data) in (0, 4096)
        assert states["live"] == 1
        assert states["gone"] + errors == (0 if unfinished else 1)
        # Whoever starts next is not ended by it, either, and has a file.
        lease = Lease(directory)
        lease.block("orders", QUEUE, 64)
        lease.close()
        (directory / file_name(2)).unlink(missing_ok=True)

    check()
    gc.collect()
    assert descriptors() <= before
    neighbour.kill()


def test_changed_while_it_is_read(tmp_path: Path, sane: bytes) -> None:
    """A file that shrinks, grows, vanishes or is replaced under the reader's eyes is an error or not, and no more."""
    neighbour = Process(tmp_path, "neighbour")
    path = tmp_path / file_name(1)
    path.write_bytes(sane)
    stop = threading.Event()

    def disturb() -> None:
        dice = random.Random(11)  # noqa: S311 - the same each time
        while not stop.is_set():
            match dice.randrange(4):
                case 0:
                    os.truncate(path, dice.randrange(len(sane)))
                case 1:
                    path.write_bytes(sane)
                case 2:
                    (tmp_path / "new").write_bytes(sane[: dice.randrange(len(sane))])
                    (tmp_path / "new").replace(path)
                case _:
                    path.unlink()
                    path.write_bytes(sane)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        reader = Reader(tmp_path)
        before = descriptors()
        for _ in range(1000):
            fleet = reader.read()
            assert ("neighbour",) in fleet.counts
            assert sum(fleet.errors.values()) <= 1
        # One more may be the other thread's.
        assert descriptors() <= before + 1
    finally:
        stop.set()
        disturbing.join()
        neighbour.kill()


# -- sums


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=8),
    st.lists(st.integers(0, 7), max_size=8),
    st.data(),
)
@settings(max_examples=50)
def test_sums_of_seconds_never_shrink(seconds: list[float], ends: list[int], data: st.DataObject) -> None:
    """A sum of seconds stays the same to its last digit when a worker ends, is replaced, or its file is deleted."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        processes = [Process(Path(directory)) for _ in seconds]
        for process, value in zip(processes, seconds, strict=True):
            stack.callback(process.kill)
            process.block[segment.HOLD] = 1.0
            process.block[segment.HOLD + segment.SUM] = value
        reader = Reader(Path(directory))
        expected = math.fsum(seconds)
        at = segment.HOLD + segment.SUM - segment.FIRST_COUNTER
        assert reader.read().counts["orders",][at] == expected
        for end in ends:
            process = processes[end % len(processes)]
            process.kill()
            if data.draw(st.booleans()):
                process.lease.path.unlink(missing_ok=True)
            assert reader.read().counts["orders",][at] == expected
            if data.draw(st.booleans()):
                stack.callback(Process(Path(directory)).kill)
                assert reader.read().counts["orders",][at] == expected


def test_sums_of_deleted_files_never_shrink(tmp_path: Path) -> None:
    """Nor when there were so many that all but the latest are remembered as one sum."""
    reader, dice = Reader(tmp_path), random.Random(5)  # noqa: S311 - the same each time
    at = segment.HOLD + segment.SUM - segment.FIRST_COUNTER
    every: list[float] = []
    for _ in range(FILES // 16 + 4):
        processes = [Process(tmp_path) for _ in range(16)]
        for process in processes:
            every.append(dice.random() * 10 ** dice.randint(-3, 6))
            process.block[segment.HOLD + segment.SUM] = every[-1]
            process.kill()
        assert reader.read().counts["orders",][at] == math.fsum(every)
        for process in processes:
            process.lease.path.unlink()
        assert reader.read().counts["orders",][at] == math.fsum(every)
