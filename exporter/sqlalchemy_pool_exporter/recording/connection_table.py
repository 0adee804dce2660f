# SPDX-License-Identifier: Apache-2.0
"""The table of connections: finds the row of a record or of a connection, and knows the free rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter.segment.block import (
    CONNECTIONS_AT,
    CONNECTIONS_USED,
    DISPOSED,
    EMPTY,
    HELD_SINCE,
    LIFECYCLE,
    ROW,
    SCRATCH,
    SERVER_PID,
    UNTRACKED_CONNECTIONS,
)
from sqlalchemy_pool_exporter.segment.block import ROWS as ROWS_IN_BLOCK
from sqlalchemy_pool_exporter.segment.entries import LEAKED
from sqlalchemy_pool_exporter.segment.page import ROWS_AT, ROWS_PER_PAGE, ROWS_USED

from .connection_row_cy import IN_POOL, RELEASED, ConnectionRow, private_doubles
from .slots import FreeSlots

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry

    from .connection_row_cy import Holder, RecordRef

_UNCOUNTED: Final = (SCRATCH, SCRATCH)


class ConnectionTable:
    """The rows of one pool's connections. The caller passes the block, which changes when the process forks.

    The mutable state is the free slots, the pages of further rows, the index, the shared connections, and how many rows
    count against the pool's size.
    """

    __slots__ = ("_free", "_in_pool", "_more", "_more_rows", "_on_collected", "by_id", "shared")

    # The index. Each row is under the id() of its record and, while the record has a connection, also under the id() of
    # the connection. None is under the id() of a connection whose close is counted but still to come.
    by_id: dict[int, ConnectionRow | None]

    def __init__(
        self,
        on_collected: Callable[[RecordRef], None],
        more_rows: Callable[[], memoryview[float] | None],
    ) -> None:
        """Make an empty table.

        Args:
            on_collected: called when the record of a row is garbage-collected.
            more_rows: returns another page of rows, or None if there is none.
        """
        self._on_collected = on_collected
        self._more_rows = more_rows
        self._free = FreeSlots(first=CONNECTIONS_AT, stride=ROW, used=CONNECTIONS_USED)
        self._more: list[tuple[memoryview[float], FreeSlots]] = []
        self.by_id = {}
        self._in_pool = 0  # rows that have an order
        self.shared: set[int] = set()  # the ids of connections that several records have

    def rows(self) -> list[ConnectionRow]:
        """Return each row once, in the order in which they were added."""
        # list() is one call, so no other thread changes the dictionary meanwhile.
        return [row for key, row in list(self.by_id.items()) if row is not None and key == row.record_id]

    def oldest_holder(self) -> Holder | None:
        """Return who has held a connection for longest, if that is known."""
        held = [(abs(since), row.holder) for row in self.rows() if (since := row.held_since)]
        return min(held, key=lambda one: one[0])[1] if held else None

    def has(self, record: object) -> bool:
        """Return whether a record has a row here."""
        row = self.by_id.get(id(record))
        return row is not None and row.record_ref() is record

    def add(
        self, block: memoryview[float], record: object, connected_at: float, server: float = 0.0
    ) -> ConnectionRow:
        """Return the row of a record that has none yet.

        Args:
            block: holds the row; if its table is full, it counts the connection as untracked.
            record: the connection record.
            connected_at: when its connection was opened; ``EMPTY`` if it has none.
            server: what serves that connection, see ``server_process``; 0 if that is not known.
        """
        row = ConnectionRow(record, self._on_collected)
        # Atomic: while a pool in use is being instrumented, two threads can add the same record.
        first = self.by_id.setdefault(row.record_id, row)
        if first is None or first.is_released or first.record_ref() is not record:
            # That entry is left over from an object that had the address of this record, for example because a signal
            # interrupted its release. Pop it first, so that the new row is the last in the index.
            self.by_id.pop(row.record_id, None)
            first = self.by_id[row.record_id] = row
        if first is not row:
            row.mark_released()
            return first
        row.attach_to_record(record)
        page, slots = self._with_room(block)
        at = slots.acquire(page, ROWS_IN_BLOCK if page is block else ROWS_PER_PAGE)
        # straight line: a time limit that strikes in between would lose the slot. A row that another thread has moved
        # on already stays so.
        if at:
            row.table = table = page
            row.slots = slots
            row.at = at
            row.held_at = at + HELD_SINCE
        else:
            table = row.table
            row.untracked = 1.0
            block[UNTRACKED_CONNECTIONS] += 1.0
        # Rows are counted and not looked through: at 5,000 connections that took 0.7 ms for each further one.
        self._in_pool = row.order = self._in_pool + 1
        table[at + HELD_SINCE] = 0.0
        table[at + LIFECYCLE] = row.state
        table[at + SERVER_PID] = server
        table[at] = connected_at
        # end of straight line
        return row

    @property
    def more(self) -> list[memoryview[float]]:
        """The pages of further rows."""
        return [page for page, _ in self._more]

    def _with_room(self, block: memoryview[float]) -> tuple[memoryview[float], FreeSlots]:
        """Return the block or a page that has a free row, if one can be had."""
        # The last one first: if it is full, so are nearly always the others.
        for page, slots in (*reversed(self._more), (block, self._free)):
            if slots.has_room(page, ROWS_IN_BLOCK if page is block else ROWS_PER_PAGE):
                return page, slots
        new = self._more_rows()
        if new is None:
            return block, self._free
        free = FreeSlots(first=ROWS_AT, stride=ROW, used=ROWS_USED)
        self._more.append((new, free))
        return new, free

    def disposed(self) -> None:
        """Count the connections that are open now against the pool's size no more."""
        for row in self.rows():
            self._row_disposed(row)

    def _row_disposed(self, row: ConnectionRow) -> None:
        # straight line: in between, the garbage collector or another thread could release the row
        if row.state == IN_POOL:
            if row.order:
                self._in_pool -= 1
                row.order = 0
            row.state = DISPOSED
            row.table[row.at + LIFECYCLE] = DISPOSED
        # end of straight line

    def unlisted(self, record: object) -> ConnectionRow:
        """Return a released row outside the table, for a record whose pool is no longer instrumented."""
        row = ConnectionRow(record, self._on_collected)
        row.mark_released()
        return row

    def release(
        self,
        block: memoryview[float],
        row: ConnectionRow,
        *counters: int,
        leaked: SiteEntry | None = None,
        if_empty: bool = False,
    ) -> None:
        """Free the row of a record that will not be used again, and add 1 to two ``counters`` or to none.

        Args:
            block: has the row and the counters.
            row: the row.
            counters: fields of the block.
            leaked: the site of the checkout that ends with the record, if one does.
            if_empty: leave the row if another thread has taken its record meanwhile: if that has a connection again,
                or is checked out and has lost its connection.
        """
        first, second = counters or _UNCOUNTED
        counts, leaked_at = (block, SCRATCH) if leaked is None else (leaked.table, leaked.at + LEAKED)
        slots = row.slots or self._free
        nowhere = private_doubles()
        # straight line: a time limit that strikes in between would leave the row in use for ever
        table = row.table
        at = row.at
        if row.state == RELEASED or (if_empty and (table[at] != EMPTY or table[row.held_at])):
            return
        if row.order:
            self._in_pool -= 1
            row.order = 0
        row.state = RELEASED
        row.table = nowhere
        row.at = 0
        row.held_at = HELD_SINCE
        table[at] = table[at + 1] = table[at + 2] = table[at + 3] = 0.0
        table[at + 4] = table[at + 5] = table[at + 6] = table[at + 7] = 0.0
        block[first] += 1.0
        block[second] += 1.0
        counts[leaked_at] += 1.0
        block[UNTRACKED_CONNECTIONS] -= row.untracked
        # end of straight line
        if at:  # no call may come before this one
            slots.free.append(at)
        row.forget_checkout()
        row.forget_references()
        self._forget(row.record_id, row)
        self.forget_connection(row)
        row.detach_from_record()

    def clear(self) -> None:
        """Release all rows without writing to the block, because the recorder is about to use another one or none."""
        for row in self.rows():
            row.mark_released()
            row.detach_from_record()
        self.by_id.clear()
        self._free.clear()
        self._more = []
        self._in_pool = 0

    def index_connection(self, row: ConnectionRow, connection: object) -> None:
        """Index a row by the connection that its record has now."""
        if not row.is_released:
            key = id(connection)
            other = self.by_id.get(key)
            if other is not None and other is not row and other.has_connection:
                self.shared.add(key)
            row.connection_id = key
            self.by_id[key] = row

    def sharing(self, connection: object) -> list[ConnectionRow]:
        """Return the rows of all records that have a connection, if a creator returned it more than once."""
        key = id(connection)
        if key not in self.shared:
            return []
        rows = [row for row in self.rows() if row.connection_id == key and row.has_connection]
        if len(rows) <= 1:
            self.shared.discard(key)
        return rows

    def find(self, connection: object) -> ConnectionRow | None:
        """Return the row under the id of a connection; the caller must check that its record has this connection."""
        row = self.by_id.get(id(connection))
        return None if row is None or row.is_released else row

    def forget_connection(self, row: ConnectionRow) -> None:
        """Remove the index entry of the connection that the record of a row had."""
        # A new connection can have the address of one that is gone.
        self._forget(row.connection_id, row)

    def _forget(self, key: int, row: ConnectionRow) -> None:
        by_id = self.by_id
        try:
            # straight line: in between, another thread could index another row by this id
            if by_id[key] is row:
                del by_id[key]
            # end of straight line
        except KeyError:
            return

    def expect_close(self, connection_id: int) -> None:
        """Note that SQLAlchemy will close a connection whose close is counted already."""
        self.by_id[connection_id] = None

    def is_close_expected(self, connection: object) -> bool:
        """Return whether ``expect_close()`` was called for a connection, and forget it."""
        key = id(connection)
        if key not in self.by_id or self.by_id[key] is not None:
            return False
        del self.by_id[key]
        return True
