# SPDX-License-Identifier: Apache-2.0
"""A row of the table of connections, tied to the connection record that it is about.

This module knows of a record only that it can be weakly referenced and that attributes can be set on it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy_pool_exporter.segment.block import DISPOSED, EMPTY, HELD_SINCE, REPLACED, RETIRED, ROW

if TYPE_CHECKING:
    from collections.abc import Callable

# The record's attribute for its row. The hooks look it up once at each checkout and at each return.
ROW_ATTRIBUTE: Final = "_pool_exporter_row"
# The record's attribute for SQLAlchemy's weak reference to the proxy that the holder of the connection has. A dead
# reference says that the proxy was collected. It is kept on the record because the proxy leads to the record: kept
# anywhere else, it would keep a record alive that never came back.
HOLDER_ATTRIBUTE: Final = "_pool_exporter_holder"

# The states of a row, in the order in which it goes through them; none is ever left for an earlier one.
IN_POOL: Final = 0.0  # its connection, or its empty slot, counts against pool_size
# DISPOSED: the pool was disposed of while the row was in use, and goes on without it
# REPLACED: the pool was replaced by a new one while the row was in use
RELEASED: Final = 3.0  # the table's row is free, or belongs to another connection


class BackupRef(weakref.ref[Any]):
    """Backup reference: frees the row if a signal interrupts the first weakref callback."""

    __slots__ = ("row",)

    row: ConnectionRow


class ConnectionRow(weakref.ref[Any]):
    """A row of the table of connections, and the weak reference to the record that it is about.

    The recorder keeps it alive, so its callback runs when the record is collected without having been closed.
    """

    __slots__ = (
        "at",
        "backup_ref",
        "close_reason",
        "connection_id",
        "held_at",
        "record_id",
        "state",
        "table",
    )

    table: memoryview[float]  # the block; where its table is full, four doubles of the row's own
    at: int  # where in ``table`` the row begins, which is its field connected_at
    held_at: int  # where in ``table`` its field held_since is
    state: float  # IN_POOL, DISPOSED, REPLACED or RELEASED
    close_reason: int | None  # why the connection will be closed, if that is known before; see CLOSE_REASONS
    record_id: int
    connection_id: int
    backup_ref: BackupRef | None

    def __new__(
        cls,
        record: object,
        on_collected: Callable[[ConnectionRow | BackupRef], None],
        table: memoryview[float] | None = None,
        at: int = 0,
    ) -> Self:
        """Make a row in a table, or one with four doubles of its own.

        Args:
            record: what the row is about.
            on_collected: called with each of the two references when the record is collected.
            table: the block.
            at: where in the block the row begins.
        """
        self = super().__new__(cls, record, on_collected)
        self.backup_ref = BackupRef(record, on_collected)
        self.backup_ref.row = self
        self.table = memoryview(bytearray(8 * ROW)).cast("d") if table is None else table
        self.at, self.held_at = at, at + HELD_SINCE
        self.state = IN_POOL
        self.close_reason = None
        self.record_id = id(record)
        self.connection_id = 0
        return self

    def __init__(
        self, record: object, on_collected: Callable[[ConnectionRow | BackupRef], None], *_: object
    ) -> None:
        super().__init__(record, on_collected)  # type: ignore[call-arg]

    def __repr__(self) -> str:
        state = {IN_POOL: "in pool", DISPOSED: "disposed", REPLACED: "replaced", RELEASED: "released"}
        return f"<{type(self).__name__} {state[self.state]} at={self.at}>"

    @property
    def row(self) -> ConnectionRow:
        """Itself: the weakref callback gets this reference or the backup, and asks either for its row."""
        return self

    @property
    def is_released(self) -> bool:
        """Whether the row is not this connection's any more."""
        return self.state == RELEASED

    @property
    def is_tracked(self) -> bool:
        """Whether it has a row in the block."""
        return self.at > 0

    @property
    def has_connection(self) -> bool:
        """Whether the table says that its connection is open."""
        return self.table[self.at] > 0.0

    @property
    def is_empty(self) -> bool:
        """Whether the table says that its connection is closed and can be opened again."""
        return self.table[self.at] == EMPTY

    def disposed_or_replaced(self, state: float) -> None:
        """Take the connection out of the account of ``pool_size``; ``state`` is ``DISPOSED`` or ``REPLACED``."""
        table, retired_at = self.table, self.at + RETIRED
        # straight line: in between, the garbage collector or another thread could release the row
        if self.state < state:
            self.state = state
            table[retired_at] = state
        # end of straight line

    def mark_released(self) -> None:
        """Mark that the row is not used any more."""
        self.state = RELEASED
        self.backup_ref = None  # it refers to this row

    def attach_to_record(self, record: object) -> None:
        """Let the hooks find the row by its record."""
        # Not through __dict__: that would make one, and the attribute slower to find at each checkout.
        setattr(record, HOLDER_ATTRIBUTE, None)
        setattr(record, ROW_ATTRIBUTE, self)

    def detach_from_record(self) -> None:
        """Leave nothing on the record."""
        record = self()
        if record is None:
            return
        for name in (ROW_ATTRIBUTE, HOLDER_ATTRIBUTE):
            if hasattr(record, name):
                delattr(record, name)


def row_of(record: object) -> ConnectionRow | None:
    """Return the row of a record, or None if it has none or has lost it."""
    row: ConnectionRow | None = getattr(record, ROW_ATTRIBUTE, None)
    return None if row is None or row.is_released else row


def has_row(record: object) -> bool:
    """Return whether a record has a row, be it a released one."""
    return hasattr(record, ROW_ATTRIBUTE)


def was_collected(record: object) -> bool:
    """Return whether the holder of a connection was collected instead of returning it."""
    holder = getattr(record, HOLDER_ATTRIBUTE, None)
    return holder is not None and holder() is None


def forget_holder(record: object) -> None:
    """Drop the reference to the holder of a connection."""
    setattr(record, HOLDER_ATTRIBUTE, None)
