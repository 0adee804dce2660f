# SPDX-License-Identifier: Apache-2.0
"""The connections that are checked out: by whom, where and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .block import HELD_SINCE, HOLDER, LABEL, ROW, SERVER_PID, SITE, WAITS_SINCE
from .entries import OTHER
from .server_process import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .snapshot import Snapshot


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


def held(snapshot: Snapshot) -> Iterator[Held]:
    """Yield the connections of a pool that are checked out."""
    rows = snapshot.connections
    for at in range(0, len(rows), ROW):
        if rows[at + HELD_SINCE]:
            yield _held(snapshot, at)


def idle(snapshot: Snapshot) -> Iterator[Held]:
    """Yield the connections of a pool that are open and not checked out."""
    rows = snapshot.connections
    for at in range(0, len(rows), ROW):
        if rows[at] > 0.0 and not rows[at + HELD_SINCE]:
            yield _held(snapshot, at)


def _held(snapshot: Snapshot, at: int) -> Held:
    rows, sites = snapshot.connections, snapshot.sites
    number = rows[at + SITE]
    is_known = 1.0 <= number <= len(sites)
    return Held(
        abs(rows[at + HELD_SINCE]),
        sites[int(number) - 1].text or OTHER if is_known else OTHER,
        rows[at + HOLDER],
        rows[at + LABEL],
        rows[at + WAITS_SINCE],
        rows[at],
        *unpacked(rows[at + SERVER_PID]),
    )


def is_deadlocked(snapshot: Snapshot) -> bool:
    """Return whether every holder of a full pool waits for another connection of it, so that none can go on.

    The pool's timeout ends that: some holder fails, and returns what it holds.
    """
    out = list(held(snapshot))
    return bool(out) and len(out) >= snapshot.capacity and all(one.waits_since for one in out)
