# SPDX-License-Identifier: Apache-2.0
"""A file that is deleted under a live worker is replaced by one with the same counts, connections and identity."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import threading
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import NullPool, QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.segment import remap
from sqlalchemy_pool_exporter.segment.block import DETACHES, FIRST_COUNTER
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.format import file_name
from sqlalchemy_pool_exporter.segment.lock import is_held
from sqlalchemy_pool_exporter.segment.store import BlockStore
from tests.support.fakes import FakeConnection
from tests.support.logs import messages_of_this_test
from tests.support.moments import Intruder, OutOfTime, strike
from tests.support.samples import Exposition
from tests.support.segments import FORKS, Scraper, a_pool, counted, described, live, names, workers
from tests.support.wait import SECONDS, eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = FORKS


def connect(directory: Path, worker: Worker, pool: str) -> None:
    """Let a worker open a connection, which puts its file back."""
    worker.do("hold", pool, 1)
    assert list(directory.glob("worker-*"))


@pytest.mark.parametrize("what", ["file", "directory"])
def test_deleted_under_a_live_worker(directory: Path, what: str) -> None:
    """A worker whose file or directory was deleted is whole again at its next connection; no count falls or doubles."""
    scraper = Scraper(directory)
    with Worker(directory) as worker:
        worker.do("pool", "orders", 1, -1)
        worker.do("cycle", "orders", 7)
        worker.do("hold", "orders", 2)
        assert scraper.scrape().value("checkouts_total", "orders") == 9
        shutil.rmtree(directory)
        if what == "directory":
            scraper.scrape()
        directory.mkdir()
        gone = scraper.scrape()  # which asserts that no counter falls
        assert gone.value("checkouts_total", "orders") == 9
        assert gone.get("connections", "orders", worker="000", state="in_use") is None
        worker.do("hold", "orders", 1)
        assert names(directory)
        before = 10
        exposition = scraper.scrape()
        assert exposition.value("checkouts_total", "orders") == before
        assert exposition.value("connections", "orders", worker="000", state="in_use") == before - 7
        assert exposition.value("connects_total", "orders") == before - 7
        assert workers(exposition) == {"live": 1, "parent": 0, "gone": 0}
        worker.do("pool", "later")
        worker.do("cycle", "later", 3)
        assert scraper.scrape().value("checkouts_total", "later") == 3
        assert counted(directory, "orders") == {"000": before}
        assert live(directory) == ["000"]
    assert eventually(lambda: workers(scraper.scrape()) == {"live": 0, "parent": 0, "gone": 1})


def test_the_next_holder_counts_on(directory: Path) -> None:
    """A file that replaced a deleted one is locked, and the next process counts on in it."""
    with Worker(directory) as first:
        first.do("pool", "orders", 1, -1)
        (directory / "worker-000").unlink()
        connect(directory, first, "orders")
        (before,) = counted(directory, "orders").values()
    with Worker(directory) as second:
        second.do("pool", "orders")
        second.do("cycle", "orders", 1)
        assert counted(directory, "orders") == {"000": before + 1}


@pytest.mark.parametrize("by", ["a scrape", "another pool", "a connection"])
def test_who_notices(directory: Path, caplog: pytest.LogCaptureFixture, by: str) -> None:
    """A scrape, another pool and a new connection each replace the file, and the log says so once."""
    registry = CollectorRegistry()
    pool = a_pool()
    handle = instrument(pool, name="orders", registry=registry, directory=directory)
    pool.connect().close()
    held = pool.connect()
    (directory / "worker-000").unlink()
    if by == "a scrape":
        assert Exposition(registry).value("exporter_segment_shared", "orders") == 1
    elif by == "another pool":
        instrument(a_pool(), name="billing", registry=registry, directory=directory)
    else:
        pool.connect().close()
    (worker,) = Reader(directory).read().live
    assert worker.number == "000"
    (message,) = messages_of_this_test(caplog.records)
    assert "worker-000 was deleted" in message
    held.close()
    handle.close()


def test_the_place_is_taken(directory: Path) -> None:
    """If another process has the number by then, the worker takes the next one and keeps its identity."""
    segments = BlockStore(directory)
    block = segments.block(described("orders")).doubles
    block[DETACHES] = 3.0
    (before,) = Reader(directory).read().workers
    (directory / "worker-000").unlink()
    other = Lease(directory)
    assert other.number == 0
    assert segments.shares(block) is True
    block[DETACHES] += 1.0
    fleet = Reader(directory).read()
    assert [worker.number for worker in fleet.live] == ["000", "001"]
    assert fleet.live[1].identity == before.identity
    (pool,) = fleet.live[1].pools
    assert pool.snapshot.counts[DETACHES - FIRST_COUNTER] == 4.0
    other.close()


def test_without_a_directory_for_a_while(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While there is no directory, the worker counts on, says so once, and is whole when the directory is back."""
    now = 0.0
    segments = BlockStore(directory, clock=lambda: now)
    block = segments.block(described("orders")).doubles
    shutil.rmtree(directory)
    block[DETACHES] += 1.0
    assert [segments.shares(block), segments.shares(block)] == [False, False]
    later = segments.block(described("later")).doubles
    later[DETACHES] += 2.0
    assert len(caplog.records) == 1
    directory.mkdir()
    assert not segments.shares(block)  # it tries once a second
    now += 1
    assert [segments.shares(block), segments.shares(later)] == [True, True]
    later[DETACHES] += 2.0
    (worker,) = Reader(directory).read().live
    assert {p.name: p.snapshot.counts[DETACHES - FIRST_COUNTER] for p in worker.pools} == {
        "orders": 1,
        "later": 4,
    }


