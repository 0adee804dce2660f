# SPDX-License-Identifier: Apache-2.0
"""The connections that are checked out: by whom, where and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .block import HELD_SINCE, HOLDER, LABEL, ROW, SERVER_PID, SITE, WAITS_SINCE
from .entries import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .snapshot import Snapshot


class Held(NamedTuple):
    """A connection that is checked out. Times are seconds of ``time.monotonic()``."""

    since: float
    site: str  # ``OTHER`` if it is not known
    holder: float  # see ``Texts.holder()``
    label: float  # see ``Texts.label()``
    waits_since: float  # since when its holder waits for another connection of the pool; 0 if it does not
    server_pid: float  # of what serves it in the database server; 0 if not known


def held(snapshot: Snapshot) -> Iterator[Held]:
    """Yield the connections of a pool that are checked out."""
    rows, sites = snapshot.connections, snapshot.sites
    for at in range(0, len(rows), ROW):
        since = rows[at + HELD_SINCE]
        if since:
            number = rows[at + SITE]
            is_known = 1.0 <= number <= len(sites)
            yield Held(
                abs(since),
                sites[int(number) - 1].text or OTHER if is_known else OTHER,
                rows[at + HOLDER],
                rows[at + LABEL],
                rows[at + WAITS_SINCE],
                rows[at + SERVER_PID],
            )


def is_deadlocked(snapshot: Snapshot) -> bool:
    """Return whether every holder of a full pool waits for another connection of it, so that none can go on.

    The pool's timeout ends that: some holder fails, and returns what it holds.
    """
    out = list(held(snapshot))
    return bool(out) and len(out) >= snapshot.capacity and all(one.waits_since for one in out)
