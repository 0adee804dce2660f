# SPDX-License-Identifier: Apache-2.0
"""The file of a process: which process holds it, and which of its content survives the process."""

from __future__ import annotations

import gc
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter import instrument, uninstrument
from sqlalchemy_pool_exporter.errors import SegmentError
from sqlalchemy_pool_exporter.segment.block import (
    ACTIVE,
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    DETACHES,
    FIRST_COUNTER,
    PAGE_BYTES,
)
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.format import FILE_BYTES, FILES, FIRST_EXTENT, HEADER_BYTES, file_name
from sqlalchemy_pool_exporter.segment.lock import is_held
from tests.support.segments import (
    FORKS,
    NOBODY,
    a_pool,
    as_nobody,
    as_root,
    counted,
    live,
    names,
    new_block,
)
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

pytestmark = FORKS


# -- the lease


def test_first_free_slot(directory: Path, leases: Callable[..., Lease]) -> None:
    """A process takes the first file that no process holds, so there are no more files than processes at one time."""
    first, second, third = (leases(directory) for _ in range(3))
    assert [first.number, second.number, third.number] == [0, 1, 2]
    second.close()
    assert leases(directory).number == 1
    assert names(directory) == ["worker-000", "worker-001", "worker-002"]


def test_a_taken_file_is_left_alone(directory: Path, leases: Callable[..., Lease]) -> None:
    """A process that looks for a free file writes nothing into a file that another process holds."""
    lease = leases(directory)
    block = new_block(lease, "orders").doubles
    block[ACTIVE] = block[CONNECTIONS_USED] = block[CONNECTIONS_AT] = 1.0
    before = lease.path.read_bytes()
    assert leases(directory).number == 1
    assert before == lease.path.read_bytes()


def test_counting_goes_on_after_kill(directory: Path) -> None:
    """The next process takes a killed process's file and adds to its counts; the old connections are cleared."""
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
            (pool,) = (pool for pool in worker.pools if pool.snapshot.is_active)
    assert names(directory) == ["worker-000"]
    assert counted(directory, "orders") == {"000": 14}
    assert worker.is_live
    # The one connection is idle: its row has a connect time and no hold time.
    connected = pool.snapshot.connections[::4]
    assert [at > 0 for at in connected if at] == [True]
    assert not any(pool.snapshot.connections[1::4])


def test_state_is_cleared_where_a_pool_is_not_instrumented_again(
    directory: Path, leases: Callable[..., Lease]
) -> None:
    """If the next holder does not instrument a pool, the pool's counts stay and it is not active."""
    lease = leases(directory)
    block = new_block(lease, "orders").doubles
    block[ACTIVE] = block[CONNECTIONS_USED] = block[CONNECTIONS_AT] = 1.0
    block[DETACHES] = 3.0
    lease.close()
    leases(directory)
    (worker,) = Reader(directory).read().live
    (pool,) = worker.pools
    assert not pool.snapshot.is_active
    assert not pool.snapshot.connections
    assert pool.snapshot.counts[DETACHES - FIRST_COUNTER] == 3.0


def test_liveness_is_the_lock_and_not_taken(directory: Path, leases: Callable[..., Lease]) -> None:
    """A read-only descriptor suffices to see whether a file is held, and looking does not take the lock."""
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
    """A file has mode 0600, or 0640 if group-readable, whatever the umask and the mode that the last holder set."""
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
    """A file grows as it is used: at first it takes 64 KiB, and later at most twice what its pages take."""
    lease = leases(directory)
    new_block(lease, "orders")
    status = lease.path.stat()
    assert (status.st_size, status.st_blocks * 512) == (FIRST_EXTENT, FIRST_EXTENT)
    for number in range(30):
        new_block(lease, f"pool {number}")
    assert lease.path.stat().st_blocks * 512 <= 2 * (len(lease.pages) + 1) * PAGE_BYTES


def test_locked_memory(directory: Path) -> None:
    """Also if a process locks all memory that it maps, its file takes what is used and not 64 MiB."""
    program = (
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.mlockall(3): sys.exit(77)\n"  # MCL_CURRENT | MCL_FUTURE
        "from pathlib import Path\n"
        "from sqlalchemy_pool_exporter.segment.file import Lease\n"
        "Lease(Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, directory], check=False, env={"PYTHONPATH": ":".join(sys.path)}
    )
    if done.returncode == 77:
        pytest.skip("this process may not lock its memory")
    assert done.returncode == 0
    assert (directory / "worker-000").stat().st_blocks * 512 <= FIRST_EXTENT


