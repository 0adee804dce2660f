# SPDX-License-Identifier: Apache-2.0
"""A row of the table of connections, and whose connection it is about."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, Self

from .segment import HELD_SINCE

if TYPE_CHECKING:
    from collections.abc import Callable

# Where a place is kept on its connection record: looked up once at each checkout and return.
PLACE: Final = "_pool_exporter_place"


class Place(weakref.ref[Any]):
    """A row of the table of connections, and the weak reference to the connection record it stands for.

    The recorder keeps it alive, so its callback runs when the record is collected without having been closed.
    """

    __slots__ = (
        "connection_id",
        "ended",
        "held",
        "holder",
        "reason",
        "reason_at",
        "record_id",
        "retired",
        "row",
        "table",
    )

    table: memoryview[float]  # the block, or four doubles of its own where the block is full
    row: int
    held: int  # index of held_since
    holder: weakref.ref[Any] | None  # SQLAlchemy's reference to the checked-out proxy; dead: it was collected
    reason: int | None  # why it will be closed, if that is known before
    reason_at: float  # when its record was softly invalidated before that
    retired: bool  # its pool was disposed of or replaced
    ended: bool
    connection_id: int
    record_id: int

    def __new__(
        cls, record: object, gone: Callable[[Place], None], table: memoryview[float], row: int
    ) -> Self:
        """Make the reference; ``gone`` is called when the record is collected."""
        self = super().__new__(cls, record, gone)
        self.table, self.row, self.held = table, row, row + HELD_SINCE
        self.holder = self.reason = None
        self.retired = self.ended = False
        self.connection_id = 0
        self.record_id = id(record)
        self.reason_at = 0.0
        return self

    def __init__(self, record: object, gone: Callable[[Place], None], *_: object) -> None:
        super().__init__(record, gone)  # type: ignore[call-arg]

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
    if hasattr(record, PLACE):
        delattr(record, PLACE)


def was_collected(place: Place) -> bool:
    """Say whether the holder of a connection was collected instead of returning it."""
    return place.holder is not None and place.holder() is None
