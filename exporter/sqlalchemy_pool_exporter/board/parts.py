# SPDX-License-Identifier: Apache-2.0
"""The pools of each name in each process, and what they have together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy_pool_exporter.pausing import pause
from sqlalchemy_pool_exporter.segment import sums
from sqlalchemy_pool_exporter.segment.block import HELD_SINCE, LEAK_AFTER, ROW
from sqlalchemy_pool_exporter.segment.held import held, is_deadlocked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy_pool_exporter.segment.directory import Fleet
    from sqlalchemy_pool_exporter.segment.facts import Process
    from sqlalchemy_pool_exporter.segment.held import Held
    from sqlalchemy_pool_exporter.segment.snapshot import Snapshot
    from sqlalchemy_pool_exporter.segment.worker import Worker

    from .schema import Limits, State


@dataclass(frozen=True, slots=True)
class Part:
    """The pools of one name in one process."""

    worker: Worker
    snapshots: list[Snapshot]
    limits: Limits
    state: State

    @property
    def process(self) -> Process | None:
        """Which process it is, if it says so."""
        return self.worker.facts.process

    @property
    def is_full(self) -> bool:
        """Whether all connections that the pools may have are checked out."""
        capacity = self.limits["capacity"]
        return capacity is not None and self.state["in_use"] >= capacity

    @property
    def is_deadlocked(self) -> bool:
        """Whether the holders of a pool all wait for another connection of it."""
        return any(map(is_deadlocked, self.snapshots))

    @property
    def leak_after(self) -> float:
        """After how many seconds a connection that is held is suspected of a leak; 0 if never."""
        after = (snapshot.fields[LEAK_AFTER] for snapshot in sums.current(self.snapshots))
        return min(filter(None, after), default=0.0)

    @property
    def held_number(self) -> int:
        """How many connections with a row of their own are checked out."""
        return sum(sum(map(bool, snapshot.connections[HELD_SINCE::ROW])) for snapshot in self.snapshots)

    def held(self) -> Iterator[Held]:
        """Yield the connections that are checked out."""
        for snapshot in self.snapshots:
            yield from held(snapshot)


def parts_of(fleet: Fleet, *, now: float, wall: float) -> dict[str, list[Part]]:
    """Return the parts of each pool that is shown, by its label; none for a pool that no live process has.

    Args:
        fleet: all workers at one moment.
        now: seconds of ``time.monotonic()``.
        wall: seconds since the epoch at the same moment.
    """
    found: dict[str, list[Part]] = {label: [] for label in sorted(set(fleet.labels.values()))}
    for worker in fleet.live:
        by_label: dict[str, list[Snapshot]] = {}
        for pool in worker.pools:
            if pool.snapshot.is_active and pool.identity in fleet.labels:
                by_label.setdefault(fleet.labels[pool.identity], []).append(pool.snapshot)
        for label, snapshots in by_label.items():
            pause()
            state = _state(snapshots, now=now, wall=wall)
            found[label].append(Part(worker, snapshots, _limits(snapshots), state))
    return found


def _limits(snapshots: Sequence[Snapshot]) -> Limits:
    values: dict[str, Any] = sums.limits(snapshots)
    capacity = sums.capacity(snapshots)
    return {
        "size": values.get("size"),
        "max_overflow": values.get("max_overflow"),
        "capacity": None if math.isnan(capacity) else capacity,
        "timeout_seconds": values.get("timeout_seconds"),
        "recycle_seconds": values.get("recycle_seconds"),
        "pre_ping": bool(values.get("pre_ping")),
    }


def _state(snapshots: Sequence[Snapshot], *, now: float, wall: float) -> State:
    values: dict[str, Any] = sums.state(snapshots, now=now, wall=wall)
    return {
        "in_use": round(values["connections"]["in_use"]),
        "idle": round(values["connections"]["idle"]),
        "overflow": round(values.get("overflow_connections", 0.0)),
        "waiting": round(values["pending_checkouts"]),
        "empty_slots": round(values["empty_slots"]),
        "untracked": round(values["untracked_connections"]),
        "longest_held_seconds": values["longest_held_seconds"],
        "longest_wait_seconds": values["longest_pending_seconds"],
        "oldest_connection_seconds": values["oldest_connection_seconds"],
        "last_return": values["last_checkin_timestamp_seconds"] or None,
    }


_NOTHING: State = {
    "in_use": 0,
    "idle": 0,
    "overflow": 0,
    "waiting": 0,
    "empty_slots": 0,
    "untracked": 0,
    "longest_held_seconds": 0.0,
    "longest_wait_seconds": 0.0,
    "oldest_connection_seconds": 0.0,
    "last_return": None,
}


def limits_of(parts: Sequence[Part]) -> Limits | None:
    """Return the limits of all parts of a pool; None if no live process has it."""
    return _limits([snapshot for part in parts for snapshot in part.snapshots]) if parts else None


def state_of(parts: Sequence[Part]) -> State:
    """Return the state of all parts of a pool: sums, and the largest of ages and times."""
    return joined_state([part.state for part in parts]) if parts else _NOTHING


def joined_state(every: Sequence[State]) -> State:
    """Return the sums, and the largest of ages and times; of at least one state."""
    return {
        "in_use": sum(one["in_use"] for one in every),
        "idle": sum(one["idle"] for one in every),
        "overflow": sum(one["overflow"] for one in every),
        "waiting": sum(one["waiting"] for one in every),
        "empty_slots": sum(one["empty_slots"] for one in every),
        "untracked": sum(one["untracked"] for one in every),
        "longest_held_seconds": max(one["longest_held_seconds"] for one in every),
        "longest_wait_seconds": max(one["longest_wait_seconds"] for one in every),
        "oldest_connection_seconds": max(one["oldest_connection_seconds"] for one in every),
        "last_return": max(one["last_return"] or 0.0 for one in every) or None,
    }