def test_a_directory_that_comes_later(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pools that began in memory, more than an extent has room for, go on in a file once there is a directory."""
    directory.rmdir()
    now = 0.0
    segments = BlockStore(directory, clock=lambda: now)
    blocks = [segments.block(described(f"pool {number}")).doubles for number in range(40)]
    for number, block in enumerate(blocks):
        block[DETACHES] = float(number)
    now += 1
    assert not any(map(segments.shares, blocks))
    directory.mkdir()
    now += 1
    segments.check()  # as a new connection does
    assert all(map(segments.shares, blocks))
    for block in blocks:
        block[DETACHES] += 1.0
    (worker,) = Reader(directory).read().live
    assert {pool.name: pool.snapshot.counts[DETACHES - FIRST_COUNTER] for pool in worker.pools} == {
        f"pool {number}": number + 1 for number in range(40)
    }
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == ["pools", "the"]


def test_a_parent_in_memory(directory: Path) -> None:
    """A process that began in memory and has only forked is a parent, also after there is a directory."""
    directory.rmdir()
    with Worker(directory) as parent:
        parent.do("pool", "orders")
        child = parent.do("fork", "orders", 2)
        try:
            directory.mkdir()
            assert eventually(lambda: parent.do("sample", "exporter_segment_shared", "orders") == 1)
            (worker,) = Reader(directory).read().running
            assert worker.is_parent
        finally:
            os.kill(child, 9)


@pytest.mark.parametrize("what", ["file", "loop"])
def test_no_directory_but_something_else(directory: Path, what: str) -> None:
    """If a file or a link is in the place of the directory, no error of it reaches the application."""
    segments = BlockStore(directory)
    block = segments.block(described("orders")).doubles
    shutil.rmtree(directory)
    if what == "file":
        directory.write_text("mine")
    else:
        directory.symlink_to(directory)
    segments.check()
    assert segments.shares(block) is False


def test_scrapes_beside_connections(directory: Path) -> None:
    """Scrapes while other threads open connections show each pool once: these threads look at the file, too."""
    registry = CollectorRegistry()
    handle = instrument(NullPool(FakeConnection), name="orders", registry=registry, directory=directory)  # type: ignore[arg-type]
    segments: Any = handle._recorders[0].store
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            segments.check()

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            assert segments.shares(handle._recorders[0].block)
            assert not list(segments.unshared_pages())
    finally:
        done.set()
        for thread in threads:
            thread.join()
        handle.close()


def test_an_unrelated_file_has_the_name(directory: Path) -> None:
    """A foreign file or a link that takes the place of the deleted file is left alone."""
    segments = BlockStore(directory)
    block = segments.block(described("orders")).doubles
    (directory / "worker-000").unlink()
    (directory / "worker-000").write_text("mine")
    (directory / "worker-001").symlink_to("worker-000")
    assert segments.shares(block) is True
    assert (directory / "worker-000").read_text() == "mine"
    assert [worker.number for worker in Reader(directory).read().live] == ["002"]


def test_a_lock_that_was_closed(directory: Path) -> None:
    """A worker whose lock the application closed locks its file again, and the file stays the same."""
    segments = BlockStore(directory)
    block = segments.block(described("orders")).doubles
    inode = (directory / "worker-000").stat().st_ino
    lease: Any = segments._lease
    os.close(lease._lock)
    assert live(directory) == []
    assert segments.shares(block) is True
    assert live(directory) == ["000"]
    assert (directory / "worker-000").stat().st_ino == inode


def test_a_file_that_another_process_took(directory: Path) -> None:
    """A worker whose lock was closed and whose file another process took is not shared: the file is the other's."""
    segments = BlockStore(directory)
    block = segments.block(described("orders")).doubles
    lease: Any = segments._lease
    os.close(lease._lock)
    with Worker(directory) as other:
        other.do("pool", "orders")
        assert segments.shares(block) is False
        assert names(directory) == ["worker-000"]


def test_no_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the worker counts on in the deleted file and leaves none behind; it is whole again later."""
    now = 0.0
    segments = BlockStore(directory, clock=lambda: now)
    block = segments.block(described("orders")).doubles
    (directory / "worker-000").unlink()
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "posix_fallocate", full)
        assert segments.shares(block) is False
    assert names(directory) == []
    block[DETACHES] += 1.0
    now += 1
    assert segments.shares(block) is True
    (worker,) = Reader(directory).read().live
    assert worker.pools[0].snapshot.counts[DETACHES - FIRST_COUNTER] == 1.0


def test_a_time_limit_while_a_file_is_replaced(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit reaches the application, and no file stays that another process would take and truncate."""

    class TimeLimit(Exception):  # noqa: N818 - named like those of task queues
        pass

    now = 0.0
    segments = BlockStore(directory, clock=lambda: now)
    block = segments.block(described("orders")).doubles
    block[DETACHES] = 5.0
    (directory / "worker-000").unlink()
    move = remap.move

    def strike(*arguments: Any, **options: Any) -> None:
        move(*arguments, **options)
        raise TimeLimit

    with monkeypatch.context() as patch:
        patch.setattr(remap, "move", strike)
        with pytest.raises(TimeLimit):
            segments.check()
    assert names(directory) == []
    block[DETACHES] += 1.0
    now += 1
    segments.check()
    (worker,) = Reader(directory).read().live
    assert worker.pools[0].snapshot.counts[DETACHES - FIRST_COUNTER] == 6.0


def test_memory_of_several_parts(tmp_path: Path) -> None:
    """Memory that was mapped in parts goes on in the new file, each part at its place."""
    size, used = mmap.PAGESIZE, 3 * mmap.PAGESIZE - 100
    old, new = ((tmp_path / name).open("w+b") for name in ("old", "new"))
    with old, new:
        for file in (old, new):
            file.truncate(3 * size)
        parts = [
            memoryview(mmap.mmap(old.fileno(), n * size, offset=at * size)) for at, n in ((0, 1), (1, 2))
        ]
        parts[0][7], parts[1][5], parts[1][size + 9] = 1, 2, 3
        remap.move(parts, new.fileno(), used=used)
        before = old.read()
        parts[0][7], parts[1][6] = 4, 5
        now = new.read()
        assert (now[7], now[size + 5], now[size + 6], now[2 * size + 9]) == (4, 2, 5, 3)
        old.seek(0)
        assert before == old.read()


def test_under_load(directory: Path) -> None:
    """While eight threads check out and the file is deleted again and again, not one checkout is lost."""
    registry = CollectorRegistry()
    # With no idle connection kept, each checkout opens one.
    pool = QueuePool(FakeConnection, pool_size=1, max_overflow=-1)  # type: ignore[arg-type]
    handle = instrument(pool, name="orders", registry=registry, directory=directory)

    is_deleted = threading.Event()

    def work() -> None:
        for turn in range(1500):
            if turn == 100:
                is_deleted.wait(SECONDS)
            first, second = pool.connect(), pool.connect()
            first.close()
            second.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    deleted = 0
    while any(thread.is_alive() for thread in threads):
        for path in directory.glob("worker-*"):
            path.unlink(missing_ok=True)
            deleted += 1
            is_deleted.set()
    for thread in threads:
        thread.join()
    assert deleted
    pool.connect().close()
    Exposition(registry)
    (worker,) = Reader(directory).read().live
    snapshot = worker.pools[0].snapshot
    values = dict(snapshot.values(now=0.0, wall=0.0))
    assert (values["checkouts_total"], values["checkins_total"]) == (24_001, 24_001)
    connections: Any = values["connections"]
    assert (connections["in_use"], values["pending_checkouts"]) == (0, 0)
    handle.close()


def test_forked_children_of_a_healed_worker(directory: Path) -> None:
    """A child of a worker whose file was replaced takes a file of its own and does not keep its parent's lock."""
    with Worker(directory) as parent:
        parent.do("pool", "orders", 1, -1)
        (directory / file_name(0)).unlink()
        connect(directory, parent, "orders")
        child = parent.do("fork", "orders", 2)
        try:
            assert live(directory) == ["000", "001"]
            parent.kill()
            assert live(directory) == ["001"]
        finally:
            os.kill(child, 9)


def test_the_lock_is_held(directory: Path) -> None:
    """The new file is locked through a descriptor that no child inherits with the mapping."""
    lease = Lease(directory)
    lease.path.unlink()
    lease.heal()
    descriptor = os.open(lease.path, os.O_RDONLY)
    try:
        assert is_held(descriptor)
        lease.close()
        assert not is_held(descriptor)
    finally:
        os.close(descriptor)


def test_a_time_limit_while_the_file_is_made(tmp_path: Path) -> None:
    """After a time limit anywhere in a look at a file that was deleted, another thread makes the file."""
    for moment in count(1):
        directory = tmp_path / str(moment)
        directory.mkdir()
        store = BlockStore(directory, clock=count(0.0, 2.0).__next__)
        store.block(described("orders"))
        (directory / file_name(0)).unlink()
        intruder = Intruder(moment, strike)
        with contextlib.suppress(OutOfTime), intruder:
            store.check()
        other = threading.Thread(target=store.check)
        other.start()
        other.join()
        assert names(directory), intruder.where
        assert store._lease is not None
        store._lease.close()
        if intruder.where is None:
            break
    assert moment > 30
