# SPDX-License-Identifier: Apache-2.0
"""Event loops that are blocked, in words: nothing that runs in them returns a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.segment import event_loop
from sqlalchemy_pool_exporter.segment.held import held

from .words import counted, duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.worker import Worker

    from .schema import Condition

# A loop that is late by less is busy, or its process waits for a processor.
BLOCKED_SECONDS: Final = 1.0
# So many processes are named.
NAMED: Final = 3


def blocked_loops(fleet: Fleet, now: float) -> Iterator[Condition]:
    """Yield the processes whose loop is blocked, and those whose loop was blocked in the last minute.

    Args:
        fleet: all processes.
        now: seconds of ``time.monotonic()``.
    """
    blocked: list[tuple[float, Worker]] = []
    were: list[tuple[float, Worker]] = []
    for worker in fleet.live:
        snapshots = [pool.snapshot for pool in worker.pools if pool.snapshot.is_active]
        late = event_loop.lag_now(snapshots, now)
        if late >= BLOCKED_SECONDS:
            blocked.append((late, worker))
        elif (most := event_loop.lag(snapshots, now) or 0.0) >= BLOCKED_SECONDS:
            were.append((most, worker))
    for late, worker in _longest(blocked):
        pid = "" if worker.facts.process is None else worker.facts.process.pid
        text = (
            f"event loop blocked: {_where(worker)} has run no task for {duration(late)}; none can return a connection"
            f"{_last_checkout(worker, now)}{f'; py-spy dump --pid {pid} says what it does' if pid else ''}"
        )
        yield {"kind": "loop_blocked", "severity": "critical", "pool": None, "text": text}
    if others := len(blocked[NAMED:]):
        text = f"event loop blocked: {counted(others, 'more worker')}"
        yield {"kind": "loop_blocked", "severity": "critical", "pool": None, "text": text}
    if were:
        most, worker = _longest(were)[0]
        more = f", and that of {counted(len(were) - 1, 'more worker')}" if len(were) > 1 else ""
        text = (
            f"event loop: that of {_where(worker)} was blocked for {duration(most)} in the last minute{more}"
        )
        yield {"kind": "loop_blocked", "severity": "warning", "pool": None, "text": text}


def _last_checkout(worker: Worker, now: float) -> str:
    """Return where the last checkout was made that is still out: what blocks the loop is likely to be after it."""
    out = [one for pool in worker.pools if pool.snapshot.is_active for one in held(pool.snapshot)]
    if not out:
        return ""
    last = max(out, key=lambda one: one.since)
    known = ", ".join(filter(None, (worker.texts.holder(last.holder), worker.texts.label(last.label))))
    by = f" ({known})" if known else ""
    return f"; the last checkout was {duration(max(0.0, now - last.since))} ago, at {last.site}{by}"


def _longest(found: list[tuple[float, Worker]]) -> list[tuple[float, Worker]]:
    found.sort(key=lambda one: -one[0])
    return found[:NAMED]


def _where(worker: Worker) -> str:
    process = worker.facts.process
    return f"worker {worker.number}{'' if process is None else f' (pid {process.pid})'}"
