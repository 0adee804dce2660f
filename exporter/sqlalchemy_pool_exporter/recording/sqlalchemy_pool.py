# SPDX-License-Identifier: Apache-2.0
"""What a pool of SQLAlchemy's says of itself, its limits and its records, by names it does not publish."""

from __future__ import annotations

import gc
from collections import deque
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import ConnectionPoolEntry, NullPool, Pool, QueuePool, SingletonThreadPool

from sqlalchemy_pool_exporter.segment.block import (
    HAS_OVERFLOW,
    MAX_OVERFLOW,
    NOT_APPLICABLE,
    PRE_PING,
    RECYCLE,
    SIZE,
    TIMEOUT,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def configuration(pool: Pool) -> dict[int, float]:
    """Return the limits of a pool by field; ``NOT_APPLICABLE`` (NaN) where there is none."""
    values = dict.fromkeys((SIZE, MAX_OVERFLOW, TIMEOUT, RECYCLE), NOT_APPLICABLE)
    values[HAS_OVERFLOW] = float(isinstance(pool, QueuePool))
    # engine_from_config() leaves it the text that it was; SQLAlchemy takes any text for true.
    values[PRE_PING] = float(bool(pool._pre_ping))
    if pool._recycle > -1:
        values[RECYCLE] = float(pool._recycle)
    # pool_size=0 means no limit, and then SQLAlchemy sets max_overflow to -1, which means no limit, too.
    if isinstance(pool, QueuePool) and pool.size() > 0:
        values[SIZE] = float(pool.size())
        if pool._max_overflow > -1:
            values[MAX_OVERFLOW] = float(pool._max_overflow)
            if pool._timeout is not None:  # None waits for ever
                values[TIMEOUT] = float(pool._timeout)
    return values


def records_of(pool: Pool) -> Iterator[Any]:
    """Yield the connection records of a pool, which keeps no list of those that are out."""
    if isinstance(pool, SingletonThreadPool) and not pool._all_conns:
        return
    for other in gc.get_referrers(pool):
        # Not isinstance(): that asks any object of the application's for its __class__.
        if issubclass(type(other), ConnectionPoolEntry):
            yield other


def keeps(pool: Pool, record: Any) -> bool:
    """Say whether a pool holds on to a record that is not out."""
    if isinstance(pool, NullPool):
        return False
    if not isinstance(pool, QueuePool):
        return True
    # No generator: what a signal handler raises while one is closed is lost.
    for other in idle_records(pool):  # noqa: SIM110
        if other is record:
            return True
    return False


def has_out(pool: Pool) -> bool:
    """Say whether connections are out, or on their way to somebody."""
    # Not checkedout(): that waits for the queue's lock, whose holder may be in a finalizer that waits for ours.
    return isinstance(pool, QueuePool) and pool.size() - len(idle_records(pool)) + pool._overflow > 0


def is_out(record: Any) -> bool:
    """Say whether a record's connection is in somebody's hands."""
    # One without a connection is being reconnected, after a listener found it stale: its caller still waits.
    return record.in_use and record.dbapi_connection is not None


def idle_records(pool: Pool) -> list[Any]:
    """Return the records in the queue of a pool that has one."""
    if not isinstance(pool, QueuePool):
        return []
    queue: Any = pool._pool
    return list(queue.queue if hasattr(queue, "queue") else queue._queue._queue)


def listen(pool: Pool, name: str, listener: Any) -> None:
    """Add a listener to a pool that may be in traffic."""
    # Not event.listen(): it appends to a deque that another thread may be iterating, in the middle of a listener of
    # the application's, and a deque that changes under its iterator raises there.
    collection = getattr(pool.dispatch, name).for_modify(pool.dispatch)
    collection.listeners = deque((*collection.listeners, listener))


def unlisten(pool: Pool, name: str, listener: Any) -> None:
    """Remove a listener from a pool that may be in traffic."""
    collection = getattr(pool.dispatch, name)
    # list() is one call that no thread interrupts; and by identity, since a listener can compare as it likes.
    present = list(collection.listeners)
    collection.listeners = deque([other for other in present if other is not listener])
