# SPDX-License-Identifier: Apache-2.0
"""The connections that are checked out: by whom, where and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from .block import HELD_SINCE, HOLDER, LABEL, ROW, SERVER_PID, SITE, TIMEOUT, WAITS_SINCE
from .entries import OTHER
from .server_process import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .snapshot import Snapshot


# A holder that had its connection for longer than this before it began to wait for another one has lost it: in a
# self-deadlock the error of the timeout returns what is held. The alert has the same number of timeouts.
_LOST_TIMEOUTS: Final = 2.0  # times pool_timeout
_LOST_SECONDS: Final = 10.0  # at least, because work with a connection may take longer than a short timeout


class Held(NamedTuple):
    """A connection that is checked out, or was. Times are seconds of ``time.monotonic()``."""

    since: float  # 0 if it is not checked out; then what follows up to ``waits_since`` means nothing
    site: str  # ``OTHER`` if it is not known
    holder: float  # see ``Texts.holder()``
    label: float  # see ``Texts.label()``
    waits_since: float  # since when its holder waits for another connection of the pool; 0 if it does not
    connected_at: float  # when it was opened; not positive if it is closed
    server_pid: int  # of the process or thread that serves it in the database server; 0 if not known
    client_port: int  # its own TCP port; 0 if not known
    gave_up_since: float = 0.0  # since when its holder waited for another one, if that timed out; 0 otherwise


def held(snapshot: Snapshot) -> Iterator[Held]:
    """Yield the connections of a pool that are checked out."""
    rows = snapshot.connections
    for at in range(0, len(rows), ROW):
        if rows[at + HELD_SINCE]:
            yield _held(snapshot, at)


def sites_held(snapshot: Snapshot) -> Iterator[tuple[str, float]]:
    """Yield the site of each connection of a pool that is checked out, and since when it is."""
    rows = snapshot.connections
    for since, number in zip(rows[HELD_SINCE::ROW], rows[SITE::ROW], strict=True):
        if since:
            yield _site(snapshot, number), abs(since)


def idle(snapshot: Snapshot) -> Iterator[Held]:
    """Yield the connections of a pool that are open and not checked out."""
    rows = snapshot.connections
    for at in range(0, len(rows), ROW):
        if rows[at] > 0.0 and not rows[at + HELD_SINCE]:
            yield _held(snapshot, at)


def _held(snapshot: Snapshot, at: int) -> Held:
    rows = snapshot.connections
    since, waits = abs(rows[at + HELD_SINCE]), rows[at + WAITS_SINCE]
    return Held(
        since,
        _site(snapshot, rows[at + SITE]),
        rows[at + HOLDER],
        rows[at + LABEL],
        waits if waits >= since else 0.0,
        rows[at],
        *unpacked(rows[at + SERVER_PID]),
        gave_up_since=-waits if -waits >= since else 0.0,
    )


def _site(snapshot: Snapshot, number: float) -> str:
    sites = snapshot.sites
    return sites[int(number) - 1].text or OTHER if 1.0 <= number <= len(sites) else OTHER


def is_deadlocked(snapshot: Snapshot) -> bool:
    """Return whether every holder of a full pool waits for another connection of it, so that none can go on.

    The pool's timeout ends that: some holder fails, and returns what it holds.
    """
    rows = snapshot.connections
    out = sum(map(bool, rows[HELD_SINCE::ROW]))
    # Most pools are not full: their rows are not looked at one by one.
    return (
        out > 0
        and out >= snapshot.capacity
        and all(one.waits_since and not is_lost(snapshot, one) for one in held(snapshot))
    )


def is_lost(snapshot: Snapshot, one: Held) -> bool:
    """Return whether the holder of a connection waits for another one and will return neither when that times out."""
    before = (one.waits_since or one.gave_up_since) - one.since
    return before > _LOST_SECONDS and before > _LOST_TIMEOUTS * snapshot.fields[TIMEOUT]
