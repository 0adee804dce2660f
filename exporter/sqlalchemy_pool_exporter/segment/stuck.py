# SPDX-License-Identifier: Apache-2.0
"""Whether a pool is stuck, and not just busy, from its numbers alone.

A pool is stuck if all three hold at one moment:

* a caller waits for a connection;
* all connections that the pool may have are checked out;
* for so many seconds none of them came back, and the one that is held for longest is held for at least as long.

A pool that is busy, however much, gets connections back. A caller that gave up counts no more, so a pool of which all
callers time out is stuck as long as others come. A pool without a limit is never full, so never stuck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from .block import LAST_CHECKIN
from .state_cy import IN_USE, KEYS, row

if TYPE_CHECKING:
    from .snapshot import Snapshot

# SQLAlchemy's default pool_timeout: a pool that returned nothing for so long has turned a caller away.
STUCK_AFTER: Final = 30.0
_PENDING, _HELD = map(KEYS.index, ("pending_checkouts", "longest_held_seconds"))


class Stillness(NamedTuple):
    """A full pool for which callers wait."""

    seconds: float  # for which nothing has come back
    connections: float
    callers: float


def stillness(snapshot: Snapshot, now: float) -> Stillness | None:
    """Return for how long a full pool for which callers wait has returned nothing; None if it is no such pool.

    Args:
        snapshot: of the pool.
        now: seconds of ``time.monotonic()``.
    """
    if not snapshot.is_active or snapshot.is_replaced:
        return None
    numbers = row(snapshot.fields, snapshot.waiters, snapshot.connections, now, 0.0)
    in_use, callers = numbers[IN_USE], numbers[_PENDING]
    # Not `<`: the capacity of a pool without a limit is NaN.
    if not (callers and in_use and in_use >= snapshot.capacity):
        return None
    held, last = numbers[_HELD], snapshot.fields[LAST_CHECKIN]
    return Stillness(min(held, now - last) if last else held, in_use, callers)
