# SPDX-License-Identifier: Apache-2.0
"""A process's file in a shared directory: whose it is, what survives in it, and that the application never needs it."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import multiprocessing
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument, uninstrument
from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.segment.block import (
    ACTIVE,
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    DETACHES,
    FIRST_COUNTER,
)
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import FILES, Lease, file_name, is_held
from sqlalchemy_pool_exporter.segment.store import Segments
from sqlalchemy_pool_exporter.sidecar.collector import FleetCollector
from tests.support.fakes import FakeConnection
from tests.support.witness import Exposition, eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INFO = {"pool_class": "QueuePool", "dialect": "", "driver": ""}
LOGGER = "sqlalchemy_pool_exporter"
# Pools here are kept by hand; what a forked child inherits of them is none of its business.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
NOBODY = 65534


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "segments"
    directory.mkdir()
    return directory


@pytest.fixture
def leases() -> Iterator[Callable[..., Lease]]:
    """Make leases as so many processes would: the lock is an open file's and not a process's."""
    with ExitStack() as stack:

        def make(directory: Path, **options: Any) -> Lease:
            lease = Lease(directory, **options)
            stack.callback(lease.close)
            return lease

        yield make


def a_pool(size: int = 2, max_overflow: int = 1) -> QueuePool:
    return QueuePool(FakeConnection, pool_size=size, max_overflow=max_overflow)  # type: ignore[arg-type]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def live(directory: Path) -> list[str]:
    return [worker.number for worker in Reader(directory).read().live]


def counted(directory: Path, pool: str) -> dict[str, float]:
    """Return the checkouts of a pool by worker, as a new reader sees them."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(Reader(directory), counters_per_worker=True))
    return {
        dict(labels)["worker"]: value
        for (name, labels), value in Exposition(registry).samples.items()
        if name == "sqlalchemy_pool_checkouts_total" and ("pool", pool) in labels
    }


# -- the lease


def test_first_free_slot(directory: Path, leases: Callable[..., Lease]) -> None:
    """A process takes the first file that nobody holds; there are as many as processes at once."""
    first, second, third = (leases(directory) for _ in range(3))
    assert [first.number, second.number, third.number] == [0, 1, 2]
    second.close()
    assert leases(directory).number == 1
    assert names(directory) == ["worker-000", "worker-001", "worker-002"]


def test_counting_goes_on_after_kill(directory: Path) -> None:
    """The next process takes the killed one's file and counts on from there; what was out and idle is gone."""
    with Worker(directory) as first:
        first.do("pool", "orders")
        first.do("cycle", "orders", 7)
        first.do("hold", "orders", 2)
        assert counted(directory, "orders") == {"000": 9}
        first.kill()
        assert live(directory) == []
        with Worker(directory) as second:
            second.do("pool", "orders")
            second.do("cycle", "orders", 5)
            (worker,) = Reader(directory).read().workers
            (block,) = worker.blocks
    assert names(directory) == ["worker-000"]
    assert counted(directory, "orders") == {"000": 14}
    assert worker.is_live
    # One connection, idle: its row says since when it is connected, and held since never.
    connected = block.snapshot.connections[::4]
    assert [at > 0 for at in connected if at] == [True]
    assert not any(block.snapshot.connections[1::4])


def test_state_is_cleared_where_a_pool_is_not_instrumented_again(
    directory: Path, leases: Callable[..., Lease]
) -> None:
    """A pool that the next holder has not is not its own: its counts stay, and it is not active."""
    lease = leases(directory)
    block = lease.block("orders", INFO, 64)
    block[ACTIVE] = block[CONNECTIONS_USED] = block[CONNECTIONS_AT] = 1.0
    block[DETACHES] = 3.0
    lease.close()
    leases(directory)
    (worker,) = Reader(directory).read().live
    (block_now,) = worker.blocks
    assert not block_now.snapshot.is_active
    assert block_now.snapshot.connections == []
    assert block_now.snapshot.counts[DETACHES - FIRST_COUNTER] == 3.0


