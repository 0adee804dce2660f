# SPDX-License-Identifier: Apache-2.0
"""A reader believes only files of owners that the directory allows, and only what a writer can have written."""

from __future__ import annotations

import gc
import math
import os
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment.format import FILE_BYTES
from sqlalchemy_pool_exporter.segment.trust import Trust
from tests.support.segments import NOBODY, NOW, Process, Scraper, as_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

USED_AT = 16  # where a file says how many of its bytes are in use
STATE = (
    layout.ACTIVE,
    layout.SIZE,
    layout.MAX_OVERFLOW,
    layout.TIMEOUT,
    layout.RECYCLE,
    layout.PRE_PING,
    layout.HAS_OVERFLOW,
    layout.LAST_CHECKIN,
    layout.UNTRACKED_PENDING,
    layout.UNTRACKED_CONNECTIONS,
    layout.WAITERS_USED,
    layout.CONNECTIONS_USED,
    layout.WAITERS_AT,
    *range(layout.CONNECTIONS_AT, layout.CONNECTIONS_AT + layout.ROW),
)
LIMITS = {layout.SIZE, layout.MAX_OVERFLOW, layout.TIMEOUT, layout.RECYCLE}


# -- values


@pytest.mark.parametrize("worker_label", [True, False])
@pytest.mark.parametrize("at", STATE)
def test_a_state_that_is_no_number_costs_only_its_file(
    tmp_path: Path, process: Callable[..., Process], at: int, *, worker_label: bool
) -> None:
    """Two files with opposite infinities or huge numbers are damaged; the third one is shown, with the right sums."""
    first, second, sane = process(), process(), process()
    for one in (first, second):
        one.block[layout.WAITERS_USED] = 1.0
    sane.count(3)
    sane.hold(NOW - 5)
    scraper = Scraper(tmp_path, worker_label=worker_label)
    was = first.block[at]
    values = [math.inf, -math.inf, 1.7e308, -1.7e308, 2.0**60] + [math.nan] * (at not in LIMITS)
    for value in values:
        first.block[at], second.block[at] = value, math.copysign(1.0, was or 1.0) * abs(value)
        assert scraper.errors() == {"damaged": 2}
        exposition = scraper.scrape()
        assert exposition.value("checkouts_total", "orders") == 3
        owner = {"worker": "002"} if worker_label else {}
        assert exposition.value("connections", "orders", state="in_use", **owner) == 1.0
    first.block[at] = second.block[at] = was
    assert scraper.errors() == {}


def test_a_limit_may_be_none(tmp_path: Path, process: Callable[..., Process]) -> None:
    """NaN means that a limit does not apply, and is no damage."""
    one = process()
    for at in LIMITS:
        one.block[at] = math.nan
    assert Scraper(tmp_path).errors() == {}


# -- sizes


def test_sparse_files_take_no_memory(tmp_path: Path, process: Callable[..., Process]) -> None:
    """Files that claim 64 MiB and take a few blocks on the disk are damaged, and a scrape's memory stays small."""
    sane, *hostile = (process() for _ in range(9))
    sane.count(3)
    for one in hostile:
        with one.lease.path.open("r+b") as file:
            file.truncate(FILE_BYTES)
            file.seek(USED_AT)
            file.write(struct.pack("=Q", FILE_BYTES))
    scraper = Scraper(tmp_path)
    gc.collect()
    tracemalloc.start()
    try:
        exposition = scraper.scrape()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert exposition.value("checkouts_total", "orders") == 3
    assert scraper.errors() == {"damaged": len(hostile)}
    assert peak < 20 * 2**20


# -- owners


@as_root
@pytest.mark.parametrize(
    ("mode", "group", "file_mode", "expected"),
    [
        (0o755, 0, 0o640, False),  # only the directory's owner can put files into it
        (0o700, NOBODY, 0o600, False),
        (0o1777, NOBODY, 0o600, False),  # another user, who shares nothing with the sidecar
        (0o1777, NOBODY, 0o644, False),
        (0o2770, 0, 0o600, False),  # only root can read such a file
        (0o2770, 0, 0o640, True),  # the documented set-up: a common group
        (0o2777, 0, 0o640, True),
    ],
)
def test_files_of_another_user(
    tmp_path: Path,
    process: Callable[..., Process],
    mode: int,
    group: int,
    file_mode: int,
    *,
    expected: bool,
) -> None:
    """Another user's file is foreign, unless it is shared with a group of the sidecar in a directory for several."""
    sane, other = process(), process()
    sane.count(3)
    other.count(1_000_000)
    os.chown(other.lease.path, NOBODY, group)
    other.lease.path.chmod(file_mode)
    tmp_path.chmod(mode)
    scraper = Scraper(tmp_path)
    assert scraper.errors() == ({} if expected else {"foreign": 1})
    assert scraper.scrape().value("checkouts_total", "orders") == (1_000_003 if expected else 3)


@as_root
def test_files_of_the_directorys_owner(tmp_path: Path, process: Callable[..., Process]) -> None:
    """The directory's owner may be another user than the sidecar's: the application of a systemd unit, say."""
    process().count(3)
    other = process()
    other.count(4)
    for path in (tmp_path, other.lease.path):
        os.chown(path, NOBODY, NOBODY)
    scraper = Scraper(tmp_path)
    assert scraper.errors() == {}
    assert scraper.scrape().value("checkouts_total", "orders") == 7


@as_root
def test_a_file_that_becomes_another_users(
    tmp_path: Path, process: Callable[..., Process], caplog: pytest.LogCaptureFixture
) -> None:
    """Its last counts stay in the sums, what is written afterwards does not count, and the log names the user."""
    one = process()
    one.count(3)
    scraper = Scraper(tmp_path)
    scraper.scrape()
    os.chown(one.lease.path, NOBODY, NOBODY)
    one.count(1_000_000)
    assert scraper.errors() == {"foreign": 1}
    assert scraper.scrape().value("checkouts_total", "orders") == 3
    assert f"it belongs to user {NOBODY}" in caplog.text


def test_a_directory_that_cannot_be_read_trusts_this_user(tmp_path: Path) -> None:
    """Without a directory only files of this process's own user are believed."""
    assert Trust.of(tmp_path / "missing") == Trust(frozenset((os.geteuid(),)), frozenset())
