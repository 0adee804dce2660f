# SPDX-License-Identifier: Apache-2.0
"""Checkouts and returns off the hot path, and a pool that is in use when it is instrumented."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.segment.block import EMPTY, REPLACED

from .checkout import mark_held
from .connection_row import IN_POOL, forget_holder, has_row, row_of, was_collected
from .faults import never_raises
from .sqlalchemy_pool import (
    age_of,
    closes_collected,
    detaches_collected,
    has_connection,
    has_out,
    holder_of,
    is_out,
    keeps,
    record_of,
    records_of,
    timeout_of,
    unlisten,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import Pool

    from .connection_row import ConnectionRow
    from .recorder import Recorder

# After a pool in use is instrumented, callers that were in its queue then can turn up for so long, beside its timeout.
_LATECOMERS_SECONDS: Final = 60.0
_EARLIEST: Final = 0.001  # 0 and less say that there is no connection


class SlowPath:
    """Records what the hot path does not, for one pool object."""

    __slots__ = ("_checkout_listener", "_latecomers_until", "_pool", "pool_replaced", "recorder")

    def __init__(self, pool: Pool, recorder: Recorder) -> None:
        self._pool = pool
        self.recorder = recorder
        # The mutable state.
        self.pool_replaced = False
        self._latecomers_until = 0.0
        self._checkout_listener: Any = None

    @property
    def new_row_state(self) -> float:
        """The state of a row that is added now."""
        return REPLACED if self.pool_replaced else IN_POOL

    # -- checkouts

    @never_raises
    def checked_out(self, connection: Any, began: float, error: Exception) -> None:
        """Record a checkout that raised ``error`` on the hot path.

        1. The pool is not instrumented any more: nothing is recorded.
        2. The record has a row: ``error`` is a fault.
        3. The beginning could not be recorded: so is it, and was counted then.
        4. The record connected before its pool was instrumented: it gets a row.
        """
        recorder = self.recorder
        record = record_of(connection)
        if recorder.stopped:
            return
        if row_of(record) is not None or not began:
            recorder.fault(error)
            return
        recorder.checked_out(self.adopt(record), began)

    # -- connections that come back

    @never_raises
    def returned(self, record: Any, row: ConnectionRow, since: float) -> None:
        """Record a return, before it happens; ``row`` is marked as returned already.

        1. It was not checked out and has its connection: nothing happened.
        2. It was not checked out and its connection is gone: a listener raised, and SQLAlchemy collected the proxy.
        3. It was checked out and its connection is gone, but was not closed: a detach, by the holder or, for an asyncio
           connection whose holder was collected, by SQLAlchemy.
        4. Its connection was closed, or its checkout was not seen: a return.

        Args:
            record: the record, about to be put back.
            row: its row.
            since: when it was checked out; negative if that was not seen, 0 if it was not checked out.
        """
        is_detached = not has_connection(record) and row.has_connection
        if not since:
            if is_detached:
                self._detached(row, was_out=False, collected=detaches_collected(self._pool))
            return
        collected = was_collected(record)
        forget_holder(record)
        if is_detached:
            self._detached(row, was_out=True, collected=collected)
        else:
            self.recorder.returned(since, collected=collected)

    def _detached(self, row: ConnectionRow, *, was_out: bool, collected: bool) -> None:
        is_closed_next = collected and closes_collected(self._pool)
        self.recorder.detached(row, was_out=was_out, collected=collected, is_closed_next=is_closed_next)

    @never_raises
    def return_failed(self, record: Any, error: Exception) -> None:
        """Record a return that raised ``error`` on the hot path.

        1. The pool is not instrumented any more: nothing is recorded.
        2. The record has a row: ``error`` is a fault.
        3. The connection was out when the pool was instrumented, and was not found then: its record gets a row.
        """
        if self.recorder.stopped:
            return
        if has_row(record):
            self.recorder.fault(error)
        else:
            self.adopt(record)

    @never_raises
    def release_if_discarded(self, record: Any) -> None:
        """Free the row of a record that went back without a connection, if the pool did not keep it."""
        row = row_of(record)
        if row is not None and row.is_empty and not keeps(self._pool, record):
            self.recorder.release_row(row)

    # -- a pool that is in use already

    def is_in_use(self, records: list[Any]) -> bool:
        """Return whether connections are out, or on their way to a caller; ``records`` are those of the pool."""
        # A caller on its way is in the pool's own count before there is a record for it.
        return has_out(self._pool) or any(
            record.in_use or not keeps(self._pool, record) for record in records
        )

    def adopt_present(self) -> None:
        """Give a row to each connection that is there."""
        for record in records_of(self._pool):
            # One that is neither is about to be handed out, or about to be collected.
            if record.in_use or has_connection(record) or keeps(self._pool, record):
                self.adopt(record)

    def adopt(self, record: Any) -> ConnectionRow:
        """Give a row to a record whose connection was not seen to open, and return it."""
        recorder = self.recorder
        now = recorder.clock()
        # A wall clock that was set can make it older than the monotonic one, which starts with the host.
        connected_at = max(now - age_of(record), _EARLIEST) if has_connection(record) else EMPTY
        row = recorder.add_row(record, connected_at, record.dbapi_connection, state=self.new_row_state)
        if is_out(record):
            mark_held(record, row, holder_of(record), recorder.clock())
        return row

    def await_latecomers(self, listen: Callable[[str, Any], None]) -> None:
        """Listen for the callers that wait in the queue now: they have passed the place where our hook will be."""
        self._latecomers_until = self.recorder.clock() + timeout_of(self._pool) + _LATECOMERS_SECONDS
        self._checkout_listener = (
            self._on_checkout
        )  # each look-up makes another object, and it is found by identity
        listen("checkout", self._checkout_listener)

    @never_raises
    def _on_checkout(self, _connection: object, record: Any, proxy: object) -> None:
        recorder = self.recorder
        if recorder.clock() > self._latecomers_until:
            unlisten(self._pool, "checkout", self._checkout_listener)
            return
        # Another reference than the record's: the checkout may be on its way through our hook, which takes that one
        # for no new checkout.
        row = row_of(record) or self.adopt(record)
        mark_held(record, row, weakref.ref(proxy), recorder.clock())
