# SPDX-License-Identifier: Apache-2.0
"""Each forked child has a file of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.segment.format import FILES, HEADER_BYTES, file_name
from tests.support.segments import (
    FORKS,
    a_pool,
    counted,
    live,
    names,
)
from tests.support.wait import eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = FORKS


def test_fork(directory: Path) -> None:
    """A forked child takes a file of its own and does not change its parent's."""
    with Worker(directory) as parent:
        parent.do("pool", "orders")
        parent.do("cycle", "orders", 3)
        parent.do("hold", "orders", 1)
        before = (directory / "worker-000").read_bytes()[HEADER_BYTES:]
        child = parent.do("fork", "orders", 2)
        try:
            assert (directory / "worker-000").read_bytes()[HEADER_BYTES:] == before
            assert counted(directory, "orders") == {"000": 4, "001": 2}
            assert live(directory) == ["000", "001"]
        finally:
            os.kill(child, signal.SIGKILL)
        assert eventually(lambda: live(directory) == ["000"])


def test_a_child_does_not_keep_its_parents_lock(directory: Path) -> None:
    """When a parent is killed, its file is free although its child lives on, and the next process counts on in it."""
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
    """With forks of forks, each process has a file of its own."""
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
    """Children of multiprocessing have their own file while they run; a later child reuses it and counts on."""
    pool = a_pool()
    handle = instrument(pool, name="parent", registry=registry, directory=directory)
    pool.connect().close()
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
    """A forked child that finds no free file counts in memory and does not change its parent's file."""
    with Worker(directory) as parent:
        parent.do("pool", "orders")
        parent.do("cycle", "orders", 3)
        for number in range(1, FILES):
            (directory / file_name(number)).symlink_to("nowhere")
        before = (directory / "worker-000").read_bytes()[HEADER_BYTES:]
        child = parent.do("fork", "orders", 2)
        os.kill(child, signal.SIGKILL)
        assert (directory / "worker-000").read_bytes()[HEADER_BYTES:] == before
    assert f"all {FILES} files in" in capfd.readouterr().err
