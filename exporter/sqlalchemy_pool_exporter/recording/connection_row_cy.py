# SPDX-License-Identifier: Apache-2.0
"""A row of the table of connections, tied to its connection record.

This module only needs a record that can be weakly referenced and that takes attributes; it knows no SQLAlchemy.
"""

from __future__ import annotations

import weakref
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy_pool_exporter import straight_lines
from sqlalchemy_pool_exporter.segment.block import DISPOSED, EMPTY, HELD_SINCE, ROW

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable

    from sqlalchemy_pool_exporter.segment.site_entry_cy import SiteEntry
    from sqlalchemy_pool_exporter.segment.texts import Name

    from .slots import FreeSlots

try:
    from sqlalchemy_pool_exporter import cython
except ImportError:  # never; Cython takes the name for its own where it reads such an import
    import cython  # type: ignore[no-redef]

if cython.compiled:
    from cython.cimports.sqlalchemy_pool_exporter.c_api import (
        IN_REFERENCE,
        get_ident,
        reference_to,
        slot_at,
        state_of,
    )
else:
    from threading import get_ident
    from weakref import ref as reference_to

    IN_REFERENCE = False

# The record's attribute for its state. The hooks read it once at each checkout and once at each return. Compiled, the
# state is in a weak reference to the record instead: an attribute of the record would be its only one, and would make
# each call of a method of the record look the method up, which takes 350 instructions.
STATE_ATTRIBUTE: Final = "_pool_exporter_state"

# The lifecycle state of a row: IN_POOL, DISPOSED, RELEASED. It only moves forward in this order.
IN_POOL: Final = 0.0  # the connection, or the empty slot, counts against pool_size
# DISPOSED: the pool was disposed of while the connection was out, and goes on without it
RELEASED: Final = 3.0  # the row in the block is free, or belongs to another record

# Whether other threads run in the midst of what is one call with the GIL.
_IS_INTERRUPTED: Final = straight_lines.is_wanted()

NOT_YET: Final = 0.0  # in connected_at: the record is about to get its connection


class HeldRows:
    """The rows of the connections that a holder has checked out.

    Most holders have one connection at a time. Its row is not put into a dictionary, where an insertion and a deletion
    take 500 instructions.

    Mutable state: both attributes.
    """

    __slots__ = ("first", "others")

    def __init__(self) -> None:
        self.first: ConnectionRow | None = None  # the oldest; None once it came back
        self.others: dict[int, ConnectionRow] = {}  # by the id of the record, in the order of the checkouts

    def latest(self, most: int) -> list[ConnectionRow]:
        """Return the latest rows, the oldest first; raise ``RuntimeError`` if they change meanwhile."""
        first = self.first  # read once: another thread can return it
        if _IS_INTERRUPTED:
            # That crash can come within one call, too. A dictionary is copied with its own lock.
            rows = list(self.others.values())[-most:]
            return rows if first is None or len(rows) == most else [first, *rows]
        # CPython crashes if a dictionary is emptied and filled again beside an iterator that runs backwards, as a
        # finalizer or another thread could do between two calls. So the iterator is made and used within one call, that
        # of list(). Of values, not of items: to make the pairs could start a collection, in its midst.
        backwards = chain.from_iterable(map(reversed, (self.others.values(),)))
        rows = list(islice(backwards, most))
        if first is not None and len(rows) < most:
            rows.append(first)
        rows.reverse()
        return rows

    def discard(self, row: ConnectionRow) -> None:
        """Forget a row, if it is among these."""
        # straight line
        is_first = self.first is row
        if is_first:
            self.first = None
        # end of straight line
        if not is_first:
            self.others.pop(row.record_id, None)


class Holder:
    """A thread or a task. Mutable state: the rows of the connections that it has checked out, and ``hands_on``.

    Two holders are one if they have the same rows: a task, and the calls that it makes in threads.
    """

    __slots__ = ("call", "hands_on", "name", "number", "rows", "task", "thread_id")

    def __init__(
        self,
        number: float,
        task: Task[Any] | None = None,
        name: Name | None = None,
        rows: HeldRows | None = None,
        call: weakref.ref[Any] | None = None,
    ) -> None:
        # See ``HOLDER``. While the name is kept, its number means the same text.
        self.number = number if name is None else float(name.number)
        self.name = name
        self.call = call  # the asyncio future of a call that this thread makes for a task
        self.task = None if task is None else reference_to(task)
        self.thread_id = get_ident()  # of the thread, or the one that runs the task
        # Whether others return what it checks out: then it has them no more, and does not wait for itself.
        self.hands_on = False
        self.rows = HeldRows() if rows is None else rows

    @property
    def is_abandoned(self) -> bool:
        """Whether the task for which the thread makes a call was cancelled, so that it waits for the call no more."""
        call = None if self.call is None else self.call()
        return call is not None and call.cancelled()


