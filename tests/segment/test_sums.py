# SPDX-License-Identifier: Apache-2.0
"""Sums over workers are exact, whichever worker ends and whichever file is deleted."""

from __future__ import annotations

import math
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.segment import block as layout
from sqlalchemy_pool_exporter.segment import sums
from sqlalchemy_pool_exporter.segment.directory import Reader
from sqlalchemy_pool_exporter.segment.format import FILES
from sqlalchemy_pool_exporter.segment.snapshot import Snapshot
from tests.support.segments import (
    Process,
    zeros,
)


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=8),
    st.lists(st.integers(0, 7), max_size=8),
    st.data(),
)
@settings(max_examples=50)
def test_sums_of_seconds_never_shrink(seconds: list[float], ends: list[int], data: st.DataObject) -> None:
    """A sum of seconds stays equal to the last digit when a worker ends or is replaced, or its file is deleted."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        processes = [Process(Path(directory)) for _ in seconds]
        for process, value in zip(processes, seconds, strict=True):
            stack.callback(process.kill)
            process.block[layout.HOLD] = 1.0
            process.block[layout.HOLD + layout.SUM] = value
        reader = Reader(Path(directory))
        expected = math.fsum(seconds)
        at = layout.HOLD + layout.SUM - layout.FIRST_COUNTER
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
    """A sum stays exact even after more deletions than the reader remembers one by one."""
    reader, dice = Reader(tmp_path), random.Random(5)  # noqa: S311 - the same values in each run
    at = layout.HOLD + layout.SUM - layout.FIRST_COUNTER
    every: list[float] = []
    for _ in range(FILES // 16 + 4):
        processes = [Process(tmp_path) for _ in range(16)]
        for process in processes:
            every.append(dice.random() * 10 ** dice.randint(-3, 6))
            process.block[layout.HOLD + layout.SUM] = every[-1]
            process.kill()
        assert reader.read().counts["orders",][at] == math.fsum(every)
        for process in processes:
            process.lease.path.unlink()
        assert reader.read().counts["orders",][at] == math.fsum(every)


ROWS = st.lists(st.lists(st.floats(0, 1e12), min_size=3, max_size=3), min_size=1, max_size=12)


@given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_compacted_rows_have_the_same_sum_exactly(
    rows: list[list[float]], more: list[list[float]], dice: random.Random
) -> None:
    """Compacted rows have exactly the sum of the original rows, in any order and with any rows added."""
    expected = [math.fsum(column) for column in zip(*rows, *more, strict=True)]
    few = sums.compacted(rows)
    assert len(few) <= len(rows) + 2
    mixed = [*few, *more]
    dice.shuffle(mixed)
    assert list(sums.total(mixed)) == expected


def snapshot(**fields: float) -> Snapshot:
    """Return a snapshot of a block that has these values in the named fields."""
    block = zeros()
    block[layout.HAS_OVERFLOW] = 1.0
    for name, value in fields.items():
        block[getattr(layout, name)] = value
    return Snapshot.of(block)


def test_state_of_several() -> None:
    """Over pools: the smallest timeout, recycle and pre-ping, the maximum of ages, the sum of everything else."""
    one = snapshot(
        SIZE=2.0, MAX_OVERFLOW=1.0, LAST_CHECKIN=990.0, UNTRACKED_PENDING=1.0, TIMEOUT=30.0, PRE_PING=1.0
    )
    two = snapshot(
        SIZE=3.0, MAX_OVERFLOW=1.0, LAST_CHECKIN=980.0, UNTRACKED_PENDING=2.0, TIMEOUT=5.0, PRE_PING=0.0
    )
    state = sums.state([one, two], now=1000.0, wall=5000.0)
    assert (state["size"], state["max_overflow"]) == (5.0, 2.0)
    assert (state["timeout_seconds"], state["pre_ping"]) == (5.0, 0.0)
    assert state["last_checkin_timestamp_seconds"] == 4990.0
    assert state["pending_checkouts"] == 3.0
    assert state["connections"] == {"in_use": 0.0, "idle": 0.0}
    assert sums.capacity([one, two]) == 7.0


def test_a_limit_that_one_has_not() -> None:
    """If one worker lacks a limit, neither the limit nor the capacity of all workers is known."""
    limited, unlimited = snapshot(SIZE=2.0), snapshot(SIZE=layout.NOT_APPLICABLE)
    for both in ([limited, unlimited], [unlimited, limited]):
        assert "size" not in sums.state(both, now=0.0, wall=0.0)
        assert math.isnan(sums.capacity(both))


def test_state_of_one_is_its_own() -> None:
    """The state over one snapshot is the state of that snapshot."""
    one = snapshot(SIZE=2.0, LAST_CHECKIN=990.0)
    clocks = {"now": 1000.0, "wall": 5000.0}
    assert sums.state([one], **clocks) == one.limits() | one.state(**clocks)
