# SPDX-License-Identifier: Apache-2.0
"""Nested checkouts: a thread or a task checks out while it holds a connection of the same pool.

If every holder of a full pool waits so, none can go on: a self-deadlock. While a holder waits, the rows that it holds
say since when, so a reader sees that.

A connection can be handed to another thread or task, and nothing tells until it is returned. So a nested checkout is
counted only once its holder returned both connections, the inner one first; or if it timed out. A holder whose
connection another one returned hands them on, until one proves to be nested: it is not said to wait for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.segment.block import HELD_SINCE, WAITS_SINCE
from sqlalchemy_pool_exporter.segment.entries import NESTED
from sqlalchemy_pool_exporter.segment.own_errors import is_own

from .connection_row_cy import Nesting
from .holders_cy import acts_for

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .connection_row_cy import ConnectionRow, Holder
    from .recorder import Recorder

_WAITS: Final = WAITS_SINCE - HELD_SINCE
# Of the connections of a holder, so that a checkout takes no longer if its holder has thousands. A holder of more than
# these that waits for itself is not seen.
_MOST: Final = 64


def began(recorder: Recorder, holder: Holder, at: float) -> list[ConnectionRow]:
    """Note that a holder waits for a connection; return the rows of this pool that it holds already."""
    by_id = recorder.connections.by_id
    if holder.is_abandoned:
        return []
    try:
        latest = holder.rows.latest(_MOST)
    except RuntimeError as error:  # another thread returned one of them in between
        if not is_own(error):  # a time limit of the application
            raise
        return []
    rows = []
    for row in latest:
        known = row.holder  # read once: another thread can return the connection
        if known is None or known.rows is not holder.rows or not row.held_since:
            # A time limit of the application struck while a checkout was recorded, or another thread returns it now.
            holder.rows.discard(row)
        elif by_id.get(row.record_id) is row and not known.is_abandoned:
            rows.append(row)
    if not holder.hands_on:
        for row in rows:
            _wait_began(row, at)
    return rows


def _wait_began(row: ConnectionRow, at: float) -> None:
    # straight line: another thread can release the row, which moves it
    row.table[row.held_at + _WAITS] = at
    # end of straight line


def ended(rows: list[ConnectionRow], *, by_timeout: bool = False) -> None:
    """Note that the holder of these rows waits no more; ``by_timeout``: in vain."""
    for row in rows:
        _wait_ended(row, by_timeout)


def _wait_ended(row: ConnectionRow, by_timeout: bool) -> None:  # noqa: FBT001 - of this module
    # straight line: as above
    table, at = row.table, row.held_at + _WAITS
    # Of two holders that wait for each other, the report of one must see that the other waited, too.
    table[at] = (-table[at] if table[at] > 0.0 else table[at]) if by_timeout else 0.0
    # end of straight line


def checked_out(row: ConnectionRow, rows: list[ConnectionRow]) -> None:
    """Note that a holder of ``rows`` got the connection of ``row``."""
    for one in (row, rows[-1]):
        if one.nesting is None:
            one.nesting = Nesting()
    if row.nesting is not None:
        row.nesting.outer = rows[-1]


def timed_out(site: SiteEntry, holder: Holder | None) -> None:
    """Count a nested checkout that failed: its holder waited for itself, or for others that did."""
    if holder is None or not holder.hands_on:
        site.table[site.at + NESTED] += 1.0


def returned(row: ConnectionRow, nesting: Nesting) -> None:
    """Count what the return of a connection proves to be nested."""
    row.nesting = None
    holder, site, outer = row.holder, row.site, nesting.outer
    # Read once: a finalizer that runs in a call below can return the outer connection.
    around = None if outer is None else outer.nesting
    if holder is None:
        return
    if not acts_for(holder):
        holder.hands_on = True
        return
    if (
        outer is not None
        and around is not None
        and outer.holder is not None
        and outer.holder.rows is holder.rows
        and site is not None
        # Else another one returned what the holder held then, and the row may have a later checkout.
        and 0.0 < abs(outer.held_since) <= abs(row.held_since)
    ):
        holder.hands_on = False
        # By the site: a thread may hold one connection for ever, and check out others meanwhile.
        around.inner[site] = around.inner.get(site, 0.0) + 1.0
    for inner, number in nesting.inner.items():
        inner.table[inner.at + NESTED] += number
