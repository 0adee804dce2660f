# SPDX-License-Identifier: Apache-2.0
"""The blocks of a process are in a file, or in memory if the directory cannot be used."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter import instrument, uninstrument
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.file import Lease
from sqlalchemy_pool_exporter.segment.lock import is_held
from sqlalchemy_pool_exporter.segment.store import BlockStore
from tests.support.logs import messages_of_this_test
from tests.support.samples import Exposition
from tests.support.segments import (
    FORKS,
    NOBODY,
    a_pool,
    as_nobody,
    as_root,
    counted,
    described,
    live,
    names,
)
from tests.support.wait import eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

LOGGER = "sqlalchemy_pool_exporter"
ORDERS, BILLING = map(described, ("orders", "billing"))
pytestmark = FORKS


def assert_falls_back(
    directory: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """Assert that two pools work and count, with one warning in the log, and with ``exporter_segment_shared`` at 0."""
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
    """Without a directory, ``exporter_segment_shared`` is not shown."""
    pool = a_pool()
    with instrument(pool, name="p", registry=registry):
        assert Exposition(registry).get("exporter_segment_shared", "p") is None


def test_shared(directory: Path, registry: CollectorRegistry) -> None:
    """With a directory that works, ``exporter_segment_shared`` is 1."""
    pool = a_pool()
    with instrument(pool, name="p", registry=registry, directory=directory):
        assert Exposition(registry).value("exporter_segment_shared", "p") == 1


def test_missing_directory(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing directory is not created, because its owner must choose its mode."""
    missing = tmp_path / "missing"
    why = f"cannot use directory {str(missing)!r}: No such file or directory"
    assert_falls_back(missing, registry, caplog, why)
    assert not missing.exists()


def test_no_directory_but_a_file(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """If the directory is a file, the pools count in memory."""
    file = tmp_path / "file"
    file.write_text("precious")
    assert_falls_back(file, registry, caplog, f"cannot use directory {str(file)!r}: Not a directory")


def test_symlink_loop(tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """If the path is a symlink loop, the pools count in memory and the application gets no error."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    why = f"cannot use directory {str(loop)!r}: Too many levels of symbolic links"
    assert_falls_back(loop, registry, caplog, why)


def test_a_directory_that_comes_later(tmp_path: Path) -> None:
    """A directory that could not be used is tried again at scrapes, and then has all that was counted."""
    missing = tmp_path / "later"
    with Worker(missing) as worker:
        worker.do("pool", "orders")
        worker.do("cycle", "orders", 7)
        assert worker.do("sample", "exporter_segment_shared", "orders") == 0
        missing.mkdir()
        assert eventually(lambda: worker.do("sample", "exporter_segment_shared", "orders") == 1)
        worker.do("pool", "other")
        assert worker.do("sample", "exporter_segment_shared", "other") == 1
        worker.do("cycle", "orders", 1)
        assert worker.do("sample", "checkouts_total", "orders") == 8
        assert counted(missing, "orders") == {"000": 8}


@as_root
def test_read_only_directory(directory: Path) -> None:
    """In a directory that it may not write to, a process makes no file and logs why."""
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    with as_nobody(directory) as told:
        assert told == "cannot use directory '.': Permission denied"
    assert names(directory) == []


@as_root
def test_read_only_directory_with_a_file_of_ours(directory: Path) -> None:
    """A process takes an existing file of its user even in a directory that it may not write to."""
    (directory / "worker-000").touch(0o600)
    os.chown(directory / "worker-000", NOBODY, NOBODY)
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    with as_nobody(directory) as told:
        assert told == "0"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """Yield the mount point of a 64 KiB file system."""
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
    """Pools that do not fit on the disk count in memory; those that fit stay in the file."""
    with Worker(tiny) as worker:
        for number in range(10):
            worker.do("pool", f"pool {number}")
            worker.do("cycle", f"pool {number}", 3)
        assert [worker.do("sample", "checkouts_total", f"pool {number}") for number in range(10)] == [3] * 10
        counts = Reader(tiny).read().counts
        assert ("pool 0",) in counts
        assert ("pool 9",) not in counts
        for number in range(10):  # each pool says of itself whether a sidecar sees it
            is_shared = worker.do("sample", "exporter_segment_shared", f"pool {number}")
            assert is_shared == ((f"pool {number}",) in counts)
        # Fill the disk, so that there is no room for a header either.
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
    """If a file has holes and the disk is full, a process does not write to it, but counts in memory."""
    with Worker(tiny) as worker:
        worker.do("pool", "orders")
    # Write a sparse copy, as `cp --sparse=always` does.
    path = tiny / "worker-000"
    data = path.read_bytes()
    path.unlink()
    with path.open("wb") as file:
        for at in range(0, len(data), 4096):
            if any(data[at : at + 4096]):
                file.seek(at)
                file.write(data[at : at + 4096])
        file.truncate(len(data))
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
    """If the limit on file size is too small for a segment, the pools count in memory."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limits[1]))
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
    """A process without a free descriptor counts in memory, and tries only one file."""
    opened = 0

    def refuse(*_: object, **__: object) -> int:
        nonlocal opened
        opened += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    Lease(directory).close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        segments = BlockStore(directory)
    assert opened == 1
    assert segments.shares(segments.block(ORDERS).doubles) is False
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records] == ["Too many open files"]


def test_a_pool_that_does_not_fit(
    directory: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three pools, the one whose name is too long counts in memory and says so; the others are shared."""
    long = "x" * 2000
    pools = {"before": a_pool(), long: a_pool(), "after": a_pool()}
    for name, pool in pools.items():
        instrument(pool, name=name, registry=registry, directory=directory)
        pool.connect().close()
    exposition = Exposition(registry)
    assert {"before": 1.0, long: 0.0, "after": 1.0} == {
        name: exposition.value("exporter_segment_shared", name) for name in pools
    }
    assert all(exposition.value("checkouts_total", name) == 1 for name in pools)
    assert {("before",), ("after",)} == Reader(directory).read().counts.keys()
    (message,) = messages_of_this_test(caplog.records)
    assert message.startswith(f"pool {'x' * 40!r}, and others for which there is no room, are invisible")
    for pool in pools.values():
        uninstrument(pool)


def test_descriptors_closed_by_the_application(directory: Path) -> None:
    """If the application reuses the number of the lock's descriptor, the lease knows, and leaves the new file open."""
    lease = Lease(directory)
    # The lock's descriptor and the mapping's. is_held() is true for the mapping's, because the lock has another owner.
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
