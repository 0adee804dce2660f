# SPDX-License-Identifier: Apache-2.0
"""How late an event loop is.

A timer in the loop stores when it should run next. A reader in another process compares that with the clock, so it sees
a blocked loop while it is blocked. The largest lag stays for a minute, because a scrape can come after the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .block import LOOP_DUE, LOOP_PEAK, LOOP_PEAK_AT, LOOPS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .snapshot import Snapshot

# For so long the largest lag is shown: longer than most scrape intervals, so each block is in some scrape.
RECENT_SECONDS: Final = 60.0


def lag(snapshots: Iterable[Snapshot], now: float) -> float | None:
    """Return the largest lag of a process's loops, now or in the last minute; None if no loop runs, and none did.

    Args:
        snapshots: of its pools.
        now: seconds of ``time.monotonic()``.
    """
    found = [
        late
        for snapshot in snapshots
        if any(snapshot.fields[LOOP_DUE : LOOP_PEAK_AT + 1])  # most pools of most applications have no loop
        for late in (*_now(snapshot, now), *_recent(snapshot, now))
    ]
    return max(found, default=None)


def lag_now(snapshots: Iterable[Snapshot], now: float) -> float:
    """Return for how long a loop of the process has been blocked; 0 if none is; arguments as of ``lag()``."""
    return max((late for snapshot in snapshots for late in _now(snapshot, now)), default=0.0)


def peak_since(snapshot: Snapshot, since: float) -> float:
    """Return the largest lag of late if it was after that time, in seconds of ``time.monotonic()``; else 0."""
    fields = snapshot.fields
    return fields[LOOP_PEAK] if fields[LOOP_PEAK_AT] > since else 0.0


def _now(snapshot: Snapshot, now: float) -> list[float]:
    return [max(0.0, now - due) for due in snapshot.fields[LOOP_DUE : LOOP_DUE + LOOPS] if due]


def _recent(snapshot: Snapshot, now: float) -> list[float]:
    at = snapshot.fields[LOOP_PEAK_AT]
    return [snapshot.fields[LOOP_PEAK]] if at and now - at <= RECENT_SECONDS else []