class Nesting:
    """What a row has to do with nested checkouts. Mutable state: both attributes."""

    __slots__ = ("inner", "outer")

    def __init__(self) -> None:
        self.outer: ConnectionRow | None = None  # what its holder held at the checkout
        # How many checkouts its holder made and returned meanwhile, by their sites.
        self.inner: dict[SiteEntry, float] = {}


class TracedCheckout(NamedTuple):
    """The trace in which a connection was checked out, at a time of the recorder's clock."""

    since: float
    trace_id: int
    span_id: int


class Phases:
    """What took time in the checkouts of a connection, and the trace of the last one that waited for long.

    Mutable state: all of it. Times are of the recorder's clock.
    """

    __slots__ = ("opening", "ping_began", "pinging", "trace")

    def __init__(self) -> None:
        self.opening = 0.0  # how long it took to open the connection, in seconds
        self.ping_began = self.pinging = 0.0  # of the last ping that was not quick: when, and for how long
        self.trace: TracedCheckout | None = None

    @classmethod
    def of(cls, row: ConnectionRow) -> Phases:
        """Return those of a row, which may be its first."""
        if row.phases is None:
            row.phases = cls()
        known: Phases = row.phases
        return known


class RecordRef(weakref.ref[Any]):
    """A weak reference to a connection record, whose callback frees the record's row."""

    __slots__ = ("row", "state")

    row: ConnectionRow | None  # None once the row was released
    state: RecordState | None  # see STATE_ATTRIBUTE


if cython.compiled:
    # Where references have their state, for the hooks.
    _STATE_AT: Final = slot_at(RecordRef, "state")


class ConnectionRow:
    """A row of the table of connections, with weak references to its record.

    The recorder keeps this object alive, so a weakref callback runs when the record is garbage-collected.

    Attributes:
        table: the block; before the row is placed, after it is released and if the table is full, private doubles.
        at: index in ``table`` of the row's first field, connected_at; 0 in private doubles.
        held_at: index in ``table`` of the field held_since.
        slots: to which the row goes back; None for private doubles.
        untracked: 1 if the block counts the row as untracked.
        state: IN_POOL, DISPOSED or RELEASED.
        site: of the last checkout, also after the return; None if not known. The fields of the row say the same.
        label: likewise; 0 if not known.
        holder: likewise; None if not known.
        nesting: None unless the checkout is nested, or has a nested one.
        phases: of its checkouts, as far as they were not quick; None if all were.
        order: how many rows counted against pool_size when this one was added, itself too; 0 if it does not count.
        close_reason: index into CLOSE_REASONS, if it is known before the close.
        record_id: the id of the record.
        connection_id: the id of the record's connection, for the index.
        record_ref: refers to the record.
        backup_ref: frees the row if a signal interrupts the callback of ``record_ref``.
    """

    __slots__ = (
        "at",
        "backup_ref",
        "close_reason",
        "connection_id",
        "held_at",
        "holder",
        "label",
        "nesting",
        "order",
        "phases",
        "record_id",
        "record_ref",
        "site",
        "slots",
        "state",
        "table",
        "untracked",
    )

    def __init__(self, record: object, on_collected: Callable[[RecordRef], None]) -> None:
        """Make a row with private doubles.

        Args:
            record: the connection record.
            on_collected: called with each of both references when the record is garbage-collected.
        """
        self.table = private_doubles()
        self.at, self.held_at = 0, HELD_SINCE
        self.slots: FreeSlots | None = None
        self.untracked = 0.0
        self.state = IN_POOL
        self.site: SiteEntry | None = None
        self.holder: Holder | None = None
        self.label = 0
        self.nesting: Nesting | None = None
        self.phases: Phases | None = None
        self.order = 0
        self.close_reason: int | None = None
        self.record_id = id(record)
        self.connection_id = 0
        self.record_ref = self._refer_to(record, on_collected)
        self.backup_ref: RecordRef | None = self._refer_to(record, on_collected)

    def _refer_to(self, record: object, on_collected: Callable[[RecordRef], None]) -> RecordRef:
        reference = RecordRef(record, on_collected)
        reference.row = self
        reference.state = None
        return reference

    def __repr__(self) -> str:
        state = {IN_POOL: "in pool", DISPOSED: "disposed", RELEASED: "released"}
        return f"<{type(self).__name__} {state[self.state]} at={self.at}>"

    @property
    def is_released(self) -> bool:
        """Whether the row in the block no longer belongs to this record."""
        return self.state == RELEASED

    @property
    def connected_at(self) -> float:
        """What the table says of the record's connection: when it was opened, or EMPTY or NOT_YET."""
        # straight line: another thread can release the row, which moves it
        at: float = self.table[self.at]
        # end of straight line
        return at

    @property
    def held_since(self) -> float:
        """Since when the connection is out, negative if the checkout was not recorded; 0 if it is not."""
        # straight line: as above
        since: float = self.table[self.held_at]
        # end of straight line
        return since

    @property
    def has_connection(self) -> bool:
        """Whether the record's connection is open, according to the table."""
        return self.connected_at > 0.0

    @property
    def is_empty(self) -> bool:
        """Whether the record's connection is closed, according to the table; the next checkout connects again."""
        return self.connected_at == EMPTY

    def forget_checkout(self) -> SiteEntry | None:
        """Note that the connection came back; return the site of its checkout, if that is known."""
        self.nesting = None
        if self.holder is not None:
            self.holder.rows.discard(self)
        return self.site

    def mark_released(self) -> None:
        """Mark the row as released."""
        self.forget_checkout()
        nowhere = private_doubles()
        # straight line: a hook that is still running stores into no row of another record, as in release()
        self.state = RELEASED
        self.table = nowhere
        self.at = 0
        self.held_at = HELD_SINCE
        # end of straight line
        self.forget_references()

    def forget_references(self) -> None:
        """Break the reference cycles of a released row."""
        self.record_ref.row = self.backup_ref = None

    def attach_to_record(self, record: Any) -> None:
        """Set the attribute by which the hooks find the row."""
        state = RecordState(self)
        if IN_REFERENCE:
            self.record_ref.state = state
            return
        # Not through __dict__: that creates a dictionary and slows the look-up at each checkout.
        # straight line: see detach_from_record()
        record._pool_exporter_state = state
        # end of straight line

    def detach_from_record(self) -> None:
        """Let the hooks find this row no more. If the record has another row by now, they find that."""
        if IN_REFERENCE:
            self.record_ref.state = None
            return
        record: Any = self.record_ref()
        try:
            # straight line: in between, another thread could give the record another row
            if record._pool_exporter_state.row is self:
                del record._pool_exporter_state
            # end of straight line
        except AttributeError:  # the record is garbage, or has no row
            return


