# SPDX-License-Identifier: Apache-2.0
"""The reader of a directory: no counter ever decreases, and a bad file costs nothing but an error."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment import directory, facts, file, identity
from sqlalchemy_pool_exporter.segment.format import FILES, file_name
from tests.support.segments import (
    NOW,
    Process,
    Scraper,
    by_worker,
    processes,
    workers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# -- counters never decrease


def test_counts_of_the_gone_stay(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A dead worker's file keeps its counts but shows no state; the next worker in the file counts on."""
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
    assert workers(exposition) == {"live": 0, "parent": 0, "gone": 1}
    process().count(1)
    exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 6
    assert by_worker(exposition, "connections", state="in_use") == {"000": 0}
    # A second reader, which starts only now, shows the same.
    assert Scraper(tmp_path).scrape().value("checkouts_total", "orders") == 6


def test_a_life_between_two_scrapes(tmp_path: Path, process: Callable[..., Process]) -> None:
    """If a worker starts and is killed between two scrapes, its counts are in the sums."""
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
    """A deleted file's counts stay, whether its holder is alive or dead; the counts of a new file are added."""
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


def test_what_is_known_is_not_decoded_again(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A pool that did nothing is the same object at the next read. Of one that did, only the numbers are decoded."""
    busy = process()
    process("billing")
    reader = directory.Reader(tmp_path)

    def read() -> dict[str, object]:
        return {pool.name: pool for worker in reader.find().workers for pool in worker.pools}

    first = read()
    decoded = identity.read.cache_info(), facts.read.cache_info()
    busy.count(3)
    second, third = read(), read()
    assert second["billing"] is first["billing"]
    assert second["orders"] is not first["orders"]
    assert third["orders"] is second["orders"]
    assert decoded == (identity.read.cache_info(), facts.read.cache_info())


def test_the_dead_cost_nothing(
    tmp_path: Path, process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader opens a dead worker's file again only after a process has changed it, and then in the next scrape."""
    opened: list[str] = []
    real_open, real_time = os.open, time.time_ns

    def count(path: str, *arguments: int, **options: int) -> int:
        opened.append(os.path.basename(path))  # noqa: PTH119 - any path that is opened
        return real_open(path, *arguments, **options)

    # The clock stands still until it is set forward.
    began = real_time()
    monkeypatch.setattr(time, "time_ns", lambda: began)
    live, dead = process(), process("billing")
    dead.count(3)
    dead.kill()
    scraper = Scraper(tmp_path)
    scraper.scrape()
    monkeypatch.setattr(os, "open", count)
    scraper.scrape()
    # Both files are read again: an unchanged ctime is trusted only once it is older than the clock's resolution.
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
    os.truncate(dead.lease.path, 9000)
    assert {"damaged": 1} == scraper.errors()
    dead.lease.path.unlink()
    assert scraper.errors() == {}
    assert scraper.scrape().value("checkouts_total", "billing") == 5


def test_the_directory_moved_away_and_back(tmp_path: Path) -> None:
    """If files disappear and come back, under the same name or another, their counts are counted once."""
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
    """A file that cannot be read keeps its last counts, shows no state, and is one error until it can be read again."""
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
    """If the directory is emptied at every restart, the counts stay, however many files have been deleted."""
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
    """A file that is locked again but not yet cleared still counts as the dead worker's."""
    first = process()
    first.count(3)
    first.hold(NOW - 5)
    scraper = Scraper(tmp_path)
    scraper.scrape()
    first.kill()
    scraper.scrape()
    # Take only the lock, the first step of a new lease.
    with first.lease.path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        exposition = scraper.scrape()
    assert exposition.value("checkouts_total", "orders") == 3
    assert by_worker(exposition, "connections", state="in_use") == {}


# -- faults


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="other file systems note each store to a mapping")  # noqa: S108
def test_a_read_in_the_middle_of_a_takeover(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that reads a file while its next holder takes over sees that holder afterwards, however slow it was."""
    original = file.Pages  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared, processes(Path(shared)) as process:
        process().kill()
        scraper = Scraper(Path(shared))
        scraper.scrape()
        # As if the holder had stood still for long after it took the file.
        monkeypatch.setattr(directory, "_CLOCK_RESOLUTION_NS", -1)

        def take_over(*arguments: Any) -> object:
            pages = original(*arguments)
            assert workers(scraper.scrape()) == {"live": 0, "parent": 0, "gone": 1}
            time.sleep(0.05)  # longer than the resolution of ctime
            return pages

        monkeypatch.setattr(file, "Pages", take_over)
        process()
        assert workers(scraper.scrape()) == {"live": 1, "parent": 0, "gone": 0}


def test_missing_directory(tmp_path: Path) -> None:
    """A missing directory is one error; the scrape is answered all the same."""
    assert Scraper(tmp_path / "missing").errors() == {"unreadable": 1}


def test_complaints_begin_and_end(
    tmp_path: Path, process: Callable[..., Process], caplog: pytest.LogCaptureFixture
) -> None:
    """An error is logged once while it lasts, and once more if it comes back."""
    process()
    scraper, other = Scraper(tmp_path), tmp_path / "worker-001"
    for _ in range(2):
        other.write_bytes(b"nothing of ours " * 8)
        assert [scraper.errors() for _ in range(3)] == [{"foreign": 1}] * 3
        other.unlink()
        assert scraper.errors() == {}
    assert ["worker-001" in record.getMessage() for record in caplog.records] == [True, True]


def test_a_file_that_shrank_after_its_worker_died(tmp_path: Path, process: Callable[..., Process]) -> None:
    """If a dead worker's file shrinks, its counts stay in the sums and the damage is reported."""
    worker = process()
    worker.count(3)
    scraper = Scraper(tmp_path)
    assert scraper.errors() == {}
    worker.kill()
    assert scraper.errors() == {}
    os.truncate(worker.lease.path, 9000)
    assert scraper.errors() == {"damaged": 1}
    assert scraper.scrape().value("checkouts_total", "orders") == 3


def test_a_count_that_is_none(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A count that is negative, not a number or 2**49 and more is damage; 2**49 - 1 is not."""
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
        worker.block[layout.DETACHES] = count
        assert scraper.errors() == errors
    assert scraper.scrape().value("detaches_total", "orders") == 2.0**49 - 1


def test_other_files(tmp_path: Path) -> None:
    """The reader ignores files whose names are not those of segments."""
    for name in ("worker-1", "worker-0001", "worker-000.bak", "worker-1024", "lost+found", ".worker-000"):
        (tmp_path / name).write_text("precious")
    assert Scraper(tmp_path).errors() == {}


def test_no_right_to_read(tmp_path: Path, process: Callable[..., Process]) -> None:
    """A file that the reader may not open is unreadable."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    process().lease.path.chmod(0)
    assert Scraper(tmp_path).errors() == {"unreadable": 1}


@pytest.mark.parametrize(
    ("at", "data", "kind"),
    [
        (0, b"X", "foreign"),  # the magic
        (8, b"\x63", "version"),  # the version of the layout
        (12, b"\x63", "version"),  # the number of fields
        (16, b"\xff" * 8, "damaged"),  # the bytes in use
        (16, b"\x00" * 8, "damaged"),
        (17, b"\xff", "damaged"),
        (8192, b"\x63" * 8, "damaged"),  # the kind of a page
        (8208, b"\xff", "damaged"),  # the description of its pool
        (8208, b"[" * 1008, "damaged"),
        (8208, b'{"pool": "\\ud800", "dialect": "", "driver": "", "pool_class": ""}\0', "damaged"),
        (8208, b'{"pool": 1, "dialect": "", "driver": "", "pool_class": ""}\0', "damaged"),
        (8208, b'{"pool": "p"}\0', "damaged"),
        (9216 + 8 * layout.DETACHES, b"\xff" * 8, "damaged"),  # a counter that is NaN
        (9216 + 8 * layout.DETACHES, struct.pack("d", -1.0), "damaged"),
        (9216 + 8 * layout.DETACHES, struct.pack("d", float("inf")), "damaged"),
        (9216 + 8 * layout.WAITERS_USED, struct.pack("d", 1e9), "damaged"),
        (9216 + 8 * layout.CONNECTIONS_USED, b"\xff" * 8, "damaged"),
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
    """Each kind of damage is counted and logged once; other files, and counts that were read before, are unaffected."""
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


@pytest.mark.parametrize("length", [1, 79, 80, 4000, 8193, 9000, 16_000])
def test_truncated(tmp_path: Path, process: Callable[..., Process], length: int) -> None:
    """A file shorter than the length in its header is damaged."""
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
    """A copy or hard link of a file is foreign: its counts must not be added a second time."""
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


def test_pages_of_the_dead_are_forgotten(tmp_path: Path) -> None:
    """A reader keeps the pages of live workers, to compare them; not those of workers that ended or were deleted."""
    reader = directory.Reader(tmp_path)
    live, dead, deleted = (Process(tmp_path) for _ in range(3))
    assert len(reader.read().live) == 3
    assert len(reader._remembered.contents) == 3
    dead.kill()
    deleted.kill()
    deleted.lease.path.unlink()
    assert [worker.number for worker in reader.read().live] == ["000"]
    assert len(reader._remembered.contents) == 1
    live.kill()
    reader.read()
    assert reader._remembered.contents == {}
