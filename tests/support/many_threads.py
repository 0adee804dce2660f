# SPDX-License-Identifier: Apache-2.0
"""Checks connections out in eight threads at once, and compares what was recorded with what the threads did.

Run as a program, also by an interpreter that has nothing installed but finds the packages of another one::

    python -m tests.support.many_threads one-pool 100000
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument, straight_lines
from sqlalchemy_pool_exporter.about import hot_path
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.segment.snapshot import Histogram
from tests.support.fakes import FakeConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_pool_exporter.recording.recorder import Recorder

THREADS: Final = 8
# The number of pools, and the size and the overflow of each.
SCENES: Final = {"one-pool": (1, 8, 0), "own-pools": (THREADS, 2, 0), "overflow": (1, 2, 6)}
_EVERY_SECONDS: Final = 0.002


class Link(FakeConnection):
    """A connection that counts itself. Appending to a list is atomic."""

    opened: Final[list[None]] = []
    closed: Final[list[None]] = []

    def __init__(self) -> None:
        self.opened.append(None)

    def close(self) -> None:
        self.closed.append(None)


class Watcher(threading.Thread):
    """Reads the counters of all pools every two milliseconds, and notes those that went back."""

    def __init__(self, recorders: list[Recorder]) -> None:
        super().__init__(daemon=True)
        self._recorders = recorders
        self._ends = threading.Event()
        self.went_back: list[tuple[str, float, float]] = []
        self.reads = 0

    def run(self) -> None:
        """Watch until it is stopped."""
        last: dict[tuple[int, str], float] = {}
        while not self._ends.wait(_EVERY_SECONDS):
            self.reads += 1
            for number, recorder in enumerate(self._recorders):
                for key, value in counters(recorder):
                    if value < last.get((number, key), 0.0):
                        self.went_back.append((key, last[number, key], value))
                    last[number, key] = value

    def stop(self) -> None:
        """Stop it, and wait for its end."""
        self._ends.set()
        self.join()


def counters(recorder: Recorder) -> Iterator[tuple[str, float]]:
    """Yield each counter of a pool."""
    for key, value in recorder.values():
        if isinstance(value, Histogram):
            yield from ((f"{key}[{at}]", count) for at, count in enumerate(value.buckets))
            yield f"{key}.sum", value.sum
        elif key.endswith("_total"):
            by_label: dict[Any, Any] = value if isinstance(value, dict) else {"": value}
            yield from ((f"{key}{label}", float(count)) for label, count in by_label.items())


def play(scene: str, turns: int) -> dict[str, Any]:
    """Check out ``turns`` times in each thread; return what was counted, and what is wrong with the tables."""
    number, size, max_overflow = SCENES[scene]
    creator: Any = Link
    pools = [
        QueuePool(creator, pool_size=size, max_overflow=max_overflow, timeout=600) for _ in range(number)
    ]
    registry = CollectorRegistry()
    for at, pool in enumerate(pools):
        instrument(pool, name=f"pool {at}", registry=registry)
    recorders = list(INSTRUMENTED.recorders)
    start = threading.Barrier(THREADS)
    done: list[int] = []

    def work(at: int) -> None:
        pool = pools[at % number]
        start.wait()
        for _ in range(turns):
            pool.connect().close()
        done.append(turns)

    watcher = Watcher(recorders)
    watcher.start()
    threads = [threading.Thread(target=work, args=(at,)) for at in range(THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    watcher.stop()
    gc.collect()
    return {
        "seconds": round(seconds, 3),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "locks": bool(straight_lines.rewritten),
        "hot_path": hot_path(),
        "reads": watcher.reads,
        "went_back": watcher.went_back,
        "expected": _expected(sum(done)),
        "counted": _counted(recorders),
        "wrong": [
            fault
            for recorder, pool in zip(recorders, pools, strict=True)
            for fault in _faults(recorder, pool)
        ],
    }


def _expected(checkouts: int) -> dict[str, float]:
    return {
        "checkouts_total": checkouts,
        "checkins_total": checkouts,
        "checkout_wait_seconds": checkouts,
        "hold_seconds": checkouts,
        "connects_total": len(Link.opened),
        "connect_seconds": len(Link.opened),
        "closes_total": len(Link.closed),
        "exporter_recording_faults_total": 0,
        "sites": checkouts,
        "returns by site": checkouts,
    }


def _counted(recorders: list[Recorder]) -> dict[str, float]:
    counted: dict[str, float] = defaultdict(float)
    for recorder in recorders:
        for key, value in recorder.values():
            if isinstance(value, Histogram):
                counted[key] += value.count
            elif isinstance(value, dict):
                counted[key] += sum(each for each in value.values() if isinstance(each, float))
            else:
                counted[key] += value
        snapshot = recorder.snapshot()
        for site in _sites(recorder, snapshot):
            counted["sites"] += site[0]
            counted["returns by site"] += site[1]
    return {key: counted[key] for key in _expected(0)}


def _sites(recorder: Recorder, snapshot: Any) -> Iterator[list[float]]:
    table, at = recorder.storage.other_sites.table, recorder.storage.other_sites.at
    yield [table[at], table[at + 1]]
    for site in snapshot.sites:
        yield list(site.counts[:2])


def _faults(recorder: Recorder, pool: Any) -> Iterator[str]:
    """Yield what is wrong with the tables of a pool that is idle."""
    values = dict(recorder.values())
    state = {"in_use": 0.0, "idle": float(pool.checkedin())}
    if values["connections"] != state:
        yield f"connections: {values['connections']}, not {state}"
    for key in ("pending_checkouts", "longest_held_seconds", "empty_slots", "untracked_connections"):
        if values[key]:
            yield f"{key}: {values[key]}"
    waiters = recorder.waiters
    if sorted(waiters.free) != [waiters._first + at for at in range(waiters._next)]:
        yield f"free slots of waiters: {sorted(waiters.free)}, {waiters._next} were in use"
    table = recorder.connections
    rows = table.rows()
    if (
        any(row.table[row.held_at] or row.record_ref() is None for row in rows)
        or len(rows) != pool.checkedin()
    ):
        yield f"rows: {rows}"
    taken = sorted([row.at for row in rows] + table._free.free)
    slots = table._free
    if taken != [slots._first + slots._stride * at for at in range(slots._next)]:
        yield f"rows and free rows: {taken}, {slots._next} were in use"
    if table._in_pool != len(rows):
        yield f"{table._in_pool} rows in the pool, not {len(rows)}"


if __name__ == "__main__":
    json.dump(play(sys.argv[1], int(sys.argv[2])), sys.stdout)