# -- other things in the directory


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
        os.chdir(path.parent)  # the path of a socket has at most 107 bytes
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
    new_block(lease, "orders")
    lease.close()
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
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
    """A process skips anything that is not a usable segment, and neither follows nor changes it."""
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
def test_a_file_of_another_user_is_passed_over(directory: Path) -> None:
    """A process skips a file of another user even if it may write to it, as root may."""
    (directory / "worker-000").touch()
    os.chown(directory / "worker-000", NOBODY, NOBODY)
    lease = Lease(directory)
    assert lease.number == 1
    lease.close()
    directory.chmod(0o777)
    directory.parent.chmod(0o755)
    with as_nobody(directory) as told:
        assert told == "0"  # the user's own file
    (directory / "worker-000").unlink()
    (directory / "worker-000").touch(0o666)
    with as_nobody(directory) as told:
        assert told == "2"


@pytest.mark.parametrize("size", [0, 4096, FIRST_EXTENT])
def test_an_interrupted_beginning_is_begun_again(
    directory: Path, leases: Callable[..., Lease], size: int
) -> None:
    """A file whose creator was killed before it was complete is no error, and the next process takes it."""
    with (directory / "worker-000").open("wb") as file:
        file.truncate(size)
    fleet = Reader(directory).read()
    assert (fleet.workers, sum(fleet.errors.values())) == ((), 0)
    assert leases(directory).number == 0
    assert live(directory) == ["000"]


def test_more_workers_than_slots(directory: Path, leases: Callable[..., Lease]) -> None:
    """If every name is taken, the search ends with an error that says so."""
    for number in range(FILES):
        (directory / file_name(number)).symlink_to("nowhere")
    with pytest.raises(SegmentError, match=f"all {FILES} files in .* are taken"):
        leases(directory)


# -- blocks


def test_a_name_that_is_too_long(directory: Path, leases: Callable[..., Lease]) -> None:
    """A pool whose name does not fit is refused; the error names the number of bytes."""
    with pytest.raises(SegmentError, match=r"takes 3\d\d\d bytes, more than 1008"):
        new_block(leases(directory), "ö" * 1500)


def test_a_full_file(directory: Path, leases: Callable[..., Lease]) -> None:
    """A full file, of 64 MiB, refuses another pool, and those that it has stay readable."""
    lease = leases(directory)
    most = FILE_BYTES // PAGE_BYTES - 1
    for _ in range(most):
        new_block(lease, "orders")
    with pytest.raises(SegmentError, match=f"worker-000 has no room for another pool: it holds {most} pages"):
        new_block(lease, "billing")
    assert len(Reader(directory).read().workers[0].pools) == most


def test_uninstrument_and_instrument(directory: Path, registry: CollectorRegistry) -> None:
    """A pool instrumented again counts on in its block; in between, its counts show and its state does not."""
    pool = a_pool()
    instrument(pool, name="again", registry=registry, directory=directory)
    pool.connect().close()
    uninstrument(pool)
    (shown,) = Reader(directory).read().workers[0].pools
    assert not shown.snapshot.is_active
    assert counted(directory, "again") == {"000": 1}
    instrument(pool, name="again", registry=registry, directory=directory)
    pool.connect().close()
    assert counted(directory, "again") == {"000": 2}
    uninstrument(pool)


def test_a_pool_that_is_collected(directory: Path, registry: CollectorRegistry) -> None:
    """A pool that is collected without close() leaves its counts, and its place to the next pool of any name."""
    for number in range(3):
        pool = a_pool()
        instrument(pool, name=f"pool {number % 2}", registry=registry, directory=directory)
        pool.connect().close()
        del pool
        gc.collect()
    assert counted(directory, "pool 0") == {"000": 2}
    assert counted(directory, "pool 1") == {"000": 1}
    # The last pool, until the next one is made or this process is scraped, and the totals of two names.
    (worker,) = Reader(directory).read().workers
    assert len(worker.pools) == 3
    assert not any(pool.snapshot.is_active for pool in worker.pools)


@pytest.mark.parametrize(
    "name", ["<script>alert('x')</script>", 'a "b"\n\\c\t\0d', "\U0001f600" * 190, "заказы " * 60, "x" * 800]
)
def test_any_name_is_shared(directory: Path, registry: CollectorRegistry, name: str) -> None:
    """A name of any characters, of up to 800 bytes of UTF-8, is shown to other processes as it is."""
    pool = a_pool()
    with instrument(pool, name=name, registry=registry, directory=directory):
        pool.connect().close()
        assert counted(directory, name) == {"000": 1}


def test_two_pools_in_two_directories(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A process has one file in each directory, with the pools of that directory; a symlink counts as its target."""
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