def test_liveness_is_the_lock_and_not_taken(directory: Path, leases: Callable[..., Lease]) -> None:
    """Whether a file is held is asked through a descriptor that can only read, and asking leaves it free."""
    lease = leases(directory)
    descriptor = os.open(lease.path, os.O_RDONLY)
    try:
        assert is_held(descriptor)
        lease.close()
        assert not is_held(descriptor)
        assert leases(directory).number == 0
        assert is_held(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("group_readable", "mode"), [(False, 0o600), (True, 0o640)])
def test_mode(directory: Path, leases: Callable[..., Lease], *, group_readable: bool, mode: int) -> None:
    """A file is its owner's alone, or readable by its group; the umask and the last holder change nothing."""
    leases(directory, group_readable=not group_readable).close()
    umask = os.umask(0o777)
    try:
        lease = leases(directory, group_readable=group_readable)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(lease.path.stat().st_mode) == mode


def test_group_readable_by_environment(directory: Path) -> None:
    """SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE does what the argument does."""
    with Worker(directory, SQLALCHEMY_POOL_EXPORTER_GROUP_READABLE="true") as worker:
        worker.do("pool", "orders")
    assert stat.S_IMODE((directory / "worker-000").stat().st_mode) == 0o640


def test_disk_use(directory: Path, leases: Callable[..., Lease]) -> None:
    """A file takes the disk space of what is in it, however long it is."""
    lease = leases(directory)
    lease.block("orders", INFO, 64)
    assert lease.path.stat().st_blocks * 512 < 64 * 1024


# -- what else can be in the directory


def _symlink(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"precious")
    path.symlink_to(target)


def _hard_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"precious")
    os.link(target, path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        cwd = Path.cwd()
        os.chdir(path.parent)  # a socket's name is short
        try:
            listening.bind(path.name)
        finally:
            os.chdir(cwd)


def _other_layout(path: Path) -> None:
    lease = Lease(path.parent)
    lease.close()
    assert lease.path == path
    with path.open("r+b") as file:
        file.seek(8)
        file.write((99).to_bytes(4, sys.byteorder))


def _damaged(path: Path) -> None:
    lease = Lease(path.parent)
    lease.block("orders", INFO, 64)
    lease.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8)


