# SPDX-License-Identifier: Apache-2.0
"""A process that only forked workers is no worker itself."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from sqlalchemy_pool_exporter.segment.format import FORKED_WORD
from tests.support.segments import FORKS, Scraper, by_worker, live, workers
from tests.support.wait import eventually
from tests.support.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.samples import Exposition

pytestmark = FORKS


def infos(exposition: Exposition) -> set[str]:
    """Return the pids in ``worker_info``."""
    return {
        dict(labels)["pid"]
        for name, labels in exposition.samples
        if name == "sqlalchemy_pool_exporter_worker_info"
    }


def test_a_parent_is_no_worker(tmp_path: Path) -> None:
    """A parent that forked before it used its pool is in no limit, state or capacity, until it uses the pool."""
    scraper = Scraper(tmp_path)
    with Worker(tmp_path) as parent:
        parent.do("pool", "orders", 2, 1)
        alone = scraper.scrape()
        assert workers(alone) == {"live": 1, "parent": 0, "gone": 0}
        assert alone.value("capacity", "orders") == 3
        children = [parent.do("fork", "orders", 5) for _ in range(2)]
        try:
            exposition = scraper.scrape()
            assert workers(exposition) == {"live": 2, "parent": 1, "gone": 0}
            assert exposition.value("capacity", "orders") == 6
            assert exposition.value("checkouts_total", "orders") == 10
            assert set(by_worker(exposition, "size")) == {"001", "002"}
            assert set(by_worker(exposition, "pending_checkouts")) == {"001", "002"}
            assert infos(exposition) == {str(pid) for pid in (parent.pid, *children)}
            parent.do("cycle", "orders", 1)
            exposition = scraper.scrape()
            assert workers(exposition) == {"live": 3, "parent": 0, "gone": 0}
            assert exposition.value("capacity", "orders") == 9
            assert exposition.value("checkouts_total", "orders") == 11
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
        assert eventually(lambda: workers(scraper.scrape()) == {"live": 1, "parent": 0, "gone": 2})


def test_a_worker_that_forks_stays_one(tmp_path: Path) -> None:
    """A process that used its pool and then forks a helper stays a worker."""
    with Worker(tmp_path) as worker:
        worker.do("pool", "orders")
        worker.do("hold", "orders", 1)
        helper = worker.do("fork", "orders", 0)
        try:
            assert "000" in live(tmp_path)
            assert workers(Scraper(tmp_path).scrape()) == {"live": 2, "parent": 0, "gone": 0}
        finally:
            os.kill(helper, signal.SIGKILL)


def test_a_worker_whose_used_pool_is_gone_stays_one(tmp_path: Path) -> None:
    """A process that used a pool and has forked stays a worker when that pool goes, and its other pools stay shown."""
    scraper = Scraper(tmp_path)
    with Worker(tmp_path) as worker:
        worker.do("pool", "orders")
        worker.do("pool", "users", 1, 1)
        worker.do("cycle", "orders", 1)
        helper = worker.do("fork", "users", 0)
        try:
            worker.do("uninstrument", "orders")
            assert scraper.scrape().get("instances", "orders") in {None, 0}
            exposition = scraper.scrape()
            assert workers(exposition) == {"live": 2, "parent": 0, "gone": 0}
            assert exposition.value("capacity", "users") == 4
        finally:
            os.kill(helper, signal.SIGKILL)


def test_the_next_holder_is_no_parent(tmp_path: Path) -> None:
    """The process that takes over the file of a parent that was killed is a worker."""
    with Worker(tmp_path) as parent:
        parent.do("pool", "orders")
        child = parent.do("fork", "orders", 1)
        assert live(tmp_path) == ["001"]
        parent.kill()
        with Worker(tmp_path) as second:
            second.do("pool", "orders")
            assert live(tmp_path) == ["000", "001"]
        os.kill(child, signal.SIGKILL)


def test_the_word_is_in_the_header(tmp_path: Path) -> None:
    """A fork is one word in the header of the file."""
    with Worker(tmp_path) as parent:
        parent.do("pool", "orders")
        before = (tmp_path / "worker-000").read_bytes()[:4096]
        os.kill(parent.do("fork", "orders", 0), signal.SIGKILL)
        after = (tmp_path / "worker-000").read_bytes()[:4096]
        assert {at // 8 for at in range(4096) if before[at] != after[at]} == {FORKED_WORD}
