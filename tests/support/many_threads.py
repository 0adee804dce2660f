# SPDX-License-Identifier: Apache-2.0
"""Checks connections out in eight threads at once, and compares what was recorded with what the threads did.

Run as a program, also by an interpreter that has nothing installed but finds the packages of another one::

    python -m tests.support.many_threads one-pool 100000
    python -m tests.support.many_threads one-pool 1000 0.02

With a third argument a trace function lets another thread go on before that share of all bytecodes of the package.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument, straight_lines
from sqlalchemy_pool_exporter.about import hot_path
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.segment.block import SITE_COUNTS
from sqlalchemy_pool_exporter.segment.entries import CHECKOUTS, HOLDS, LEAKED, NESTED
from sqlalchemy_pool_exporter.segment.snapshot import Histogram
from tests.support.fakes import FakeConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.pool import Pool

    from sqlalchemy_pool_exporter.recording.recorder import Recorder

THREADS: Final = 8
# The number of pools, and the size and the overflow of each.
SCENES: Final = {
    "one-pool": (1, 8, 0),
    "own-pools": (THREADS, 2, 0),
    "overflow": (1, 2, 6),
    "every-end": (1, 4, 2 * THREADS - 4),  # a nested checkout takes two
}
# How checkouts end, in turn; all but "every-end" only close.
ENDS: Final = ("close", "invalidate", "detach", "leak", "soft invalidate", "nested")
_BY_SITE: Final = {
    "sites": CHECKOUTS,
    "returns by site": HOLDS,
    "nested by site": NESTED,
    "leaked by site": LEAKED,
}
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
        self._last: dict[tuple[int, str], float] = {}
        # Also where the threads are done before a watcher gets its first turn.
        self.read()

    def run(self) -> None:
        """Watch until it is stopped, and read once more then."""
        while not self._ends.wait(_EVERY_SECONDS):
            self.read()
        self.read()

    def read(self) -> None:
        """Read the counters, and note those that went back since the last time."""
        self.reads += 1
        for number, recorder in enumerate(self._recorders):
            for key, value in counters(recorder):
                last = self._last.get((number, key), 0.0)
                if value < last:
                    self.went_back.append((key, last, value))
                self._last[number, key] = value

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


def interrupt(share: float) -> Any:
    """Return a trace function that interrupts the package between any two bytecodes, at random."""

    def trace(frame: Any, what: str, _: Any) -> Any:
        if "sqlalchemy_pool_exporter" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if what == "opcode" and random.random() < share:  # noqa: S311 - no secret
            time.sleep(0)  # another thread goes on
        return trace

    return trace


def use(pool: Pool, how: str) -> None:
    """Check out, and end the checkout in one way."""
    connection = pool.connect()
    match how:
        case "invalidate":
            connection.invalidate()
        case "soft invalidate":
            connection.invalidate(soft=True)
        case "detach":
            connection.detach()
        case "nested":
            pool.connect().close()
        case "leak":
            return
    connection.close()


def play(scene: str, turns: int, interrupted: float = 0.0) -> dict[str, Any]:
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
    done: list[str] = []
    ends = ENDS if scene == "every-end" else ENDS[:1]

    def work(at: int) -> None:
        pool = pools[at % number]
        start.wait()
        if interrupted:
            sys.settrace(interrupt(interrupted))
        for turn in range(turns):
            use(pool, ends[turn % len(ends)])
        sys.settrace(None)
        done.extend(ends[turn % len(ends)] for turn in range(turns))

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
        "locks": bool(straight_lines.locked),
        "lock": type(straight_lines.LOCK).__name__,
        "hot_path": hot_path(),
        "reads": watcher.reads,
        "went_back": watcher.went_back,
        "expected": _expected(Counter(done)),
        "counted": _counted(recorders),
        "wrong": [
            fault
            for recorder, pool in zip(recorders, pools, strict=True)
            for fault in _faults(recorder, pool)
        ],
    }


def _expected(done: Mapping[str, int]) -> dict[str, float]:
    checkouts = sum(done.values()) + done["nested"]
    checkins = checkouts - done["detach"]
    return {
        "checkouts_total": checkouts,
        "checkins_total": checkins,
        "checkout_wait_seconds": checkouts,
        "hold_seconds": checkins,
        "connects_total": len(Link.opened),
        "connect_seconds": len(Link.opened),
        "closes_total": len(Link.closed),
        "invalidations_total": done["invalidate"] + done["soft invalidate"],
        "detaches_total": done["detach"],
        "leaked_checkouts_total": done["leak"],
        "exporter_recording_faults_total": 0,
        "sites": checkouts,
        "returns by site": checkins,
        "nested by site": done["nested"],
        "leaked by site": done["leak"],
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
            for key, at in _BY_SITE.items():
                counted[key] += site[at]
    return {key: counted[key] for key in _expected(Counter())}


def _sites(recorder: Recorder, snapshot: Any) -> Iterator[list[float]]:
    table, at = recorder.storage.other_sites.table, recorder.storage.other_sites.at
    yield list(table[at : at + SITE_COUNTS])
    for site in snapshot.sites:
        yield list(site.counts)


def _faults(recorder: Recorder, pool: Any) -> Iterator[str]:
    """Yield what is wrong with the tables of a pool that is idle."""
    values = dict(recorder.values())
    empty = sum(record.dbapi_connection is None for record in pool._pool.queue)
    state = {"in_use": 0.0, "idle": float(pool.checkedin() - empty)}
    if (values["connections"], values["empty_slots"]) != (state, empty):
        yield f"connections: {values['connections']}, {values['empty_slots']} empty, not {state}, {empty} empty"
    for key in ("pending_checkouts", "longest_held_seconds", "untracked_connections"):
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
    json.dump(play(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:])), sys.stdout)