OBSTACLES = {
    "symlink": _symlink,
    "dangling": lambda path: path.symlink_to(path.with_name("nothing")),
    "loop": lambda path: path.symlink_to(path),
    "hard link": _hard_link,
    "directory": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "socket": _socket,
    "text": lambda path: path.write_text("precious"),
    "long": lambda path: path.write_bytes(b"precious" * 10_000),
    "other layout": _other_layout,
    "damaged": _damaged,
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_obstacles_are_passed_over(directory: Path, leases: Callable[..., Lease], obstacle: str) -> None:
    """What is no file of ours, or none that can be gone on with, is passed over, not followed and not changed."""
    path = directory / file_name(0)
    OBSTACLES[obstacle](path)
    target = directory / "target"
    before = path.lstat(), path.read_bytes() if path.is_file() else b""
    lease = leases(directory)
    assert lease.number == 1
    after = path.lstat(), path.read_bytes() if path.is_file() else b""
    unchanged = ("st_mode", "st_ino", "st_size", "st_mtime_ns", "st_nlink")
    assert [getattr(after[0], name) for name in unchanged] == [getattr(before[0], name) for name in unchanged]
    assert after[1] == before[1]
    assert not (directory / "nothing").exists()
    if target.exists():
        assert target.read_bytes() == b"precious"
    fleet = Reader(directory).read()
    assert [worker.number for worker in fleet.live] == ["001"]
    assert sum(fleet.errors.values()) == 1


@as_root
def test_a_file_of_somebody_else_is_passed_over(directory: Path) -> None:
    """Root could write everybody's file, and leaves it alone; who is nobody cannot and does not."""
    (directory / "worker-000").touch()
    os.chown(directory / "worker-000", NOBODY, NOBODY)
    lease = Lease(directory)
    assert lease.number == 1
    lease.close()
    directory.chmod(0o777)
    directory.parent.chmod(0o755)
    with _as_nobody(directory) as told:
        assert told == "0"  # its own; root's it passes over
    (directory / "worker-000").unlink()
    (directory / "worker-000").touch(0o666)
    with _as_nobody(directory) as told:
        assert told == "2"


@contextlib.contextmanager
def _as_nobody(directory: Path) -> Iterator[str]:
    """Yield the number of the lease that a child takes as another user, or why it took none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(directory)  # now: what lies above it is root's
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                said = str(Lease(Path()).number)
            except SegmentError as error:
                said = str(error)
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        yield answer.read()
    os.waitpid(pid, 0)


@pytest.mark.parametrize("size", [0, 4096, 64 * 2**20])
def test_an_interrupted_beginning_is_begun_again(
    directory: Path, leases: Callable[..., Lease], size: int
) -> None:
    """A file whose maker was killed before it was complete is no error, and the next one's."""
    with (directory / "worker-000").open("wb") as file:
        file.truncate(size)
    fleet = Reader(directory).read()
    assert (fleet.workers, sum(fleet.errors.values())) == ((), 0)
    assert leases(directory).number == 0
    assert live(directory) == ["000"]


def test_more_workers_than_slots(directory: Path, leases: Callable[..., Lease]) -> None:
    """Where every name is taken by something else, that is said, and nothing is searched any further."""
    for number in range(FILES):
        (directory / file_name(number)).symlink_to("nowhere")
    with pytest.raises(SegmentError, match=f"all {FILES} files in .* are taken"):
        leases(directory)


# -- blocks


def test_other_limits(directory: Path, leases: Callable[..., Lease]) -> None:
    """A pool that comes back smaller goes on in its block; one that comes back larger gets a new one: both count."""
    first = leases(directory)
    first.block("orders", INFO, 64)[DETACHES] = 3.0
    first.close()
    second = leases(directory)
    second.block("orders", INFO, 32)[DETACHES] += 1.0
    second.close()
    third = leases(directory)
    third.block("orders", INFO, 256)[DETACHES] += 1.0
    third.close()
    reader = Reader(directory)
    at = DETACHES - FIRST_COUNTER
    assert {labels: counts[at] for labels, counts in reader.read().counts.items()} == {("orders",): 5.0}
    assert {labels: counts[at] for labels, counts in reader.read(per_worker=True).counts.items()} == {
        ("orders", "000"): 5.0
    }
    # Neither is made a second time.
    fourth = leases(directory)
    assert len(fourth.block("orders", INFO, 200)) > len(fourth.block("orders", INFO, 64))
    assert len(Reader(directory).read().workers[0].blocks) == 2


def test_a_pool_collected_after_its_successor_was_made(directory: Path, leases: Callable[..., Lease]) -> None:
    """Giving back the first of two blocks of a name does not touch the second."""
    lease = leases(directory)
    first = lease.block("orders", INFO, 64)
    second = lease.block("orders", INFO, 64)
    first[ACTIVE] = second[ACTIVE] = 1.0
    lease.give_back("orders")
    assert (first[ACTIVE], second[ACTIVE]) == (0.0, 1.0)


def test_a_name_that_is_too_long(directory: Path, leases: Callable[..., Lease]) -> None:
    """A pool whose name has no room in the file is refused with the number of bytes."""
    with pytest.raises(SegmentError, match=r"takes 3\d\d\d bytes, more than 1008"):
        leases(directory).block("ö" * 500, INFO, 64)


def test_a_full_file(directory: Path, leases: Callable[..., Lease]) -> None:
    """A file takes so many pools and no more, and those it has stay readable."""
    lease = leases(directory)
    for number in range(10):
        lease.block(f"pool {number}", INFO, 200_000)
    with pytest.raises(SegmentError, match="worker-000 has no room for another pool: it holds 10"):
        lease.block("pool 10", INFO, 200_000)
    assert len(Reader(directory).read().workers[0].blocks) == 10


def test_uninstrument_and_instrument(directory: Path, registry: CollectorRegistry) -> None:
    """Who is instrumented again counts on; meanwhile the counts are there and the state is not."""
    pool = a_pool()
    instrument(pool, name="again", registry=registry, directory=directory)
    pool.connect().close()
    uninstrument(pool)
    (block,) = Reader(directory).read().workers[0].blocks
    assert not block.snapshot.is_active
    assert counted(directory, "again") == {"000": 1}
    instrument(pool, name="again", registry=registry, directory=directory)
    pool.connect().close()
    assert counted(directory, "again") == {"000": 2}
    uninstrument(pool)


def test_a_pool_that_is_collected(directory: Path, registry: CollectorRegistry) -> None:
    """A pool that goes without close() leaves its counts, and its block to the next of its name."""
    for _ in range(3):
        pool = a_pool()
        instrument(pool, name="collected", registry=registry, directory=directory)
        pool.connect().close()
        del pool
        gc.collect()
    (block,) = Reader(directory).read().workers[0].blocks
    assert not block.snapshot.is_active
    assert counted(directory, "collected") == {"000": 3}


def test_two_pools_in_two_directories(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Each directory has a file of the process with the pools that were meant for it; a link to one is that one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    pools = [a_pool() for _ in range(3)]
    for name, pool, directory in zip(("one", "two", "three"), pools, ("a", "b", "link"), strict=True):
        instrument(pool, name=name, registry=registry, directory=tmp_path / directory)
        pool.connect().close()
    shown = {
        directory: {labels[0] for labels in Reader(tmp_path / directory).read().counts} for directory in "ab"
    }
    assert shown == {"a": {"one", "three"}, "b": {"two"}}
    assert names(tmp_path / "a") == ["worker-000"]
    for pool in pools:
        uninstrument(pool)


# -- the application never depends on it


def assert_falls_back(
    directory: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """Assert that two pools work and are counted, with one warning, and with a metric that says it."""
    pools = {"first": a_pool(), "second": a_pool()}
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        for name, pool in pools.items():
            instrument(pool, name=name, registry=registry, directory=directory)
            pool.connect().close()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [why]
    exposition = Exposition(registry)
    for name, pool in pools.items():
        assert exposition.value("exporter_segment_shared", name) == 0
        assert exposition.counters(name)["checkouts"] == 1
        uninstrument(pool)


def test_no_directory_asked_for(registry: CollectorRegistry) -> None:
    """Without a directory nothing is said of one."""
    pool = a_pool()
    with instrument(pool, name="p", registry=registry):
        assert Exposition(registry).get("exporter_segment_shared", "p") is None


def test_shared(directory: Path, registry: CollectorRegistry) -> None:
    """With a directory that works the metric is 1."""
    pool = a_pool()
    with instrument(pool, name="p", registry=registry, directory=directory):
        assert Exposition(registry).value("exporter_segment_shared", "p") == 1


def test_missing_directory(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not made: whoever owns it decides on its mode."""
    missing = tmp_path / "missing"
    why = f"cannot use directory {str(missing)!r}: No such file or directory"
    assert_falls_back(missing, registry, caplog, why)
    assert not missing.exists()


def test_no_directory_but_a_file(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is no directory."""
    file = tmp_path / "file"
    file.write_text("precious")
    assert_falls_back(file, registry, caplog, f"cannot use directory {str(file)!r}: Not a directory")


def test_symlink_loop(tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A path that leads nowhere is an error of the directory and not of the application."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    why = f"cannot use directory {str(loop)!r}: Too many levels of symbolic links"
    assert_falls_back(loop, registry, caplog, why)


def test_a_later_start_recovers(tmp_path: Path, directory: Path) -> None:
    """What could not be used is tried again at the next start, and not before."""
    missing = tmp_path / "later"
    with Worker(missing) as worker:
        worker.do("pool", "orders")
        assert worker.do("sample", "exporter_segment_shared", "orders") == 0
        missing.mkdir()
        worker.do("pool", "other")
        assert worker.do("sample", "exporter_segment_shared", "other") == 0
    with Worker(missing) as worker:
        worker.do("pool", "orders")
        assert worker.do("sample", "exporter_segment_shared", "orders") == 1


@as_root
def test_read_only_directory(directory: Path) -> None:
    """In a directory of somebody else nothing is made, and that is said."""
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    with _as_nobody(directory) as told:
        assert told == "cannot use directory '.': Permission denied"
    assert names(directory) == []


@as_root
def test_read_only_directory_with_a_file_of_ours(directory: Path) -> None:
    """A file of ours that is there already is taken, whoever owns the directory."""
    (directory / "worker-000").touch(0o600)
    os.chown(directory / "worker-000", NOBODY, NOBODY)
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    with _as_nobody(directory) as told:
        assert told == "0"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 64 KiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], check=False)
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@as_root
def test_full_disk(tiny: Path) -> None:
    """Pools for which the disk has no room are counted in memory; those that have it are shared still."""
    with Worker(tiny) as worker:
        for number in range(10):
            worker.do("pool", f"pool {number}")
            worker.do("cycle", f"pool {number}", 3)
        assert [worker.do("sample", "checkouts_total", f"pool {number}") for number in range(10)] == [3] * 10
        assert worker.do("sample", "exporter_segment_shared", "pool 0") == 0
        counts = Reader(tiny).read().counts
        assert ("pool 0",) in counts
        assert ("pool 9",) not in counts
        # Not even room for a header.
        (tiny / "filler").write_bytes(b"")
        with contextlib.suppress(OSError), (tiny / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        with Worker(tiny) as second:
            second.do("pool", "orders")
            second.do("cycle", "orders", 3)
            assert second.do("sample", "checkouts_total", "orders") == 3
            assert second.do("sample", "exporter_segment_shared", "orders") == 0
            assert live(tiny) == ["000"]


@as_root
def test_holes_on_a_full_disk(tiny: Path) -> None:
    """A file that was copied with holes is made whole before it is written to, or not taken."""
    with Worker(tiny) as worker:
        worker.do("pool", "orders")
    # As `cp --sparse=always` leaves it.
    path = tiny / "worker-000"
    data = path.read_bytes()[:20_000]
    path.unlink()
    with path.open("wb") as file:
        for at in range(0, len(data), 4096):
            if any(data[at : at + 4096]):
                file.seek(at)
                file.write(data[at : at + 4096])
        file.truncate(64 * 2**20)
    with contextlib.suppress(OSError), (tiny / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    with Worker(tiny) as worker:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 1000)
        assert worker.do("sample", "exporter_segment_shared", "orders") == 0


def test_a_limit_on_file_size(
    directory: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that may write no long files goes on in memory."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        why = f"cannot use directory {str(directory)!r}: File too large"
        assert_falls_back(directory, registry, caplog, why)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_descriptor_left(
    directory: Path,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process without a free descriptor goes on in memory, having tried once."""
    opened = 0

    def refuse(*_: object, **__: object) -> int:
        nonlocal opened
        opened += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    Lease(directory).close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        segments = Segments(directory)
    assert opened == 1
    assert segments.is_shared is False
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records] == ["Too many open files"]


def test_deleted_while_running(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose file is deleted goes on, says so once, and takes a new one at its next start."""
    segments = Segments(directory)
    block = segments.block("orders", INFO, 64)
    assert segments.is_shared is True
    (directory / "worker-000").unlink()
    block[DETACHES] += 1.0
    assert [segments.is_shared, segments.is_shared] == [False, False]
    (message,) = (record.getMessage() for record in caplog.records)
    assert "worker-000' was deleted" in message
    assert Segments(directory).is_shared is True
    assert names(directory) == ["worker-000"]


def test_a_new_pool_after_the_file_was_deleted(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new pool is a moment to notice, too: who has no endpoint of his own would never be told."""
    segments = Segments(directory)
    segments.block("orders", INFO, 64)
    (directory / "worker-000").unlink()
    segments.block("billing", INFO, 64)[DETACHES] += 1.0
    (message,) = (record.getMessage() for record in caplog.records)
    assert "worker-000' was deleted" in message


def test_descriptors_closed_by_the_application(directory: Path) -> None:
    """Who closes every descriptor, as a daemon does, loses the lock; what has its number then is not closed."""
    lease = Lease(directory)
    # Two: the lock, and the mapping's, which sees the lock as somebody else's.
    (lock,) = (number for number in descriptors_of(lease.path) if not is_held(number))
    with Path(os.devnull).open() as other:
        os.dup2(other.fileno(), lock)
        assert not lease.is_there
        lease.close()
        os.fstat(lock)
        os.close(lock)


def descriptors_of(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if entry.readlink() == path:
                found.append(int(entry.name))
    return found


# -- forks


def test_fork(directory: Path) -> None:
    """A child has a file of its own before its first checkout, and does not touch its parent's."""
    with Worker(directory) as parent:
        parent.do("pool", "orders")
        parent.do("cycle", "orders", 3)
        parent.do("hold", "orders", 1)
        before = (directory / "worker-000").read_bytes()
        child = parent.do("fork", "orders", 2)
        try:
            assert (directory / "worker-000").read_bytes() == before
            assert counted(directory, "orders") == {"000": 4, "001": 2}
            assert live(directory) == ["000", "001"]
        finally:
            os.kill(child, signal.SIGKILL)
        assert eventually(lambda: live(directory) == ["000"])


def test_a_child_does_not_keep_its_parents_lock(directory: Path) -> None:
    """The file of a killed parent is free at once, though its child lives on; and the next one counts on in it."""
    with Worker(directory) as parent:
        parent.do("pool", "orders")
        parent.do("cycle", "orders", 3)
        child = parent.do("fork", "orders", 2)
        try:
            parent.kill()
            assert live(directory) == ["001"]
            with Worker(directory) as second:
                second.do("pool", "orders")
                second.do("cycle", "orders", 1)
                assert live(directory) == ["000", "001"]
                assert counted(directory, "orders") == {"000": 4, "001": 2}
        finally:
            os.kill(child, signal.SIGKILL)


def test_forks_of_forks(directory: Path, registry: CollectorRegistry) -> None:
    """As many files as processes at once, though each generation is forked by the one before."""
    pool = a_pool()
    handle = instrument(pool, name="orders", registry=registry, directory=directory)
    pool.connect().close()
    pid = os.fork()
    if pid == 0:
        for _ in range(3):
            pool.connect().close()
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert counted(directory, "orders") == {"000": 1, "001": 1, "002": 1, "003": 1, "004": 0}
    handle.close()


def _check_out(directory: Path) -> None:
    pool = a_pool()
    instrument(pool, name="orders", registry=CollectorRegistry(), directory=directory)
    pool.connect().close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(directory: Path, registry: CollectorRegistry, method: str) -> None:
    """Processes of multiprocessing have a file each while they run, and follow one another in it."""
    pool = a_pool()
    handle = instrument(pool, name="parent", registry=registry, directory=directory)
    context: Any = multiprocessing.get_context(method)
    for _ in range(2):
        process = context.Process(target=_check_out, args=(directory,))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert counted(directory, "orders") == {"001": 2}
    assert live(directory) == ["000"]
    assert names(directory) == ["worker-000", "worker-001"]
    handle.close()


def test_a_child_without_room(
    directory: Path, registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    """A child for which there is no file goes on in memory and leaves its parent's alone."""
    with Worker(directory) as parent:
        parent.do("pool", "orders")
        parent.do("cycle", "orders", 3)
        for number in range(1, FILES):
            (directory / file_name(number)).symlink_to("nowhere")
        before = (directory / "worker-000").read_bytes()
        child = parent.do("fork", "orders", 2)
        os.kill(child, signal.SIGKILL)
        assert (directory / "worker-000").read_bytes() == before
    assert f"all {FILES} files in" in capfd.readouterr().err