class RecordState:
    """What a connection record has of ours. Mutable state: ``proxy_ref``.

    ``proxy_ref`` is SQLAlchemy's weak reference to the proxy that the caller got, None if the connection is not out. If
    the reference is dead, the proxy was garbage-collected instead of returned. Only the record may refer to it, because
    its callback refers to the record, which would stay alive if it never came back.
    """

    __slots__ = ("proxy_ref", "row")

    def __init__(self, row: ConnectionRow) -> None:
        self.row = row
        self.proxy_ref: weakref.ref[Any] | None = None

    def __reduce_ex__(self, _protocol: object) -> tuple[Callable[[], None], tuple[()]]:
        """Make a deep copy of the record have no row."""
        return _nothing, ()


def private_doubles() -> memoryview[float]:
    """Return memory for one row that no reader sees."""
    return memoryview(bytearray(8 * ROW)).cast("d")


def _nothing() -> None:
    return None


def row_of(record: object) -> ConnectionRow | None:
    """Return the row of a record, or None if it has none or its row was released."""
    state = record_state(record)
    return None if state is None or state.row.is_released else state.row


def has_row(record: object) -> bool:
    """Return whether a record has a row, released or not."""
    return record_state(record) is not None


def was_collected(record: object) -> bool:
    """Return whether the proxy of a connection was garbage-collected instead of returned."""
    state = record_state(record)
    proxy_ref = None if state is None else state.proxy_ref
    return proxy_ref is not None and proxy_ref() is None


def remember_proxy(record: object, proxy_ref: weakref.ref[Any] | None) -> None:
    """Store a reference to the proxy of a connection, so that the hot path finds no new checkout."""
    state = record_state(record)
    if state is not None:
        state.proxy_ref = proxy_ref


def forget_proxy(record: object) -> None:
    """Drop the reference to the proxy of a connection."""
    remember_proxy(record, None)


def record_state(record: object) -> RecordState | None:
    """Return what a record has of ours, or None if it has nothing."""
    state: RecordState | None
    if cython.compiled:
        try:
            state = state_of(record, RecordRef, _STATE_AT, STATE_ATTRIBUTE)
        except AttributeError:
            state = None
    else:
        state = getattr(record, STATE_ATTRIBUTE, None)
    return state
