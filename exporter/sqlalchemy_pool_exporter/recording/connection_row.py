# SPDX-License-Identifier: Apache-2.0
"""A row of the table of connections, and whose connection it is about."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy_pool_exporter.segment.block import HELD_SINCE

if TYPE_CHECKING:
    from collections.abc import Callable

# Where a place is kept on its connection record: looked up once at each checkout and return.
PLACE: Final = "_pool_exporter_place"
# And SQLAlchemy's reference to the proxy that stands for it while it is checked out; dead: the proxy was collected. On
# the record too, since it leads to the record: held by anything else it would keep one alive that never came back.
HOLDER: Final = "_pool_exporter_holder"


class Again(weakref.ref[Any]):
    """A second reference to a record: an interrupt at the entry of a callback is all that becomes of that one."""

    __slots__ = ("place",)

    place: Place


class Place(weakref.ref[Any]):
    """A row of the table of connections, and the weak reference to the connection record it stands for.

    The recorder keeps it alive, so its callback runs when the record is collected without having been closed.
    """

    __slots__ = (
        "again",
        "connection_id",
        "ended",
        "held",
        "reason",
        "reason_at",
        "record_id",
        "retired",
        "row",
        "table",
    )

    again: Again | None  # its callback finds the row if that of this one was interrupted
    table: memoryview[float]  # the block, or four doubles of its own where the block is full
    row: int
    held: int  # index of held_since
    reason: int | None  # why it will be closed, if that is known before
    reason_at: float  # when its record was softly invalidated before that
    retired: bool  # its pool was disposed of or replaced
    ended: bool
    connection_id: int
    record_id: int

    def __new__(
        cls, record: object, gone: Callable[[Place | Again], None], table: memoryview[float], row: int
    ) -> Self:
        """Make the references; ``gone`` is called with each of them when the record is collected."""
        self = super().__new__(cls, record, gone)
        self.again = Again(record, gone)
        self.again.place = self
        self.table, self.row, self.held = table, row, row + HELD_SINCE
        self.reason = None
        self.retired = self.ended = False
        self.connection_id = 0
        self.record_id = id(record)
        self.reason_at = 0.0
        return self

    def __init__(self, record: object, gone: Callable[[Place | Again], None], *_: object) -> None:
        super().__init__(record, gone)  # type: ignore[call-arg]

    @property
    def place(self) -> Place:
        """Itself, so that both references are asked the same."""
        return self

    def drop(self) -> None:
        """Mark that it is not used any more."""
        self.ended = True
        self.again = None  # it leads back here

    def set_reason(self, reason: int) -> None:
        """Say why the connection will be closed at once."""
        record = self()
        self.reason = reason
        self.reason_at = record._soft_invalidate_time if record is not None else 0.0

    def reason_now(self) -> int | None:
        """Why the connection is closed; None if that was interrupted: SQLAlchemy keeps it, softly invalidated."""
        record = self()
        return self.reason if record is not None and self.reason_at == record._soft_invalidate_time else None

    @property
    def is_tracked(self) -> bool:
        """Whether it has a row in the block."""
        return self.row > 0


def unmark(record: object) -> None:
    """Take the place off its record."""
    for name in (PLACE, HOLDER):
        if hasattr(record, name):
            delattr(record, name)


def was_collected(record: object) -> bool:
    """Say whether the holder of a connection was collected instead of returning it."""
    holder = getattr(record, HOLDER, None)
    return holder is not None and holder() is None
