# SPDX-License-Identifier: Apache-2.0
"""What SQLAlchemy says of its pools and connection records, by names that it does not publish.

All of those names that this project uses are in ``UNPUBLISHED_NAMES``, and only this module and the hot path
(``checkout`` and the ping of ``ping``) use them. A test holds both, and that the installed SQLAlchemy has each of them.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.pool import ConnectionPoolEntry, NullPool, Pool, QueuePool, SingletonThreadPool

from sqlalchemy_pool_exporter.metrics import CLOSE_REASONS
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

# By the object that has them. A pool's queue differs between threads and asyncio, so it has one of the two.
UNPUBLISHED_NAMES: Final = {
    "pool": (
        "_close_connection",
        "_dialect",
        "_do_return_conn",
        "_invalidate_time",
        "_invoke_creator",
        "_orig_logging_name",
        "_pre_ping",
        "_recycle",
    ),
    "QueuePool": ("_max_overflow", "_overflow", "_pool", "_timeout"),
    "SingletonThreadPool": ("_all_conns",),
    "queue of threads": ("queue",),
    "queue of asyncio": ("_queue",),
    "record": ("_soft_invalidate_time", "fairy_ref", "finalize_callback", "starttime"),
    "proxy": ("_connection_record",),
    "listeners of an event": ("for_modify", "listeners"),
    # Of a dialect's two methods of PING_METHODS, 2.0.0 has the published one alone.
}
# The methods of a pool that are wrapped.
CLOSE_CONNECTION: Final = "_close_connection"
INVOKE_CREATOR: Final = "_invoke_creator"
RETURN_CONNECTION: Final = "_do_return_conn"
# The method of a dialect that pings: the first that it has. From 2.0.5 on it is the first one that decides whether an
# error means that the connection is dead.
PING_METHODS: Final = ("_do_ping_w_event", "do_ping")

_RECYCLED, _POOL_INVALIDATED, _SOFT_INVALIDATED, _ERROR = map(
    CLOSE_REASONS.index, ("recycle", "pool_invalidated", "soft_invalidated", "error")
)


# -- the pool


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


def dialect_of(pool: Pool) -> Any:
    """Return the dialect of a pool, which may be a stub if the pool has no engine."""
    return pool._dialect


def logging_name(pool: Pool) -> str | None:
    """Return the ``logging_name`` that the application gave a pool."""
    name = getattr(pool, "_orig_logging_name", None)
    return str(name) if name else None


def pings(pool: Pool) -> bool:
    """Return whether a pool pings a connection before it hands it out."""
    return bool(pool._pre_ping) and "_dialect" in pool.__dict__


def timeout_of(pool: Pool) -> float:
    """Return how many seconds a caller waits in the queue of a pool, 0 if it has none or no limit."""
    return getattr(pool, "_timeout", None) or 0.0


def detaches_collected(pool: Pool) -> bool:
    """Return whether SQLAlchemy detaches a connection whose holder was collected."""
    return bool(getattr(pool._dialect, "is_async", False))


def closes_collected(pool: Pool) -> bool:
    """Return whether SQLAlchemy then closes it, too."""
    return bool(getattr(pool._dialect, "has_terminate", False))


def records_of(pool: Pool) -> Iterator[Any]:
    """Yield the connection records of a pool, which keeps no list of those that are out."""
    if isinstance(pool, SingletonThreadPool) and not pool._all_conns:
        return
    for other in gc.get_referrers(pool):
        # Not isinstance(): that asks any object of the application's for its __class__.
        if issubclass(type(other), ConnectionPoolEntry):
            yield other


def keeps(pool: Pool, record: Any) -> bool:
    """Return whether a pool holds on to a record that is not out."""
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
    """Return whether connections are out, or on their way to a caller."""
    # Not checkedout(): that waits for the queue's lock, whose holder may be in a finalizer that waits for ours.
    return isinstance(pool, QueuePool) and pool.size() - len(idle_records(pool)) + pool._overflow > 0


def idle_records(pool: Pool) -> list[Any]:
    """Return the records in the queue of a pool that has one."""
    if not isinstance(pool, QueuePool):
        return []
    queue: Any = pool._pool
    return list(queue.queue if hasattr(queue, "queue") else queue._queue._queue)


# -- a connection record


def record_of(proxy: Any) -> Any:
    """Return the record of the connection that a checkout returned."""
    return proxy._connection_record


def has_connection(record: Any) -> bool:
    """Return whether a record has a connection at all."""
    return record.dbapi_connection is not None


def holds(record: Any, connection: object) -> bool:
    """Return whether this very connection is the record's; an id alone can be another's by now."""
    return record is not None and record.dbapi_connection is connection


def is_out(record: Any) -> bool:
    """Return whether a caller holds a record's connection."""
    # One without a connection is being reconnected, after a listener found it stale: its caller still waits.
    return record.in_use and record.dbapi_connection is not None


def holder_of(record: Any) -> Any:
    """Return SQLAlchemy's weak reference to the proxy that the holder of a connection has, or None."""
    return record.fairy_ref


def age_of(record: Any) -> float:
    """Return for how many seconds the connection of a record is open, by the wall clock."""
    return max(0.0, time.time() - float(record.starttime))


def is_set_up(record: Any) -> bool:
    """Return whether the first connection of a record was set up."""
    # A record gets its finalizers last.
    return hasattr(record, "finalize_callback")


def why_terminated(pool: Pool, record: Any) -> int:
    """Return the reason for which a record closes its connection, in the order in which ``_ConnectionRecord`` asks.

    An index into ``CLOSE_REASONS``.
    """
    if -1 < pool._recycle < time.time() - record.starttime:
        return _RECYCLED
    if pool._invalidate_time > record.starttime:
        return _POOL_INVALIDATED
    return _SOFT_INVALIDATED if record._soft_invalidate_time > record.starttime else _ERROR


# -- listeners


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
